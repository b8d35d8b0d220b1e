"""`warnings_of` says before training what is allowed in a run but is rarely meant, so that it can still be changed.

A rule returns what is unusual and what to change, or None. Its run may go on as it is. To add one, write the function,
append it to `RULES`, and give it a case in `tests/training/test_checks_warnings.py`.
"""

import json
import math
from pathlib import Path
from typing import Any

from shiqrun.sampling.prompts import stop_tokens
from shiqrun.training import checks_models
from shiqrun.training.checks_units import parts_look_different, unit_is_unknown
from shiqrun.training.plan import Run
from shiqrun.training.step.schedule import learning_rate_factor
from shiqrun.util.intervals import Z95

SUMMARY = "summary.json"


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


def completions_can_end(run: Run) -> str | None:
    """A policy without an end-of-sequence token never ends a completion, so every one is cut at its limit."""
    if stop_tokens(run.tokenizer, run.policy.model):
        return None
    return (
        "the tokenizer has no EOS token, and no special token closes the assistant's turn: no completion can end "
        "before its limit of tokens; set eos_token in tokenizer_config.json or eos_token_id in generation_config.json"
    )


def reward_model_beats_chance(run: Run) -> str | None:
    """A reward model that is right about held-out pairs as often as a coin is no reward."""
    path = getattr(run.plan.reward, "path", None)
    summary = Path(path).parent / SUMMARY if path else None
    if summary is None or not summary.is_file():
        return None  # made elsewhere
    found = as_summary(summary)
    accuracy, rows = found.get("val/accuracy"), found.get("trajectories/val")
    if found.get("algo") != "reward_model" or not isinstance(accuracy, float) or not isinstance(rows, int) or rows < 2:
        return None
    half = Z95 * 0.5 / math.sqrt(rows / 2)  # of a coin's share over as many pairs
    if accuracy - 0.5 > half:
        return None
    return (
        f"the reward model {path} is at chance: right on {accuracy:.3f} of {rows // 2} held-out pairs, where a coin "
        f"gets 0.5 ± {half:.3f}; train it longer, on more pairs or from a better model"
    )


def as_summary(file: Path) -> dict[str, Any]:
    """Return the summary of a run; nothing of one that is damaged, which this run does not need."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def rewards_have_one_unit(run: Run) -> str | None:
    """Logged and sampled rewards that are trained on together should be known to have one unit."""
    return unit_is_unknown(run.plan, run.encoded.train, run.further)


def parts_have_one_unit(run: Run) -> str | None:
    """The parts of a mixture should pay rewards of one unit."""
    return parts_look_different(run.plan, run.encoded.train)


RULES = (
    completions_can_end,
    reward_model_beats_chance,
    warmup_ends_before_the_run,
    reference_is_trained,
    rewards_have_one_unit,
    parts_have_one_unit,
    *checks_models.RULES,
)
"""The rules of every prepared run, in the order in which their messages are logged."""
