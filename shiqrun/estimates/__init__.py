"""Estimates are computed from the reference before training: prompt values and pivotal tokens."""
