"""Rollouts sample trajectories while a run trains: engines, the experience store, and the mixing of sources."""
