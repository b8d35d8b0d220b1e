"""`annotate` gives every trajectory of a run the numbers that the losses read beside its tokens.

`RunFacts` holds what a run knows of any trajectory; `annotate` is the only function that applies it. Rows of the data
set, of another file, of the replay pool and of the sampler all pass through it.
"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from shiqrun.batching.columns import AnchorTokens, Values
from shiqrun.batching.mismatched import with_mismatched
from shiqrun.batching.reward_offsets import Offset, reward_offsets
from shiqrun.batching.rows import Rows
from shiqrun.estimates.quantiles import return_quantiles
from shiqrun.estimates.value_targets import PrefixRewards, value_targets


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """A `RunFacts` holds what a run knows of any trajectory: prompt values, targets, reward offset and layout.

    Attributes:
        packed: the policy reads batches without padding.
        device: type of the device that reads them.
        anchor: how the anchor draws uniform tokens; None without such an anchor.
        reward_offset: setting `algo.reward_offset`.
        center: constant taken from every return, reward units; see `offset_center`.
        beta: KL temperature, reward units per nat; 0 for methods without one.
        prompt_values: Q0 of each prompt id, reward units; None for methods that do not read it.
        reference_rewards: what the reference's completions earned, by prompt id; None for methods without quantiles.
        mismatched: the loss reads a KL estimate from prompts with completions of other prompts.
        targets: rewards of rollouts behind prefixes of logged trajectories; None without `algo.targets`.
    """

    packed: bool
    device: str
    anchor: AnchorTokens | None
    reward_offset: Offset
    center: float
    beta: float = 0.0
    prompt_values: Mapping[str, float] | None = None
    reference_rewards: Mapping[str, np.ndarray] | None = None
    mismatched: bool = False
    targets: PrefixRewards | None = None


def annotate(rows: Rows, facts: RunFacts) -> Rows:
    """Return the rows with the layout, the anchor tokens and the columns that the losses of this run read.

    Columns are `offset` and, where the run knows them, `prompt_value` or `quantile` (every prompt must have one) and,
    for the logged training split alone, `value_target`. Annotating rows twice changes nothing.
    """
    columns: dict[str, Values] = {"offset": reward_offsets(rows, facts.reward_offset, facts.center)}
    if facts.prompt_values is not None:
        values = facts.prompt_values
        columns["prompt_value"] = np.array([values[t.prompt_id] for t in rows.trajectories], np.float32)
    if facts.reference_rewards is not None:
        columns["quantile"] = return_quantiles(rows, facts.reference_rewards)
    if facts.targets is not None and rows.source == "logged":
        columns["value_target"] = value_targets(rows, facts.targets, facts.beta)
    rows = with_mismatched(rows) if facts.mismatched else rows
    with_layout = rows.with_layout(packed=facts.packed, device=facts.device)
    return with_layout.with_anchor(_anchor_of(rows, facts.anchor)).with_columns(**columns)


def _anchor_of(rows: Rows, anchor: AnchorTokens | None) -> AnchorTokens | None:
    """Return how the anchor's tokens are drawn for these rows.

    Rows of a file keep their numbers over the run, so that a cache can hold the reference's logits of their tokens.
    Sampled rows are numbered from 0 in every step, hence their draw depends on the first trajectory's name as well.
    """
    if anchor is None or "behaviour_logp" not in rows.columns:
        return anchor
    return anchor._replace(seed=anchor.seed + zlib.crc32(rows.trajectories[0].source.encode()))
