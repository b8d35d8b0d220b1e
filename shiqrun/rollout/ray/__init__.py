"""With `rollout=ray`, actors on a Ray cluster sample and score while the trainer learns from trajectories that wait."""
