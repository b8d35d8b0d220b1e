"""Training carries out one run: its plan, checks, the Lightning loop, and the files that it leaves."""
