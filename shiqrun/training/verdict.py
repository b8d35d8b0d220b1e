"""`verdict` says in one sentence whether a run improved on its reference, by how much, and how sure that is."""

import math
from collections.abc import Mapping

from shiqrun.console import number

HALF = "_ci95"
SMALLEST = 0.0005
"""The smallest change of the regret, as a share, that is shown."""
CHANCE = 0.5
"""The win rate of a policy that answers as well as its reference, and the accuracy of a reward model that guesses."""


def verdict(before: Mapping[str, float], after: Mapping[str, float], pairs: int = 0) -> str | None:
    """Return one sentence about a finished run, or None where nothing was measured before and after.

    Args:
        before: metrics of the reference, `val/NAME`.
        after: metrics of the trained policy, with half widths of 95 % intervals as `val/NAME_ci95`.
        pairs: number of held-out pairs, of which `val/accuracy` of a reward model is a share.
    """
    if before.get("val/regret") and "val/regret" in after:
        return _exactly(before["val/regret"], after["val/regret"])
    if "val/win_rate" in after:
        return _by_answers(after)
    if "val/accuracy" in after:
        return _of_reward_model(after["val/accuracy"], pairs)
    if "val/loss" in before and "val/loss" in after:
        return _by_loss(before["val/loss"], after["val/loss"])
    return None


def _exactly(before: float, after: float) -> str:
    fall = 1 - after / before
    if abs(fall) < SMALLEST:
        return f"Unchanged: regret on held-out problems is {number(after)}"
    word, how = ("Improved", "fell") if fall > 0 else ("Worse", "rose")
    return f"{word}: regret on held-out problems {how} by {abs(fall):.1%}, from {number(before)} to {number(after)}"


def _by_answers(after: Mapping[str, float]) -> str:
    """Return what the win rate says; it is between policy and reference on the same prompts, so chance is a half."""
    rate, half = after["val/win_rate"], after.get(f"val/win_rate{HALF}", math.nan)
    if half == 0:  # every prompt had the same outcome: the rule of three bounds how rare another one is
        half = min(1.0, 3 / after["val/prompts"]) if "val/prompts" in after else math.nan
    where = f"on {after['val/prompts']:.0f} held-out prompts" if "val/prompts" in after else "on held-out prompts"
    measured = [f"win rate {_share(rate, half)} against the reference's"]
    if "val/reference_reward" in after:
        measured.append(f"reward {number(after['val/reference_reward'])} -> {number(after['val/reward'])}")
    if "val/kl" in after:
        measured.append(f"KL {number(after['val/kl'])} nats an answer")
    said = ", ".join(measured)
    if not math.isfinite(half):
        return f"Too few prompts to tell {where}: {said}; set eval.max_prompts"
    if rate - half > CHANCE:
        return f"Improved: {where}, {said}"
    if rate + half < CHANCE:
        return f"Worse: {where}, {said}"
    return f"No sure difference {where}: {said}; more prompts (eval.max_prompts) or steps would tell"


def _of_reward_model(share: float, pairs: int) -> str:
    half = 1.96 * math.sqrt(share * (1 - share) / pairs) or 3 / pairs if pairs else math.nan
    said = f"{_share(share, half)} of held-out pairs in the right order"
    return f"Learned: {said}" if share - half > CHANCE else f"Not surely better than chance: {said}"


def _share(share: float, half: float) -> str:
    """Return a share as text, with its 95 % interval where the half width is known."""
    if not math.isfinite(half):
        return f"{share:.1%}"
    return f"{share:.1%} (95 % interval {max(0.0, share - half):.1%} to {min(1.0, share + half):.1%})"


def _by_loss(before: float, after: float) -> str:
    how = "fell" if after < before else "rose"
    return (
        f"The loss on held-out data {how} from {number(before)} to {number(after)}; whether answers improved is "
        "measured with eval.reward"
    )
