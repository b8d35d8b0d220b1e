"""Losses that a user could write, with hyperparameters that the project's own losses do not have."""

from shiqrun.losses.requirements import needs


@needs("prompt_value")
def defaulted(batch, policy, reference, *, beta=0.3, link="cross_entropy", top=2, eps=1e-2):
    """Has a default for every hyperparameter."""
    raise NotImplementedError


@needs("prompt_value")
def without_beta(batch, policy, reference):
    """Reads prompt values, but has no beta to compute them at."""
    raise NotImplementedError
