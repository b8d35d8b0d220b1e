"""A metric's name says whether more or less of it is better; for many metrics it says neither."""

import re

MORE = re.compile(
    r"reward(/.*)?|reward_(min|max)|reward_per_turn(/.*)?|mean_reward|rewards/(chosen|margins|accuracies)"
    r"|regularised_return|win_rate|pass@\d+|accuracy|margin|mean_token_accuracy|official_(score|agreement)|success(/.*)?"
)
LESS = re.compile(r"(.*_)?loss|regret|kl|approx_kl|illegal|residual_abs(/.*)?|(q|target)_gap_abs|grad_norm")


def direction_of(metric: str) -> int | None:
    """Return 1 if more of a metric is better, -1 if less is, None where its name (`val/reward`) does not say."""
    name = metric.partition("/")[2]
    if MORE.fullmatch(name):
        return 1
    return -1 if LESS.fullmatch(name) else None
