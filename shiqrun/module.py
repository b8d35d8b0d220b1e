"""The LightningModule: policy, reference, loss, and one optimiser step that does not depend on how it was cut."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from shiqrun.data.module import LoggedData, Offset
from shiqrun.errors import TrainingError
from shiqrun.losses.residual import log_ratios, partition_shifts
from shiqrun.models.policy import Policy
from shiqrun.models.reference import Kind, Reference
from shiqrun.schedule import Schedule, learning_rate_factor
from shiqrun.types import LossTerms, Trajectories

STAMP = "shiqrun"
Loss = Callable[..., LossTerms]
STEP_ZERO_TOLERANCE = {None: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.05}
"""Nats of mean |log-ratio| that rounding alone explains while policy and reference are the same model."""


@dataclass(frozen=True, kw_only=True)
class AlgoSettings:
    """What every method understands beside its own hyperparameters (`conf/algo/*.yaml`).

    Attributes:
        reference: cached (both numbers of every action computed once and kept in `cache_dir`), frozen (a second
            copy), adapter (the policy without its LoRA adapter), or none (for `sft`).
        reward_offset: none, mean, group_mean or a number: taken from every return; see MATH "level of the reward".
    """

    reference: Kind
    reward_offset: Offset


@dataclass(frozen=True, kw_only=True)
class TrainerSettings:
    """Keys of `trainer:` in `conf/train.yaml`.

    Attributes:
        max_steps: optimiser steps, None to count by epochs.
        max_epochs: passes over the training trajectories, read when max_steps is None.
        batch_size: trajectories of an optimiser step, over all ranks and micro-batches.
        micro_batch_tokens: padded tokens of one forward pass; bounds memory, changes no number.
        learning_rate: peak of the schedule.
        weight_decay: AdamW's.
        warmup_steps: optimiser steps of linear warm-up from 0.
        lr_schedule: what follows the warm-up, until max_steps.
        grad_clip: largest gradient norm, None to leave gradients alone.
        log_every: optimiser steps between logged rows; the first and the last step are always logged.
        checkpoint_every: optimiser steps between checkpoints; the last step is always saved.
    """

    max_steps: Annotated[int, Gt(0)] | None
    max_epochs: Annotated[int, Gt(0)] | None
    batch_size: Annotated[int, Gt(0)]
    micro_batch_tokens: Annotated[int, Gt(0)]
    learning_rate: Annotated[float, Gt(0)]
    weight_decay: Annotated[float, Ge(0)]
    warmup_steps: Annotated[int, Ge(0)]
    lr_schedule: Schedule
    grad_clip: Annotated[float, Gt(0)] | None
    log_every: Annotated[int, Gt(0)]
    checkpoint_every: Annotated[int, Gt(0)]


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
        stamp: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.policy, self.loss, self.settings = policy, loss, settings
        self.reference, self.max_steps, self.seed = reference, max_steps, seed
        self.stamp = stamp or {}
        self.latest: dict[str, float] = {}
        self._clock, self._tokens = time.perf_counter(), 0

    def configure_optimizers(self) -> Any:
        """AdamW on what requires a gradient, with warm-up and schedule counted in optimiser steps."""
        s = self.settings
        trained = [p for p in self.policy.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=s.learning_rate, weight_decay=s.weight_decay)

        def factor(step: int) -> float:
            return learning_rate_factor(step, s.lr_schedule, s.warmup_steps, self.max_steps)

        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, factor)]

    def on_fit_start(self) -> None:
        """Train mode for the policy (`from_pretrained` leaves it in eval mode); the reference follows the device."""
        self.policy.train()
        move = getattr(self.reference, "to", None)
        if move is not None:
            move(self.device)

    def on_train_start(self) -> None:
        """Starts the clock of tokens a second."""
        self._clock, self._tokens = time.perf_counter(), 0

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the stamp."""
        checkpoint[STAMP] = self.stamp

    def terms(self, batch: Trajectories) -> tuple[LossTerms, Tally]:
        """The loss of a batch, and all metrics of it as (sum, count)."""
        policy = self.policy(batch)
        reference = None if self.reference is None else self.reference(batch)
        terms = self.loss(batch, policy, reference)
        rows, actions = batch.action_mask.any(-1).sum(), batch.action_mask.sum()
        tally: Tally = dict(terms.metrics)
        tally["reward"] = (batch.rewards.masked_fill(~batch.action_mask, 0).sum(), rows)
        if reference is not None:
            with torch.no_grad():
                ratio = log_ratios(batch, policy, reference)
                tally["logratio_mean"] = (ratio.sum(), actions)
                tally["logratio_abs"] = (ratio.abs().sum(), actions)
                tally["shifted_value"] = (partition_shifts(batch, policy, reference).sum(), actions)
        return terms, tally

    def training_step(self, batches: list[Trajectories], index: int) -> None:
        """One optimiser step: sum gradients over micro-batches and ranks, divide once by the units, clip, update."""
        optimizer = self.optimizers()
        torch.manual_seed(hash((self.seed, self.global_step, self.global_rank)) % 2**63)
        tallies: list[Tally] = []
        for k, batch in enumerate(batches):
            with self._exchange(last=k == len(batches) - 1):
                terms, tally = self.terms(batch)
                self._refuse_nonfinite(terms.total, k)
                self.manual_backward(terms.total)
            tallies.append({"loss": (terms.total.detach(), terms.count), **tally})
        summed = self.reduced(tallies)
        self._expect_equality(summed)
        norm = self._divide_and_clip(max(summed["loss"][1], 1.0))
        optimizer.step()  # type: ignore[union-attr]
        optimizer.zero_grad(set_to_none=True)  # type: ignore[union-attr]
        rate = self.lr_schedulers().get_last_lr()[0]  # type: ignore[union-attr]
        self.lr_schedulers().step()  # type: ignore[union-attr]
        self._tokens += sum(int(b.attention_mask.sum()) for b in batches) * self.trainer.world_size
        if self.logs_now(self.global_step):
            self._log(summed, norm, float(rate))

    def logs_now(self, step: int) -> bool:
        """Whether this step (counted from 1) has a row in the logs."""
        return step == 1 or step == self.max_steps or step % self.settings.log_every == 0

    def _log(self, summed: dict[str, tuple[float, float]], norm: float, rate: float) -> None:
        metrics = {name: total / count for name, (total, count) in summed.items() if count}
        now = time.perf_counter()
        metrics |= {"grad_norm": norm, "learning_rate": rate, "epoch": self.epoch()}
        metrics |= {"tokens_per_second": self._tokens / max(now - self._clock, 1e-9)}
        self._clock, self._tokens = now, 0
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
        return self.global_step / -(-len(data.encoded.train) // data.batch_size)

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
        """Turns summed gradients into those of the mean over all units (DDP has divided by the ranks); the norm."""
        parameters = [p for p in self.policy.parameters() if p.grad is not None]
        grads = [p.grad for p in parameters if p.grad is not None]
        torch._foreach_mul_(grads, self.trainer.world_size / count)
        largest = self.settings.grad_clip or float("inf")
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, largest))
        if norm != norm or norm == float("inf"):
            raise TrainingError(f"step {self.global_step + 1}: the gradient norm is {norm}; nothing was updated")
        return norm

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
        total, count = summed["logratio_abs"]
        limit = STEP_ZERO_TOLERANCE[self.policy.autocast]
        if count and not total / count <= limit:
            raise TrainingError(
                f"policy and reference differ before the first step: mean |log-ratio| {total / count:.2g} nats "
                f"(rounding explains {limit:g}). The cached scores or the model's randomness are wrong; "
                "try algo.reference=frozen, or another cache_dir"
            )


PRECISIONS = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """Keys of `conf/hardware/*.yaml`.

    Attributes:
        accelerator: as Lightning names it: cpu, gpu, auto.
        devices: processes, one device each.
        strategy: as Lightning names it: auto, ddp.
        precision: fp32, bf16 (body in bfloat16 under autocast; weights, scores and losses in float32), or auto.
    """

    accelerator: Literal["cpu", "gpu", "auto"]
    devices: Annotated[int, Gt(0)]
    strategy: Literal["auto", "ddp"]
    precision: PRECISIONS

    def device(self) -> torch.device:
        """Where the main process computes."""
        on_gpu = self.accelerator == "gpu" or (self.accelerator == "auto" and torch.cuda.is_available())
        return torch.device("cuda" if on_gpu else "cpu")

    def autocast(self) -> torch.dtype | None:
        """bfloat16 if asked, or if `auto` and the GPU computes in it; None for float32."""
        if self.precision == "auto":
            return torch.bfloat16 if self.device().type == "cuda" and torch.cuda.is_bf16_supported() else None
        return torch.bfloat16 if self.precision == "bf16" else None
