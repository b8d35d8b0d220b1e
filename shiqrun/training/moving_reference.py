"""`ReferenceMoves` makes the policy the reference every few steps, or moves the reference part of the way to it."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from shiqrun.batching.steps import Batches
from shiqrun.evaluation.evaluator import EvaluationResult, PolicyEvaluator
from shiqrun.models.attention import reads_packed
from shiqrun.models.policy import Policy
from shiqrun.models.reference import FrozenReference, Reference
from shiqrun.training.plan import Run
from shiqrun.training.step.method import Method
from shiqrun.util.intervals import interval


class ReferenceMoves(Callback):
    """A `ReferenceMoves` is a callback that moves a run's reference towards its policy, after the step's evaluation.

    A moved reference is part of every checkpoint, so that a resumed run goes on with the same one.

    Args:
        reference: that of the method; the evaluation has the first one, which stays.
        every: optimiser steps between two moves.
        decay: share of its weights that the reference keeps in a move; at 0 the policy becomes the reference.
        tokens: tokens of one forward pass when completions are measured.

    Attributes:
        moves: the number of moves so far.
        moved: the step of the last one.
    """

    def __init__(self, reference: FrozenReference, *, every: int, decay: float, tokens: int) -> None:
        self.reference, self.every, self.decay, self.tokens = reference, every, decay, tokens
        self.moves, self.moved = 0, 0
        self._now: Callable[[], int] = lambda: 0
        self._names: frozenset[str] = frozenset()
        self._saved: Mapping[str, Tensor] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the moves so far, with the reference's weights unless they are the policy's of this very step."""
        mine = self.reference.policy.model.named_parameters()
        same = not self.moves or (not self.decay and self.moved == self._now())
        weights = None if same else {name: p.detach().cpu() for name, p in mine if name in self._names}
        return {"moves": self.moves, "moved": self.moved, "weights": weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the moves and the weights of a checkpoint; `on_fit_start` applies them."""
        self.moves, self.moved, self._saved = (state_dict[key] for key in ("moves", "moved", "weights"))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the reference the weights that it had when the checkpoint was saved."""
        assert isinstance(pl_module, Method)
        trained = {name: p for name, p in pl_module.policy.model.named_parameters() if p.requires_grad}
        self._names, self._now = frozenset(trained), lambda: trainer.global_step
        if self.moves:
            _mix(self.reference.policy, trained if self._saved is None else self._saved, 0.0)
        self._saved = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Move the reference where its checkpoint was saved in a step before it moved."""
        self._move_if_due(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Move the reference if it is due; a move after the last step would change nothing."""
        self._move_if_due(trainer, pl_module)

    def _move_if_due(self, trainer: Trainer, module: LightningModule) -> None:
        assert isinstance(module, Method)
        step = trainer.global_step
        if step % self.every or step in (0, self.moved) or step >= (trainer.max_steps or 0):
            return
        _mix(self.reference.policy, dict(module.policy.model.named_parameters()), self.decay)
        self.moves, self.moved = self.moves + 1, step

    def kl_to_present(self, answers: PolicyEvaluator, found: EvaluationResult, policy: Policy) -> dict[str, float]:
        """Return the policy's KL to the present reference on its own completions, with the half width of its interval.

        Where sampling is not at temperature 1, it is a mean log-ratio and is called so.
        """
        name = next((name for name in ("kl", "logratio_sum") if name in found.metrics), None)
        if name is None:
            return {}
        by_prompt = log_ratios_by_prompt(answers, found, policy, self.reference, self.tokens)
        mean, half = interval([sum(values) / len(values) for values in by_prompt])
        return {f"{name}_to_present": mean, f"{name}_to_present_ci95": half}

    def summary(self) -> dict[str, Any]:
        """Return how often the reference has moved, for `summary.json`."""
        return {"reference/moves": self.moves}


def moves_of(run: Run, reference: Reference | None) -> ReferenceMoves | None:
    """Return what moves a run's reference, None for a run whose reference stays."""
    algo = run.plan.algo
    if algo.reference_every is None or not isinstance(reference, FrozenReference):
        return None
    tokens = run.plan.trainer.micro_batch_tokens
    return ReferenceMoves(reference, every=algo.reference_every, decay=algo.reference_decay, tokens=tokens)


@torch.no_grad()
def _mix(policy: Policy, weights: Mapping[str, Tensor], decay: float) -> None:
    """Replace the named parameters of a frozen policy by decay times themselves plus 1 - decay times the others."""
    for name, p in policy.model.named_parameters():
        if name in weights:
            other = weights[name].detach().to(p.device)
            p.copy_(other if not decay else p.lerp(other, 1 - decay))


@torch.no_grad()
def log_ratios_by_prompt(
    answers: PolicyEvaluator, found: EvaluationResult, policy: Policy, reference: Reference, tokens: int
) -> list[list[float]]:
    """Return sum_t log pi / pi_ref, nats, of each sampled completion or episode, those of a prompt together."""
    device, mode = next(policy.parameters()).device, policy.training
    rows = answers.trajectories(found, len(found.samples))
    rows = rows.with_layout(packed=reads_packed(policy.causal_lm), device=device.type)
    policy.eval()
    groups: dict[str, list[float]] = {}
    for numbers, batch in Batches(rows, tokens=tokens):
        batch = batch.to(device)
        ratios = (policy(batch).logp - reference(batch).logp).masked_fill(~batch.action_mask, 0).double().sum(-1)
        for row, ratio in zip(numbers, ratios.tolist(), strict=True):
            groups.setdefault(rows.trajectories[row].prompt_id, []).append(ratio)
    policy.train(mode)
    return list(groups.values())
