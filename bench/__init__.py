"""Timings and peak memory; `make bench` runs them, the tests never do."""
