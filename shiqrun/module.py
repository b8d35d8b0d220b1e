"""The LightningModule: policy, reference, loss, and one optimiser step that does not depend on how it was cut."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch.nn.parallel import DistributedDataParallel

from shiqrun.additions import Additions, Weights
from shiqrun.data.module import LoggedData
from shiqrun.errors import TrainingError
from shiqrun.losses.residual import log_ratios, partition_shifts
from shiqrun.models.policy import Policy
from shiqrun.models.reference import Reference
from shiqrun.optimiser import adamw, divide_and_clip, set_rates
from shiqrun.schedule import learning_rate_factor
from shiqrun.settings import STAMP, AlgoSettings, TrainerSettings
from shiqrun.tally import Tally, Unread, Watch, added, floats
from shiqrun.types import ActionScores, LossTerms, Trajectories

Loss = Callable[..., LossTerms]
STEP_ZERO_TOLERANCE = {None: (1e-5, 1e-4), torch.bfloat16: (5e-3, 5e-2)}
"""Nats of |mean log-ratio| and mean |log-ratio| that rounding explains while policy and reference are the same model:
cached scores were computed in batches of other shapes."""
READ = "read"
"""In a step's tally: (tokens, the sum that is minimised)."""


class Method(LightningModule):
    """One method: a policy that a loss pulls away from its reference.

    Args:
        policy: scores actions; the only sub-module, hence all that a checkpoint holds.
        reference: scores of the frozen reference for a batch, or None for `sft`.
        loss: bound to its hyperparameters.
        settings: optimiser and schedule.
        max_steps: where the schedule ends.
        seed: every step's randomness is a function of (seed, step, rank), so that a resumed run repeats it.
        algo: the anchor, the Monte-Carlo term, and the value function's learning rate.
        beta: KL temperature, for these terms.
        stamp: kept in every checkpoint: fingerprints of data and model, the reward offset.
        reads_late: the device is asked whether losses and norms were finite at logged steps, checkpoints and
            evaluations only, and no other step waits for it; until it is asked, a step that was not finite and all
            later ones change nothing. None: wherever asking means waiting.
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
        reads_late: bool | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.policy, self.loss, self.settings = policy, loss, settings
        self.reference, self.max_steps, self.seed = reference, max_steps, seed
        self.stamp, self.algo, self.beta = stamp or {}, algo, beta
        self.additions = Additions(loss, algo, beta)
        self.latest: dict[str, float] = {}
        self.seconds, self.num_tokens = 0.0, 0  # of all steps, over all sessions of a resumed run
        self._since, self._tokens = 0.0, 0  # where both stood at the last logged step
        self.reads_late, self._watch = reads_late, Watch()

    def configure_optimizers(self) -> Any:
        """AdamW on what requires a gradient; no scheduler, each step sets its learning rate."""
        optimizer = adamw(self.policy, self.settings, value_lr_ratio=self.algo.value_lr_ratio or 1.0)
        if self.reads_late is None:
            self.reads_late = self.device.type != "cpu" and bool(optimizer.defaults["fused"])
        return [optimizer], []

    def on_fit_start(self) -> None:
        """Train mode for the policy (`from_pretrained` leaves it in eval mode); the reference follows the device."""
        self.policy.train()
        move = getattr(self.reference, "to", None)
        if move is not None:
            move(self.device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the stamp; nothing is saved that has not been looked at."""
        self.settle()
        checkpoint[STAMP] = {**self.stamp, "seconds": self.seconds, "num_tokens": self.num_tokens}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Goes on with the clock and the count of tokens."""
        self.seconds = self._since = checkpoint[STAMP]["seconds"]
        self.num_tokens = self._tokens = checkpoint[STAMP].get("num_tokens", 0)

    def terms(
        self,
        batch: Trajectories,
        *,
        weights: Weights | None = None,
        measure: bool = True,
        describe: bool = False,
    ) -> tuple[LossTerms, Tally]:
        """What to minimise on a batch, and its metrics as (sum, count); `loss` is the method's, without additions.

        Args:
            batch: trajectories.
            weights: of the anchor's and the Monte-Carlo term's sums beside the loss's; None leaves them out.
            measure: all metrics, else the loss alone.
            describe: also entropy and the share of actions that are the most likely token.
        """
        drawn = self.additions.drawn(weights)
        policy = self.policy(batch, sample=drawn, describe=describe)
        if drawn:
            batch = replace(batch, anchor_tokens=policy.further_tokens).laid_out(batch.layout)
        reference = None if self.reference is None else self.reference(batch)
        terms = self.loss(batch, policy, reference)
        tally: Tally = {"loss": (terms.total.detach(), terms.count)}
        if measure:
            tally |= terms.metrics | self._measured(batch, policy, reference)
        if weights is not None and reference is not None:
            terms, more = self.additions.added(terms, batch, policy, reference, weights)
            tally |= more if measure else {}
        return terms, tally

    @torch.no_grad()
    def _measured(self, batch: Trajectories, policy: ActionScores, reference: ActionScores | None) -> Tally:
        """What every method shows of a batch, beside the metrics of its loss."""
        actions, tally = batch.action_mask.sum(), Tally()
        if policy.entropy is not None and policy.hits is not None:
            tally["entropy"] = (policy.entropy.sum(), actions)
            tally["mean_token_accuracy"] = (policy.hits.sum(), actions)
        earned = _returns(batch)
        known = batch.action_mask.any(-1) & ~earned.isnan()  # `sft` takes data without rewards
        tally["reward"] = (earned.masked_fill(~known, 0).sum(), known.sum())
        if reference is not None:
            ratio = log_ratios(batch, policy, reference)
            tally["logratio_mean"] = (ratio.sum(), actions)
            tally["logratio_abs"] = (ratio.abs().sum(), actions)
            shift = (self.beta or 1.0) * partition_shifts(batch, policy, reference)
            tally["shifted_value"] = (shift.sum(), actions)
        return tally

    def training_step(self, batches: list[Trajectories], index: int) -> None:
        """One optimiser step: sum gradients over micro-batches and ranks, divide once by the units, clip, update.

        Between logged steps nothing asks the device for a number.
        """
        optimizer, step, began = self.optimizers(), self.global_step + 1, time.perf_counter()
        self._draw_anew(step)
        logged, weights = self.logs_now(step), self._weights(batches)
        tallies: list[Tally] = []
        for k, batch in enumerate(batches):
            with self._exchange(last=k == len(batches) - 1):
                terms, tally = self.terms(batch, weights=weights, measure=logged, describe=logged)
                self.manual_backward(terms.total)
            tallies.append({**tally, READ: (batch.attention_mask.sum(), terms.total.detach())})
        summed = self._summed(tallies)
        scale = self.trainer.world_size / summed["loss"][1].clamp(min=1)  # DDP has divided by the ranks
        norms = divide_and_clip(optimizer, scale, self.settings.grad_clip)  # type: ignore[arg-type]
        tokens, total = summed.pop(READ)
        self._watch.add(Unread(step, [t[READ][1] for t in tallies], total, norms, tokens))
        if logged or not self.reads_late:
            self._read()
        numbers = floats(summed) if logged else {}
        self._expect_equality(numbers)
        rate = self._update(optimizer, step)
        self.seconds += time.perf_counter() - began
        if logged:
            self._log(numbers, float(norms[0]), rate)

    def _draw_anew(self, step: int) -> None:
        """Makes what the step draws a function of seed, step and rank."""
        # Not always torch.manual_seed: without a GPU it keeps a stack trace for one that may come, which takes 0.2 ms
        begin = torch.default_generator.manual_seed if self.device.type == "cpu" else torch.manual_seed
        begin(hash((self.seed, step - 1, self.global_rank)) % 2**63)

    def _update(self, optimizer: Any, step: int) -> float:
        """The optimiser's step, which does nothing if one of the unread ones is not finite; its learning rate."""
        shape = (self.settings.lr_schedule, self.settings.warmup_steps, self.max_steps)
        rate = set_rates(optimizer, learning_rate_factor(step - 1, *shape))
        optimizer.optimizer.found_inf = self._watch.found_inf
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return rate

    def settle(self) -> None:
        """Reads what steps have left on the device; the time is theirs.

        Raises:
            TrainingError: a loss or a gradient was not finite; nothing was updated from that step on.
        """
        began = time.perf_counter()
        self._read()
        self.seconds += time.perf_counter() - began

    def _read(self) -> None:
        tokens, bad = self._watch.read()
        self.num_tokens += tokens
        if bad is not None:
            self._refuse(bad)

    def _weights(self, batches: list[Trajectories]) -> Weights | None:
        """Of the additions in this step, None without any."""
        if not self.additions:
            return None
        return self.additions.weights(self._summed([self.additions.counts(batch) for batch in batches]))

    def logs_now(self, step: int) -> bool:
        """Whether this step (counted from 1) has a row in the logs."""
        return step == 1 or step == self.max_steps or step % self.settings.log_every == 0

    def _log(self, numbers: dict[str, tuple[float, float]], norm: float, rate: float) -> None:
        metrics = {name: total / count for name, (total, count) in numbers.items() if count}
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
        """Sums and counts over micro-batches and ranks, as floats."""
        return floats(self._summed(tallies))

    def _summed(self, tallies: list[Tally]) -> Tally:
        """The same on the device, float64, in one exchange.

        A rank whose micro-batches lack a metric that another has cannot be: every batch yields the same names.
        """
        names, both = added(tallies)
        if self.trainer.world_size > 1:
            both = self.trainer.strategy.reduce(both, reduce_op="sum")
        return {name: (pair[0], pair[1]) for name, pair in zip(names, both, strict=True)}

    def _exchange(self, last: bool) -> AbstractContextManager[Any]:
        """Gradients cross ranks in the last micro-batch's backward pass only."""
        wrapped = self.trainer.model
        return wrapped.no_sync() if isinstance(wrapped, DistributedDataParallel) and not last else nullcontext()

    def _refuse(self, step: Unread) -> None:
        """Says what was not finite.

        Raises:
            TrainingError: always.
        """
        bad = [k for k, loss in enumerate(step.losses) if not loss.isfinite()]
        if bad:
            data: LoggedData = self.trainer.datamodule  # type: ignore[attr-defined]
            rows = data.sources(step.step - 1, bad[0])
            loss = float(step.losses[bad[0]])
            raise TrainingError(
                f"step {step.step}: the loss is {loss} on a micro-batch of {len(rows)} rows, among them "
                f"{', '.join(rows[:3])}; nothing was updated. Lower trainer.learning_rate or look at these rows"
            )
        if not step.total.isfinite():
            raise TrainingError(f"step {step.step}: the loss is not finite on another rank; nothing was updated")
        raise TrainingError(f"step {step.step}: the gradient norm is {step.norms.tolist()}; nothing was updated")

    def _expect_equality(self, numbers: dict[str, tuple[float, float]]) -> None:
        """At step 0 the policy is the reference; a run that starts otherwise would report another problem's KL."""
        if self.global_step or "logratio_abs" not in numbers:
            return
        count = max(numbers["logratio_abs"][1], 1.0)
        found = [abs(numbers[name][0]) / count for name in ("logratio_mean", "logratio_abs")]
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
