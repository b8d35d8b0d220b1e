"""YAML files of every command; they form a package, so that the wheel contains them."""
