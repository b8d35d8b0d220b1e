"""Studies: each module runs the commands behind a page of docs/, can be stopped and gone on with, and draws its figures.

`python -m experiments.NAME --dry-run` prints the commands that a study would run now.
"""
