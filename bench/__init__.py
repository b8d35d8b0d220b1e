"""The benchmarks measure time and peak memory of shiqrun and its peers; `make bench` runs them, the tests do not."""
