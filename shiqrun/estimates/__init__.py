"""This package estimates prompt values and pivotal tokens from completions of the reference, before training."""
