"""Models: the policy, its frozen reference, the scoring of actions, LoRA, and where models are loaded from."""
