"""Utilities that know nothing of training write files atomically, lock them, reach the Hub, and compute intervals."""
