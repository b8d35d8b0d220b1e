"""This package holds the policy, its frozen reference, LoRA, model loading, and the scoring of actions."""
