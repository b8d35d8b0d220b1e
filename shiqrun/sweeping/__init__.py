"""A sweep runs a grid of configs, each job in a process of its own, and then compares the results."""
