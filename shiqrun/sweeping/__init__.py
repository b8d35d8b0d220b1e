"""Grids of runs: which jobs there are, running each as a process of its own, and what came out of them."""
