"""The YAML of every command; a package, so that it travels in the wheel."""
