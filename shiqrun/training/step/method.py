"""`Method` is the LightningModule of every method: it takes optimiser steps on a loss of policy and reference.

A step's gradient does not depend on how the step is cut into micro-batches or ranks: losses are sums, their gradients
are added up, and the step divides once, by the units of the whole step.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

from lightning.pytorch import LightningModule
from torch.nn.parallel import DistributedDataParallel

from shiqrun.batching.data_module import LoggedData
from shiqrun.errors import TrainingError
from shiqrun.losses.requirements import needs_of
from shiqrun.models.policy import Policy
from shiqrun.models.reference import Reference
from shiqrun.settings import STAMP, AlgoSettings, TrainerSettings
from shiqrun.training.step.batch_metrics import ScoredBatch, batch_metrics, by_source, check_step_zero
from shiqrun.training.step.extra_terms import ExtraTerms, TermWeights
from shiqrun.training.step.loss_by_source import Loss, LossBySource, StepLoss
from shiqrun.training.step.mismatched import with_kl_estimate
from shiqrun.training.step.optimiser import adamw, add_gradients, divide_and_clip, heeds_flag, set_learning_rates
from shiqrun.training.step.schedule import learning_rate_factor
from shiqrun.training.step.scored_batch import score_batch
from shiqrun.training.step.seeding import seed_step
from shiqrun.training.step.sums import FiniteCheck, Numbers, PendingStep, Sums, sum_parts, to_numbers, tokens_read
from shiqrun.types import LossTerms, Trajectories

READ = "read"
"""The name, among a micro-batch's sums, of (tokens that the model reads, the sum that is minimised)."""


