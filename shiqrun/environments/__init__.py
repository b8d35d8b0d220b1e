"""Environments answer a policy over several turns and pay rewards: `environment` is their contract."""
