"""The gap between an engine's log-probabilities and the policy's own says how far samples are from the policy.

Another engine has other kernels and often another dtype: its numbers are those of another policy, close to this one.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from shiqrun.batching.encode import EncodedTrajectory
from shiqrun.batching.rows import Rows
from shiqrun.batching.steps import Batches
from shiqrun.models.attention import reads_packed
from shiqrun.models.policy import Policy

MEASURED_TOKENS = 16_384
"""Tokens of prompts and completions that a gap is measured on, at least one trajectory."""


class Gap(NamedTuple):
    """A gap compares an engine's log-probabilities of sampled tokens with the policy's, nats a token, at temperature 1.

    Attributes:
        mean: of the absolute differences.
        largest: of the absolute differences.
        kl: mean of engine minus policy, which at temperature 1 estimates the KL of the engine from the policy.
    """

    mean: float
    largest: float
    kl: float


class EngineScores(NamedTuple):
    """`EngineScores` are an engine's log-probabilities of the tokens that it sampled for a prompt.

    Attributes:
        input_ids: `[T]`, tokens of the prompt and of the completion.
        start: number of prompt tokens.
        logp: `[T - start]` float32, nats, at temperature 1 without top-p.
    """

    input_ids: np.ndarray
    start: int
    logp: np.ndarray


@torch.no_grad()
def measure_gap(
    policy: Policy, found: Sequence[EngineScores], *, pad: int, tokens: int, most: int = MEASURED_TOKENS
) -> Gap:
    """Score sampled tokens by the policy, and compare.

    Args:
        policy: with the weights that sampled; its mode is restored.
        found: the first of them are measured, at least one.
        pad: token id that fills rows.
        tokens: of one forward pass.
        most: tokens that are measured.
    """
    ends = np.cumsum([len(one.input_ids) for one in found])
    chosen = found[: max(1, int((ends <= most).sum()))]
    device, mode = next(policy.parameters()).device, policy.training
    rows = _as_rows(chosen, pad).with_layout(packed=reads_packed(policy.causal_lm), device=device.type)
    policy.eval()
    gaps = []
    for _, batch in Batches(rows, tokens=tokens):
        batch = batch.to(device)
        assert batch.acting_logp is not None
        gaps.append((batch.acting_logp - policy(batch).logp)[batch.action_mask].double().cpu())
    policy.train(mode)
    each = torch.cat(gaps)
    return Gap(float(each.abs().mean()), float(each.abs().max()), float(each.mean()))


def _as_rows(found: Sequence[EngineScores], pad: int) -> Rows:
    made = []
    for n, one in enumerate(found):
        index = np.arange(one.start, len(one.input_ids), dtype=np.int32)
        made.append(EncodedTrajectory(one.input_ids.astype(np.int32), index, None, str(n), n, 0, "", str(n)))
    return Rows(made, pad).with_columns(acting_logp=[one.logp for one in found])
