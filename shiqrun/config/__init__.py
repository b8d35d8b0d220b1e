"""Configuration: composing YAML with Hydra, checking it, run directories, launching jobs and sweeps."""
