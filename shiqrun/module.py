"""The LightningModule: policy, reference, loss, and one optimiser step that does not depend on how it was cut."""

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from shiqrun.data.module import LoggedData
from shiqrun.errors import TrainingError
from shiqrun.losses.anchor import anchor
from shiqrun.losses.residual import log_ratios, partition_shifts
from shiqrun.models.policy import Policy
from shiqrun.models.reference import Reference
from shiqrun.schedule import learning_rate_factor
from shiqrun.settings import STAMP, AlgoSettings, TrainerSettings
from shiqrun.types import ActionScores, LossTerms, Trajectories

Loss = Callable[..., LossTerms]
STEP_ZERO_TOLERANCE = {None: (1e-5, 1e-4), torch.bfloat16: (5e-3, 5e-2)}
"""Nats of |mean log-ratio| and mean |log-ratio| that rounding explains while policy and reference are the same model:
cached scores were computed in batches of other shapes."""


Tally = dict[str, tuple[Tensor, Tensor]]


class Method(LightningModule):
    """One method: a policy that a loss pulls away from its reference.

    Args:
        policy: scores actions; the only sub-module, hence all that a checkpoint holds.
        reference: scores of the frozen reference for a batch, or None for `sft`.
        loss: bound to its hyperparameters.
        settings: optimiser and schedule.
        max_steps: where the schedule ends.
        seed: every step's randomness is a function of (seed, step, rank), so that a resumed run repeats it.
        algo: the anchor, and the value function's learning rate.
        beta: KL temperature, for the anchor.
        stamp: kept in every checkpoint: fingerprints of data and model, the reward offset.
    """

    def __init__(
        self,
        policy: Policy,
        reference: Reference | None,
        loss: Loss,
        settings: TrainerSettings,
        *,
        max_steps: int,
        seed: int,
        algo: AlgoSettings,
        beta: float = 0.0,
        stamp: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.policy, self.loss, self.settings = policy, loss, settings
        self.reference, self.max_steps, self.seed = reference, max_steps, seed
        self.stamp, self.algo, self.beta = stamp or {}, algo, beta
        self.latest: dict[str, float] = {}
        self.seconds, self.num_tokens = 0.0, 0  # of all steps, over all sessions of a resumed run
        self._since, self._tokens = 0.0, 0  # where both stood at the last logged step

    def configure_optimizers(self) -> Any:
        """AdamW on what requires a gradient, with warm-up and schedule counted in optimiser steps."""
        s = self.settings
        value = [] if self.policy.value is None else [p for p in self.policy.value.parameters() if p.requires_grad]
        own = {id(p) for p in value}
        groups: list[dict[str, Any]] = [
            {"params": [p for p in self.policy.parameters() if p.requires_grad and id(p) not in own]}
        ]
        if value:
            groups.append({"params": value, "lr": s.learning_rate * (self.algo.value_lr_ratio or 1.0)})
        optimizer = torch.optim.AdamW(groups, lr=s.learning_rate, weight_decay=s.weight_decay)

        def factor(step: int) -> float:
            return learning_rate_factor(step, s.lr_schedule, s.warmup_steps, self.max_steps)

        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, factor)]

    def on_fit_start(self) -> None:
        """Train mode for the policy (`from_pretrained` leaves it in eval mode); the reference follows the device."""
        self.policy.train()
        move = getattr(self.reference, "to", None)
        if move is not None:
            move(self.device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the stamp."""
        checkpoint[STAMP] = {**self.stamp, "seconds": self.seconds, "num_tokens": self.num_tokens}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Goes on with the clock and the count of tokens."""
        self.seconds = self._since = checkpoint[STAMP]["seconds"]
        self.num_tokens = self._tokens = checkpoint[STAMP].get("num_tokens", 0)

    def terms(
        self, batch: Trajectories, *, units_per_action: float = 0.0, describe: bool = False
    ) -> tuple[LossTerms, Tally]:
        """What to minimise on a batch, and its metrics as (sum, count); `loss` is the method's, without the anchor.

        Args:
            batch: trajectories.
            units_per_action: weight of the anchor's sum beside the loss's, so that dividing both by the loss's units
                divides the anchor's by actions; 0 leaves it out.
            describe: also entropy and the share of actions that are the most likely token.
        """
        drawn = self.algo.anchor_tokens if units_per_action and self.algo.anchor_from == "policy" else 0
        policy = self.policy(batch, sample=drawn, describe=describe)
        if drawn:
            batch = replace(batch, anchor_tokens=policy.further_tokens)
        reference = None if self.reference is None else self.reference(batch)
        terms = self.loss(batch, policy, reference)
        bare = (terms.total.detach(), terms.count)
        actions = batch.action_mask.sum()
        tally: Tally = {**terms.metrics, "loss": bare}
        if units_per_action and reference is not None:
            held = anchor(batch, policy, reference, kappa=self.algo.anchor, beta=self.beta)
            terms = replace(terms, total=terms.total + units_per_action * held.total)
            tally |= held.metrics
        if policy.entropy is not None and policy.hits is not None:
            tally["entropy"] = (policy.entropy.sum(), actions)
            tally["mean_token_accuracy"] = (policy.hits.sum(), actions)
        earned = _returns(batch)
        known = batch.action_mask.any(-1) & ~earned.isnan()  # `sft` takes data without rewards
        tally["reward"] = (earned.masked_fill(~known, 0).sum(), known.sum())
        if reference is not None:
            with torch.no_grad():
                ratio = log_ratios(batch, policy, reference)
                tally["logratio_mean"] = (ratio.sum(), actions)
                tally["logratio_abs"] = (ratio.abs().sum(), actions)
                shift = (self.beta or 1.0) * partition_shifts(batch, policy, reference)
                tally["shifted_value"] = (shift.sum(), actions)
        return terms, tally

    def training_step(self, batches: list[Trajectories], index: int) -> None:
        """One optimiser step: sum gradients over micro-batches and ranks, divide once by the units, clip, update."""
        optimizer, began = self.optimizers(), time.perf_counter()
        torch.manual_seed(hash((self.seed, self.global_step, self.global_rank)) % 2**63)
        tallies: list[Tally] = []
        weight, describe = self._units_per_action(batches), self.logs_now(self.global_step + 1)
        for k, batch in enumerate(batches):
            with self._exchange(last=k == len(batches) - 1):
                terms, tally = self.terms(batch, units_per_action=weight, describe=describe)
                self._refuse_nonfinite(terms.total, k)
                self.manual_backward(terms.total)
            read = batch.attention_mask.sum()
            tallies.append({**tally, "num_tokens": (read, torch.zeros_like(read))})
        summed = self.reduced(tallies)
        self.num_tokens += int(summed["num_tokens"][0])
        self._expect_equality(summed)
        norm = self._divide_and_clip(max(summed["loss"][1], 1.0))
        optimizer.step()  # type: ignore[union-attr]
        optimizer.zero_grad(set_to_none=True)  # type: ignore[union-attr]
        rate = self.lr_schedulers().get_last_lr()[0]  # type: ignore[union-attr]
        self.lr_schedulers().step()  # type: ignore[union-attr]
        self.seconds += time.perf_counter() - began
        if self.logs_now(self.global_step):
            self._log(summed, norm, float(rate))

    def _units_per_action(self, batches: list[Trajectories]) -> float:
        """Units of the loss per action in the whole step, known before any score is: losses count without looking."""
        if not self.algo.anchor:
            return 0.0
        counts: list[Tally] = []
        for batch in batches:
            zero = torch.zeros_like(batch.rewards)
            blank = ActionScores(zero, zero, value=zero)
            counts.append({"units": (self.loss(batch, blank, blank).count, batch.action_mask.sum())})
        units, actions = self.reduced(counts)["units"]
        return units / max(actions, 1.0)

    def logs_now(self, step: int) -> bool:
        """Whether this step (counted from 1) has a row in the logs."""
        return step == 1 or step == self.max_steps or step % self.settings.log_every == 0

    def _log(self, summed: dict[str, tuple[float, float]], norm: float, rate: float) -> None:
        metrics = {name: total / count for name, (total, count) in summed.items() if count}
        metrics |= {"grad_norm": norm, "learning_rate": rate, "epoch": self.epoch()}
        speed = (self.num_tokens - self._tokens) / max(self.seconds - self._since, 1e-9)
        metrics |= {"num_tokens": float(self.num_tokens), "tokens_per_second": speed}
        self._since, self._tokens = self.seconds, self.num_tokens
        self.record({f"train/{name}": value for name, value in metrics.items()})

    def record(self, metrics: dict[str, float]) -> None:
        """Hands numbers to every logger at the present step, on rank 0, and keeps the latest of each."""
        self.latest |= metrics
        if metrics and self.trainer.is_global_zero:
            for logger in self.trainer.loggers:
                logger.log_metrics(metrics, step=self.global_step)

    def epoch(self) -> float:
        """Passes over the training trajectories so far."""
        data: LoggedData = self.trainer.datamodule  # type: ignore[attr-defined]
        return self.global_step / data.encoded.train.steps_per_epoch(data.batch_size)

    def reduced(self, tallies: list[Tally]) -> dict[str, tuple[float, float]]:
        """Sums and counts over micro-batches and ranks, as floats, in one exchange.

        A rank whose micro-batches lack a metric that another has cannot be: every batch yields the same names.
        """
        names = sorted(tallies[0])
        flat = torch.stack([torch.stack([t[n][k].double() for n in names]) for t in tallies for k in (0, 1)])
        both = flat.view(len(tallies), 2, len(names)).sum(0)
        if self.trainer.world_size > 1:
            both = self.trainer.strategy.reduce(both, reduce_op="sum")
        return {n: (float(s), float(c)) for n, s, c in zip(names, *both.tolist(), strict=True)}

    def _exchange(self, last: bool) -> AbstractContextManager[Any]:
        """Gradients cross ranks in the last micro-batch's backward pass only."""
        wrapped = self.trainer.model
        return wrapped.no_sync() if isinstance(wrapped, DistributedDataParallel) and not last else nullcontext()

    def _divide_and_clip(self, count: float) -> float:
        """Turns summed gradients into those of the mean over all units (DDP has divided by the ranks).

        The policy and a value function are clipped apart, so that a value that starts far off does not shrink the
        policy's step; returns the policy's norm.
        """
        largest, norms = self.settings.grad_clip or float("inf"), []
        for group in self.optimizers().param_groups:  # type: ignore[union-attr]
            parameters = [p for p in group["params"] if p.grad is not None]
            torch._foreach_mul_([p.grad for p in parameters], self.trainer.world_size / count)
            norms.append(float(torch.nn.utils.clip_grad_norm_(parameters, largest)))
        if not all(map(math.isfinite, norms)):
            raise TrainingError(f"step {self.global_step + 1}: the gradient norm is {norms}; nothing was updated")
        return norms[0]

    def _refuse_nonfinite(self, total: Tensor, micro_batch: int) -> None:
        if not torch.isfinite(total):
            data: LoggedData = self.trainer.datamodule  # type: ignore[attr-defined]
            rows = data.sources(self.global_step, micro_batch)
            raise TrainingError(
                f"step {self.global_step + 1}: the loss is {float(total)} on a micro-batch of {len(rows)} rows, among "
                f"them {', '.join(rows[:3])}; nothing was updated. Lower trainer.learning_rate or look at these rows"
            )

    def _expect_equality(self, summed: dict[str, tuple[float, float]]) -> None:
        """At step 0 the policy is the reference; a run that starts otherwise would report another problem's KL."""
        if self.global_step or "logratio_abs" not in summed:
            return
        count = max(summed["logratio_abs"][1], 1.0)
        found = [abs(summed[name][0]) / count for name in ("logratio_mean", "logratio_abs")]
        if not all(x <= limit for x, limit in zip(found, STEP_ZERO_TOLERANCE[self.policy.autocast], strict=True)):
            raise TrainingError(
                f"policy and reference differ before the first step: mean log-ratio {found[0]:.2g}, mean |log-ratio| "
                f"{found[1]:.2g} nats, more than rounding explains. The cached scores or the model's randomness are "
                "wrong; try algo.reference=frozen, or another cache_dir"
            )


def _returns(batch: Trajectories) -> torch.Tensor:
    """`[B]`, each trajectory's return as the data has it, without the reward offset; 0 where it has no action."""
    total = batch.rewards.masked_fill(~batch.action_mask, 0).sum(-1)
    return total if batch.offset is None else total + batch.offset.masked_fill(~batch.action_mask.any(-1), 0)
