"""Environments answer a policy over several turns: each takes its message and gives the next messages with a reward."""
