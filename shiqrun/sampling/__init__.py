"""Sampling draws completions and episodes from a policy: prompts, decoder, key-value cache."""
