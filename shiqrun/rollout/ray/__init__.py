"""`rollout=ray` samples trajectories in Ray actors while the trainer learns from those that wait."""
