"""A micro-batch is scored by the policy and by the reference, as far as the loss reads their scores."""

from collections.abc import Set
from dataclasses import replace

from shiqrun.errors import TrainingError
from shiqrun.models.policy import Policy
from shiqrun.models.reference import AdapterOff, FrozenReference, Reference
from shiqrun.training.step.batch_metrics import ScoredBatch
from shiqrun.types import Trajectories


def score_batch(
    batch: Trajectories,
    policy: Policy,
    reference: Reference | None,
    needs: Set[str],
    *,
    sample: int,
    describe: bool,
) -> ScoredBatch:
    """Score a batch with both models; later updates on a batch keep the reference's scores of the first one.

    Args:
        batch: trajectories.
        policy: takes the gradient.
        reference: None for a loss without one.
        needs: what the loss reads, see `needs_of`; a KL over the vocabulary is computed if it is among it.
        sample: anchor tokens that the policy draws at every action's state.
        describe: also measure entropy and the share of actions that are the most likely token.

    Raises:
        TrainingError: the loss reads a KL over the vocabulary, and the reference cannot compute its logits.
    """
    frozen = states = None
    if "vocabulary_kl" in needs:
        if not isinstance(reference, FrozenReference | AdapterOff):
            raise TrainingError("the loss reads a KL over the vocabulary, which takes a live reference")
        frozen, states = reference.with_states(batch)
    ours = policy(batch, sample=sample, describe=describe, against=states)
    if sample:
        batch = replace(batch, anchor_tokens=ours.further_tokens).with_layout(batch.layout)
    if reference is None or (batch.proximal is not None and not sample):
        return ScoredBatch(batch, ours, batch.reference)
    return ScoredBatch(batch, ours, reference(batch) if frozen is None or sample else frozen)
