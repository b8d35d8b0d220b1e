"""The main metrics are those that a dashboard shows first; all others are logged beside them and drawn on request."""

import re

SECTIONS = {
    "The policy's answers": ("val/regularised_return", "val/reward", "val/kl", "val/win_rate"),
    "Against the known": ("val/regret", "val/pass@1", "val/accuracy", "val/official_score", "val/reward_per_turn"),
    "Training": ("train/loss", "val/loss", "train/logratio_mean", "train/grad_norm", "train/learning_rate"),
    "Length": ("val/completions/mean_length", "val/completions/eos_rate"),
    "Sampling while training": ("rollout/reward", "rollout/mean_length", "rollout/staleness_mean"),
}
"""The main metrics in the order in which one looks at them, by section of a dashboard."""
MAIN = frozenset(name for names in SECTIONS.values() for name in names)
TABLE = "completions"


def is_main(name: str) -> bool:
    """Return whether a dashboard draws a metric (or the table of completions) without being asked."""
    return name in MAIN or name == TABLE or re.fullmatch(r"val/pass@\d+", name) is not None
