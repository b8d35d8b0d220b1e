"""`warnings_of` says before training what is allowed in a run but is rarely meant, so that it can still be changed.

A rule returns what is unusual and what to change, or None. Its run may go on as it is. To add one, write the function,
append it to `RULES`, and give it a case in `tests/training/test_checks_warnings.py`.
"""

from shiqrun.training.plan import Run
from shiqrun.training.step.schedule import learning_rate_factor


def warnings_of(run: Run) -> list[str]:
    """Return the messages of all rules that a prepared run breaks, each once."""
    return [said for rule in RULES if (said := rule(run))]


def warmup_ends_before_the_run(run: Run) -> str | None:
    """The learning rate should reach `trainer.learning_rate` while there are steps left."""
    settings = run.plan.trainer
    if settings.warmup_steps < run.max_steps or not run.max_steps:
        return None
    last = learning_rate_factor(run.max_steps - 1, settings.lr_schedule, settings.warmup_steps, run.max_steps)
    return (
        f"trainer.warmup_steps={settings.warmup_steps} does not end before the run's {run.max_steps} steps: the "
        f"learning rate only rises, up to {last * settings.learning_rate:.3g} at the last step "
        f"(trainer.learning_rate={settings.learning_rate:.3g}); set fewer warm-up steps or more steps"
    )


def reference_is_trained(run: Run) -> str | None:
    """A divergence from random weights keeps the policy near uniformly random tokens."""
    needs = run.plan.needs
    unread = run.plan.algo.reference == "none" or not needs or "score" in needs
    if unread or not getattr(run.plan.choice, "untrained", False):
        return None
    return (
        f"the reference of algo={run.plan.name} is a model with random weights, near which its KL penalty keeps the "
        "policy; train a reference by algo=sft and pass it by model=hf model.path=RUN/policy"
    )


RULES = (warmup_ends_before_the_run, reference_is_trained)
"""The rules of every prepared run, in the order in which their messages are logged."""
