"""This package carries out one training run: its plan, checks, the Lightning loop, and the files that it leaves."""
