"""`score_actions` gives the log-probability of every action of logged rows under any causal language model."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from shiqrun.batching.encode import EncodedTrajectory


@dataclass(frozen=True)
class ScoredTrajectory:
    """A `ScoredTrajectory` holds a completion with its prompt as tokens, and the scores of its actions.

    Attributes:
        row: number of the row that it is from, from 0.
        completion: number of the completion within the row.
        tokens: `[T]` int64, token ids of prompt and completion.
        actions: `[A]` int64, positions in `tokens` of the actions, the tokens that a policy chooses.
        logit: `[A]` float32, logit of each action, which ShiQ reads as its Q-value.
        logp: `[A]` float32, log-probability of each action, nats.
        rewards: `[A]` float32, reward of each action, or None where the row has none.
    """

    row: int
    completion: int
    tokens: np.ndarray
    actions: np.ndarray
    logit: np.ndarray
    logp: np.ndarray
    rewards: np.ndarray | None


def score_actions(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    rows: Iterable[Mapping[str, Any]],
    *,
    micro_batch_tokens: int = 8192,
) -> list[ScoredTrajectory]:
    """Return every completion of logged rows with the scores of its actions under a model, in order.

    The actions are those that shiqrun trains on: the tokens of assistant messages and the token that ends each.

    Args:
        model: a causal language model of `transformers`, on any device; it is scored in eval mode.
        tokenizer: a fast one; with a chat template, else a plain one is used.
        rows: in the columns of `data=jsonl` (docs/data.md): `{"prompt": ..., "completion": ...}`.
        micro_batch_tokens: tokens of one forward pass.

    Raises:
        InputError: a row of unknown form, or one without actions.
    """
    from shiqrun.batching.encode import encode, with_template
    from shiqrun.data.jsonl import GivenRows
    from shiqrun.errors import InputError

    tokenizer, dropped, source = with_template(tokenizer), Counter[str](), GivenRows(rows)
    trajectories = list(encode(source.load("train"), tokenizer, dropped, max_length=None))
    dropped.update(source.dropped)
    if dropped:
        reasons = ", ".join(f"{number} {why}" for why, number in dropped.most_common())
        raise InputError(f"rows without actions: {reasons}; take them out")
    return [
        ScoredTrajectory(
            row=t.example,
            completion=t.completion,
            tokens=t.input_ids.astype(np.int64),
            actions=t.action_index.astype(np.int64),
            logit=logit,
            logp=logit - partition,
            rewards=t.rewards,
        )
        for t, (logit, partition) in zip(
            trajectories, _scores(model, trajectories, tokenizer.pad_token_id or 0, micro_batch_tokens), strict=True
        )
    ]


def _scores(
    model: "PreTrainedModel", trajectories: "Sequence[EncodedTrajectory]", pad: int, tokens: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return logit and log-partition of the actions of each trajectory, `[A]` float32 each, nats."""
    import torch

    from shiqrun.batching.rows import Rows
    from shiqrun.batching.steps import Batches
    from shiqrun.models.policy import Policy

    found, policy, was_training = {}, Policy(model), model.training
    model.eval()
    try:
        with torch.no_grad():
            for picked, batch in Batches(Rows(trajectories, pad=pad), tokens=tokens):
                scores = policy(batch.to(model.device))
                logit, partition = scores.logit.cpu().numpy(), scores.log_partition.cpu().numpy()
                for place, number in enumerate(picked):
                    actions = len(trajectories[number].action_index)
                    found[number] = logit[place, :actions], partition[place, :actions]
    finally:
        model.train(was_training)
    return [found[number] for number in range(len(trajectories))]
