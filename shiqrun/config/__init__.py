"""The package `config` composes YAML with Hydra, checks it, makes run directories, and launches jobs and sweeps."""
