"""Data sets: one file each, whose `load(split)` yields Examples."""
