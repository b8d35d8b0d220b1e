"""The gap between an engine's log-probabilities and the policy's own says how far samples are from the policy.

Another engine has other kernels and often another dtype: its numbers are those of another policy, close to this one.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from shiqrun.batching.steps import Batches
from shiqrun.models.attention import reads_packed
from shiqrun.models.policy import Policy
from shiqrun.rollout.mixing import as_rows
from shiqrun.rollout.settings import ONLINE
from shiqrun.rollout.trajectory import SampledTrajectory

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


@torch.no_grad()
def measure_gap(policy: Policy, sampled: Sequence[SampledTrajectory], *, pad: int, tokens: int) -> Gap:
    """Score sampled trajectories by the policy, and compare.

    Args:
        policy: with the weights that sampled; its mode is restored.
        sampled: the first of them are measured, up to `MEASURED_TOKENS`.
        pad: token id that fills rows.
        tokens: of one forward pass.
    """
    ends = np.cumsum([len(t.input_ids) for t in sampled])
    chosen = sampled[: max(1, int((ends <= MEASURED_TOKENS).sum()))]
    device, mode = next(policy.parameters()).device, policy.training
    rows = as_rows(chosen, pad, together=False, source=ONLINE)
    rows = rows.with_layout(packed=reads_packed(policy.causal_lm), device=device.type)
    policy.eval()
    found = []
    for _, batch in Batches(rows, tokens=tokens):
        batch = batch.to(device)
        assert batch.acting_logp is not None
        found.append((batch.acting_logp - policy(batch).logp)[batch.action_mask].double().cpu())
    policy.train(mode)
    gaps = torch.cat(found)
    return Gap(float(gaps.abs().mean()), float(gaps.abs().max()), float(gaps.mean()))