class Method(LightningModule):
    """A `Method` trains a policy away from its frozen reference by a loss.

    Args:
        policy: scores actions; it is the only sub-module, hence all that a checkpoint holds.
        reference: returns the frozen reference's scores of a batch; None for `sft`.
        loss: bound to its hyperparameters.
        settings: optimiser and schedule.
        max_steps: where the schedule ends.
        seed: every step's randomness is a function of (seed, step, rank), so that a resumed run repeats it.
        algo: the anchor, the Monte-Carlo term, the value function's learning rate, and updates on each batch.
        beta: KL temperature of the extra terms and of metrics, reward units per nat.
        stamp: kept in every checkpoint: fingerprints of data and model, the reward offset.
        by_source: source -> loss, for sources that `loss` does not train.
        sources: the sources of a run that mixes several, and parts of a mixture of data: the logs tell them apart.
        max_gap: see `check_step_zero`.
        reads_late: defers the check that losses and gradient norms are finite to logged steps, checkpoints and
            evaluations, so that no other step waits; until then, a step that was not finite and all later ones change
            nothing. None: defer wherever reading means waiting.
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
        by_source: Mapping[str, Loss] | None = None,
        sources: Sequence[str] = (),
        max_gap: float | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.policy, self.loss, self.settings, self.needs = policy, loss, settings, needs_of(loss)
        self.reference, self.max_steps, self.seed = reference, max_steps, seed
        self.stamp, self.algo, self.beta = stamp or {}, algo, beta
        self.losses, self.sources = LossBySource(loss, by_source or {}), tuple(sources)
        self.extra_terms = ExtraTerms(loss, algo, beta)
        self.latest: dict[str, float] = {}
        self.seconds, self.num_tokens = 0.0, 0  # of all steps, over all sessions of a resumed run
        self._since, self._tokens = 0.0, 0  # where both stood at the last logged step
        self.reads_late, self._finite, self.max_gap = reads_late, FiniteCheck(), max_gap

    def configure_optimizers(self) -> Any:
        """Return AdamW over the parameters with a gradient; no scheduler, because each step sets its learning rate."""
        optimizer = adamw(self.policy, self.settings, value_lr_ratio=self.algo.value_lr_ratio or 1.0, seed=self.seed)
        if self.reads_late is None:
            self.reads_late = self.device.type != "cpu" and heeds_flag(optimizer)
        return [optimizer], []

    def on_fit_start(self) -> None:
        """Set the policy to train mode (`from_pretrained` leaves eval mode), and move the reference to the device."""
        self.policy.train()
        if (move := getattr(self.reference, "to", None)) is not None:
            move(self.device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the stamp, the training time and the token count to a checkpoint; no step that is not finite is saved."""
        self.check_pending()
        checkpoint[STAMP] = {**self.stamp, "seconds": self.seconds, "num_tokens": self.num_tokens}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the training time and the token count from a checkpoint."""
        self.seconds = self._since = checkpoint[STAMP]["seconds"]
        self.num_tokens = self._tokens = checkpoint[STAMP].get("num_tokens", 0)

    def terms(
        self,
        batch: Trajectories,
        *,
        weights: TermWeights | None = None,
        measure: bool = True,
        describe: bool = False,
    ) -> tuple[LossTerms, Sums]:
        """Score a batch; return the loss that is minimised on it, and its metrics, of which `loss` has no extra terms.

        Args:
            batch: trajectories.
            weights: weights of the extra terms; None leaves them out.
            measure: return all metrics, else the loss alone.
            describe: also measure entropy and the share of actions that are the most likely token.
        """
        return self._terms(self._score(batch, weights, describe), weights, measure, self.loss)

    def validation_metrics(self, batch: Trajectories) -> Sums:
        """Return all metrics of a validation batch; those of the loss only where the batch has what the loss reads.

        PPO reads samples of the policy, and KTO several prompts.
        """
        wanted = {"behaviour": batch.behaviour_logp, "kl_estimate": batch.kl_estimate}
        if any(wanted[name] is None for name in wanted.keys() & self.needs):
            return batch_metrics(self._score(batch), self.beta)
        return self.terms(batch)[1]

    def with_kl_estimate(self, batches: Iterable[Trajectories]) -> Iterable[Trajectories]:
        """Return the batches with the KL estimate of all of them and of all ranks, where the loss reads one."""
        return with_kl_estimate(batches, self.needs, self.policy, self.reference, self._sum_over_ranks)

    def _score(self, batch: Trajectories, weights: TermWeights | None = None, describe: bool = False) -> ScoredBatch:
        """Score a batch with both models; later updates on a batch keep the reference's scores of the first one."""
        sample = self.extra_terms.tokens_to_sample(weights)
        return score_batch(batch, self.policy, self.reference, self.needs, sample=sample, describe=describe)

    def _terms(
        self, scored: ScoredBatch, weights: TermWeights | None, measure: bool, loss: Loss
    ) -> tuple[LossTerms, Sums]:
        """Return `terms` of a scored batch. Loss-independent metrics are computed in the first update only."""
        (batch, policy, reference), terms = scored, loss(*scored)
        metrics: Sums = {"loss": (terms.total.detach(), terms.count)}
        if measure:
            metrics |= terms.metrics
            metrics |= batch_metrics(scored, self.beta, self.sources) if batch.proximal is None else {}
            metrics |= by_source(metrics, batch, self.sources)
        if weights is not None and reference is not None:
            terms, more = self.extra_terms.add_to(terms, batch, policy, reference, weights)
            metrics |= more if measure else {}
        return terms, metrics

    def training_step(self, batches: list[Trajectories], index: int) -> None:
        """Take one optimiser step on a list of micro-batches.

        Gradients are summed over micro-batches and ranks, divided once by the loss's units of the whole step, clipped
        and applied. With `algo.epochs` above 1 the step updates as often on the same batches: the policy's scores in
        the first update are the proximal ones of the others, and the loss's metrics are logged for the last. Between
        logged steps no number is read from the device.
        """
        optimizer, step, began = self.optimizers(), self.global_step + 1, time.perf_counter()
        seed_step(self.seed, step, self.global_rank, self.device)
        batches = list(self.with_kl_estimate(batches))
        logged, loss = self.logs_now(step), self._step_loss(batches)
        weights = self._term_weights(batches, loss)
        numbers: Numbers = {}
        for update in range(1, self.algo.epochs + 1):
            last = update == self.algo.epochs
            measure = logged and (update == 1 or last)
            batches, parts = self._sum_gradients(batches, loss, weights, measure)
            sums = self._sum_over_ranks(parts)
            scale = self.trainer.world_size / sums["loss"][1].clamp(min=1)  # DDP has divided by the ranks
            norms = divide_and_clip(optimizer, scale, self.settings.grad_clip)  # type: ignore[arg-type]
            tokens, minimised = sums.pop(READ)
            losses = [part[READ][1] for part in parts]
            self._finite.add(PendingStep(step, update, losses, minimised, norms, tokens * last))
            if logged or not self.reads_late:
                self._read_pending()
            numbers |= to_numbers(sums) if logged else {}
            if not self.global_step:
                check_step_zero(numbers, self.policy.autocast, self.max_gap)
            rate = self._update(optimizer, (step, update), counted=last)
        self.seconds += time.perf_counter() - began
        if logged:
            self._log(numbers, float(norms[0]), rate)

    def _step_loss(self, batches: list[Trajectories]) -> StepLoss:
        """Return the loss of this step; with several losses, each is weighted by counts over the whole step."""
        if not self.losses.by_source:
            return StepLoss(self.losses)
        return self.losses.step_loss(self._sum_over_ranks([self.losses.counts(batch) for batch in batches]))

    def _term_weights(self, batches: list[Trajectories], loss: StepLoss) -> TermWeights | None:
        """Return the weights of the extra terms in this step, None where there are no such terms."""
        if not self.extra_terms:
            return None
        counts = [self.extra_terms.counts(batch, loss.unit_count(batch)) for batch in batches]
        return self.extra_terms.weights(self._sum_over_ranks(counts))

    def _sum_gradients(
        self, batches: list[Trajectories], loss: Loss, weights: TermWeights | None, measure: bool
    ) -> tuple[list[Trajectories], list[Sums]]:
        """Add every micro-batch's gradient to the parameters; return batches with proximal scores, and their sums."""
        scored_batches, parts = [], []
        for k, batch in enumerate(batches):
            with self._gradient_exchange(last=k == len(batches) - 1):
                first = batch.proximal is None
                scored = self._score(batch, weights, describe=measure and first)
                terms, metrics = self._terms(scored, weights, measure, loss)
                add_gradients(self, terms.total)
            parts.append({**metrics, READ: (tokens_read(batch), terms.total.detach())})
            if first and self.algo.epochs > 1:
                kept = replace(batch, proximal=scored.policy.detach(), reference=scored.reference)
                batch = kept.with_layout(batch.layout)
            scored_batches.append(batch)
        return scored_batches, parts

    def _gradient_exchange(self, last: bool) -> AbstractContextManager[Any]:
        """Return a context in which DDP exchanges gradients between ranks for the last micro-batch only."""
        wrapped = self.trainer.model
        return wrapped.no_sync() if isinstance(wrapped, DistributedDataParallel) and not last else nullcontext()

    def _update(self, optimizer: Any, moment: tuple[int, int], counted: bool) -> float:
        """Apply the gradients and return the learning rate; nothing is applied while a pending step is not finite.

        Lightning counts the updates that go through its own wrapper, and with them `global_step`.
        """
        schedule = (self.settings.lr_schedule, self.settings.warmup_steps, self.max_steps)
        rate = set_learning_rates(optimizer, learning_rate_factor(moment[0] - 1, *schedule))
        optimizer.optimizer.found_inf, optimizer.optimizer.moment = self._finite.found_inf, moment
        (optimizer if counted else optimizer.optimizer).step()
        optimizer.zero_grad(set_to_none=True)
        return rate

    def check_pending(self) -> None:
        """Read the deferred numbers of all steps so far, which counts as training time.

        Raises:
            TrainingError: a loss or a gradient was not finite; nothing was updated from that step on.
        """
        began = time.perf_counter()
        self._read_pending()
        self.seconds += time.perf_counter() - began

    def _read_pending(self) -> None:
        tokens, bad = self._finite.read()
        self.num_tokens += tokens
        if bad is not None:
            raise TrainingError(bad.error(lambda *at: self.trainer.datamodule.sources(*at)))  # type: ignore[attr-defined]

    def logs_now(self, step: int) -> bool:
        """Return whether this step, counted from 1, has a row in the logs."""
        return step == 1 or step == self.max_steps or step % self.settings.log_every == 0

    def _log(self, numbers: Numbers, norm: float, rate: float) -> None:
        metrics = {name: total / count for name, (total, count) in numbers.items() if count}
        speed = (self.num_tokens - self._tokens) / max(self.seconds - self._since, 1e-9)
        metrics |= {"grad_norm": norm, "learning_rate": rate, "epoch": self.epoch()}
        metrics |= {"num_tokens": float(self.num_tokens), "tokens_per_second": speed}
        self._since, self._tokens = self.seconds, self.num_tokens
        self.record({f"train/{name}": value for name, value in metrics.items()})

    def record(self, metrics: dict[str, float]) -> None:
        """Log metrics at the present step on rank 0, and keep the latest value of each."""
        self.latest |= metrics
        if metrics and self.trainer.is_global_zero:
            for logger in self.trainer.loggers:
                logger.log_metrics(metrics, step=self.global_step)

    def epoch(self) -> float:
        """Return the number of passes over the training trajectories so far."""
        data: LoggedData = self.trainer.datamodule  # type: ignore[attr-defined]
        return data.passes(self.global_step)

    def reduce_metrics(self, parts: list[Sums]) -> Numbers:
        """Return sums and counts over micro-batches and ranks, as floats."""
        return to_numbers(self._sum_over_ranks(parts))

    def _sum_over_ranks(self, parts: list[Sums]) -> Sums:
        """Return sums and counts over micro-batches and ranks, on the device, float64, in one exchange.

        All ranks have the same names: where losses have different metrics, each rank has a batch of every source.
        """
        names, both = sum_parts(parts)
        if self.trainer.world_size > 1:
            both = self.trainer.strategy.reduce(both, reduce_op="sum")
        return {name: (pair[0], pair[1]) for name, pair in zip(names, both, strict=True)}
