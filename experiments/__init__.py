"""Each study here runs the commands behind a page of docs/, goes on where it was stopped, and draws the figures.

`python -m experiments.NAME --dry-run` prints the commands that a study would run now.
"""
