"""Configuration: composing YAML and overrides with Hydra, checking them, run directories, launching jobs and sweeps."""
