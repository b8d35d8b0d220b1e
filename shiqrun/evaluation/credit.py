"""Credit says what the policy learned at every token of a trajectory; the token view shows it.

    advantage      beta (log pi - log pi_ref)(a_t|s_t)            what the policy thinks of this token
    shifted_value  beta (v - v_ref)(s_t)                          what the policy expects from here on
    residual       R_t - beta sum_{k>=t} D_k - beta W_t           return that neither explains (ShiQ's path residual)

All are in reward units; `losses.residual` defines D and W. The residual is ShiQ's for every method. So the return of a
trajectory, less its reward offset, is the sum of its advantages plus the shifted value and the residual at its start.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedTokenizerBase

from shiqrun.batching.encode import EncodedTrajectory
from shiqrun.batching.rows import Rows
from shiqrun.batching.token_text import pieces
from shiqrun.losses.residual import log_ratios, partition_shifts, path_residuals
from shiqrun.models.policy import Policy
from shiqrun.models.reference import Reference
from shiqrun.types import Trajectories
from shiqrun.util.atomic import atomic_writer

Numbers = list[float | None]
Side = Literal["chosen", "rejected", ""]
DIGITS = 7


@dataclass(frozen=True, kw_only=True)
class Credit:
    """A `Credit` holds a trajectory's numbers by token: lists have one entry a token, None where that is no action.

    Attributes:
        kind: "data" or "sample".
        side: "chosen" or "rejected" of a logged pair, else empty.
        source: file and line of the trajectory.
        prompt_id: of its prompt.
        earned: the return, reward units, without any offset; None where the data have no rewards.
        beta: reward units per nat.
        tokens: the text of each token.
        action: whether the policy chose the token.
        advantage: beta (log pi - log pi_ref).
        shifted_value: beta (v - v_ref) before the token.
        residual: ShiQ's path residual, of the rewards that training sees (with its offset); None without rewards.
        logp: log pi, nats.
        reference_logp: log pi_ref, nats.
        reward: what the token earned, without any offset.
    """

    kind: Literal["data", "sample"]
    side: Side = ""
    source: str
    prompt_id: str
    earned: float | None
    beta: float
    tokens: list[str]
    action: list[bool]
    advantage: Numbers
    shifted_value: Numbers
    residual: Numbers
    logp: Numbers
    reference_logp: Numbers
    reward: Numbers

    def row(self) -> dict[str, Any]:
        """Return the trajectory's row of `credit.jsonl`: the fields, with `earned` under the name `return`."""
        return {("return" if key == "earned" else key): value for key, value in asdict(self).items()}


@torch.no_grad()
def credit(
    policy: Policy,
    reference: Reference,
    rows: Rows,
    tokenizer: PreTrainedTokenizerBase,
    *,
    beta: float,
    picked: Sequence[int] | None = None,
    kind: Literal["data", "sample"] = "data",
    tokens: int = 8192,
) -> list[Credit]:
    """Return the per-token credit of trajectories, in their order; the policy keeps its weights and its mode.

    Logits and log-partitions are float32, whatever the dtype in which the bodies of the models compute.

    Args:
        policy: on the device where to compute.
        reference: on the same device (`cached` reads the scores that the rows hold).
        rows: trajectories.
        tokenizer: that made them.
        beta: KL temperature, reward units per nat.
        picked: numbers of the rows to look at, None for all.
        kind: whether they are data or samples.
        tokens: tokens of one forward pass; bounds memory, changes no number.
    """
    numbers = list(range(len(rows)) if picked is None else picked)
    device = next(policy.parameters()).device
    found: dict[int, Credit] = {}
    mode = policy.training
    policy.eval()
    try:
        for cut in rows.micro_batches([[i] for i in dict.fromkeys(numbers)], tokens):
            batch = rows.collate(cut)
            batch = replace(batch, anchor_tokens=None).with_layout(batch.layout).to(device)
            learned = _compute_numbers(batch, policy, reference, beta)
            for place, row in enumerate(cut):
                of_row = {name: x[place, : rows.actions[row]].tolist() for name, x in learned.items()}
                found[row] = _credit(rows.trajectories[row], of_row, tokenizer, kind, beta)
    finally:
        policy.train(mode)
    return [found[i] for i in numbers]


def _compute_numbers(batch: Trajectories, policy: Policy, reference: Reference, beta: float) -> dict[str, torch.Tensor]:
    """Return what is shown of every action, `[B, A]`: reward units, log-probabilities in nats."""
    ours, theirs = policy(batch), reference(batch)
    shift = beta * partition_shifts(batch, ours, theirs)
    return {
        "advantage": beta * log_ratios(batch, ours, theirs),
        "shifted_value": shift,
        "residual": path_residuals(batch, ours, theirs, shift, beta),
        "logp": ours.logp,
        "reference_logp": theirs.logp,
    }


def _credit(
    t: EncodedTrajectory, learned: dict[str, list[float]], tokenizer: PreTrainedTokenizerBase, kind: Any, beta: float
) -> Credit:
    ids: list[int] = t.input_ids.tolist()
    at: list[int] = t.action_index.tolist()
    rewards = [math.nan] * len(at) if t.rewards is None else t.rewards.tolist()
    actions = set(at)
    return Credit(
        kind=kind,
        side=_side(t) if kind == "data" else "",
        source=t.source,
        prompt_id=t.prompt_id,
        earned=None if t.rewards is None else _round_to_float32(float(t.rewards.sum())),
        beta=beta,
        tokens=list(pieces(ids, tokenizer)),
        action=[i in actions for i in range(len(ids))],
        reward=_place_at_tokens(rewards, at, len(ids)),
        **{name: _place_at_tokens(values, at, len(ids)) for name, values in learned.items()},
    )


def _side(t: EncodedTrajectory) -> Side:
    """Return which answer of a logged pair a trajectory is; empty where its completions are no pair."""
    is_pair = t.group != t.prompt_id and t.completion in (0, 1)
    return ("chosen", "rejected")[t.completion] if is_pair else ""


def _place_at_tokens(values: Sequence[float], at: Sequence[int], length: int) -> Numbers:
    """Return a list with one entry a token that holds the actions' numbers in their places."""
    out: Numbers = [None] * length
    for place, value in zip(at, values, strict=True):
        out[place] = _round_to_float32(value)
    return out


def _round_to_float32(value: float) -> float | None:
    """Round a number to float32's digits; return None if it is not finite, which JSON cannot say."""
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None


def write_credit(path: Path, rows: Iterable[Credit]) -> None:
    """Write `credit.jsonl`, one trajectory a line, whole or not at all."""
    with atomic_writer(path) as file:
        file.writelines(json.dumps(c.row(), ensure_ascii=False, allow_nan=False) + "\n" for c in rows)
