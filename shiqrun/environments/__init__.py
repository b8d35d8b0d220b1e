"""Environments answer a policy over several turns: `environment` is their contract, the rest implements it."""
