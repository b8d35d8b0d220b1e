"""Data sets, and the one place that decides which tokens are actions."""
