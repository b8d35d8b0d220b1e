"""The policy, its reference, and the scoring of actions."""
