"""Timings and peak memory of shiqrun and its peers; `make bench` runs them, and the tests train with none of them."""
