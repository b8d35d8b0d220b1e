"""Evaluation measures the reward and the KL of a policy by completions or episodes that it samples."""
