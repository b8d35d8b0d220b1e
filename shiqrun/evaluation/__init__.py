"""Evaluation measures the reward and KL of a policy's own samples, or its distance from an exact optimum."""
