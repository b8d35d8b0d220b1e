"""One file a command; the only readers of DictConfig."""
