"""The LightningModule: policy, reference, loss, and one optimiser step that does not depend on how it was cut."""

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch.nn.parallel import DistributedDataParallel

from shiqrun.batching.logged_data import LoggedData
from shiqrun.errors import TrainingError
from shiqrun.losses.requirements import needs_of
from shiqrun.models.policy import Policy
from shiqrun.models.reference import Reference
from shiqrun.settings import STAMP, AlgoSettings, TrainerSettings
from shiqrun.training.step.batch_metrics import Scored, expect_equality, measured
from shiqrun.training.step.extra_terms import Additions, Weights
from shiqrun.training.step.loss_by_source import Loss, Mixture
from shiqrun.training.step.optimiser import adamw, divide_and_clip, set_rates
from shiqrun.training.step.schedule import learning_rate_factor
from shiqrun.training.step.sums import Tally, Unread, Watch, added, floats
from shiqrun.types import LossTerms, Trajectories

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
        algo: the anchor, the Monte-Carlo term, the value function's learning rate, and updates on each batch.
        beta: KL temperature, for these terms.
        stamp: kept in every checkpoint: fingerprints of data and model, the reward offset.
        by_source: losses of sources that are not trained by `loss`.
        sources: of a run that mixes several, whose rewards the logs tell apart.
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
        by_source: Mapping[str, Loss] | None = None,
        sources: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.policy, self.loss, self.settings = policy, loss, settings
        self.reference, self.max_steps, self.seed = reference, max_steps, seed
        self.stamp, self.algo, self.beta = stamp or {}, algo, beta
        self.additions = Additions(loss, algo, beta)
        self.mixture, self.sources = Mixture(loss, by_source or {}), tuple(sources)
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
        return self._terms(self._scored(batch, weights, describe), weights, measure, self.loss)

    def shown(self, batch: Trajectories) -> Tally:
        """All metrics of a batch, without the loss where it is of samples and the batch is not: data for validation."""
        if "behaviour" in needs_of(self.loss) and batch.behaviour_logp is None:
            return measured(self._scored(batch), self.beta)
        return self.terms(batch)[1]

    def _scored(self, batch: Trajectories, weights: Weights | None = None, describe: bool = False) -> Scored:
        """A batch, with the anchor's tokens, and both models' scores; the reference's stay from update to update."""
        drawn = self.additions.drawn(weights)
        policy = self.policy(batch, sample=drawn, describe=describe)
        if drawn:
            batch = replace(batch, anchor_tokens=policy.further_tokens).laid_out(batch.layout)
        if self.reference is None or (batch.proximal is not None and not drawn):
            return Scored(batch, policy, batch.reference)
        return Scored(batch, policy, self.reference(batch))

    def _terms(self, scored: Scored, weights: Weights | None, measure: bool, loss: Loss) -> tuple[LossTerms, Tally]:
        """`terms` of scores; what is of no loss is measured as a step finds the policy, in its first update."""
        batch, policy, reference = scored
        terms = loss(batch, policy, reference)
        tally: Tally = {"loss": (terms.total.detach(), terms.count)}
        if measure:
            tally |= terms.metrics | (measured(scored, self.beta, self.sources) if batch.proximal is None else {})
        if weights is not None and reference is not None:
            terms, more = self.additions.added(terms, batch, policy, reference, weights)
            tally |= more if measure else {}
        return terms, tally

    def training_step(self, batches: list[Trajectories], index: int) -> None:
        """One optimiser step: sum gradients over micro-batches and ranks, divide once by the units, clip, update.

        With `algo.epochs` above 1 all this several times: the scores of the first update are the proximal ones of the
        others. What the loss measures is logged of the last update. Between logged steps nothing asks the device for
        a number.
        """
        optimizer, step, began = self.optimizers(), self.global_step + 1, time.perf_counter()
        self._draw_anew(step)
        logged, loss = self.logs_now(step), self._loss_of(batches)
        weights = self._weights(batches, loss)
        numbers: dict[str, tuple[float, float]] = {}
        for update in range(1, self.algo.epochs + 1):
            last = update == self.algo.epochs
            batches, tallies = self._backward(batches, loss, weights, measure=logged and (update == 1 or last))
            summed = self._summed(tallies)
            scale = self.trainer.world_size / summed["loss"][1].clamp(min=1)  # DDP has divided by the ranks
            norms = divide_and_clip(optimizer, scale, self.settings.grad_clip)  # type: ignore[arg-type]
            tokens, total = summed.pop(READ)
            self._watch.add(Unread(step, update, [t[READ][1] for t in tallies], total, norms, tokens * last))
            if logged or not self.reads_late:
                self._read()
            numbers |= floats(summed) if logged else {}
            if not self.global_step:
                expect_equality(numbers, self.policy.autocast)
            rate = self._update(optimizer, step, counted=last)
        self.seconds += time.perf_counter() - began
        if logged:
            self._log(numbers, float(norms[0]), rate)

    def _backward(
        self, batches: list[Trajectories], loss: Loss, weights: Weights | None, measure: bool
    ) -> tuple[list[Trajectories], list[Tally]]:
        """The step's gradient, in the parameters; the batches as the next update reads them; a tally of each."""
        met, tallies = [], []
        for k, batch in enumerate(batches):
            with self._exchange(last=k == len(batches) - 1):
                first = batch.proximal is None
                scored = self._scored(batch, weights, describe=measure and first)
                terms, tally = self._terms(scored, weights, measure, loss)
                self.manual_backward(terms.total)
            tallies.append({**tally, READ: (batch.attention_mask.sum(), terms.total.detach())})
            if first and self.algo.epochs > 1:
                kept = {"proximal": scored.policy.fixed(), "reference": scored.reference}
                batch = replace(batch, **kept).laid_out(batch.layout)  # type: ignore[arg-type]
            met.append(batch)
        return met, tallies

    def _draw_anew(self, step: int) -> None:
        """Makes what the step draws a function of seed, step and rank."""
        # Not always torch.manual_seed: without a GPU it keeps a stack trace for one that may come, which takes 0.2 ms
        begin = torch.default_generator.manual_seed if self.device.type == "cpu" else torch.manual_seed
        begin(hash((self.seed, step - 1, self.global_rank)) % 2**63)

    def _update(self, optimizer: Any, step: int, counted: bool) -> float:
        """The optimiser's step, which does nothing if one of the unread ones is not finite; its learning rate.

        Lightning counts what goes through its own wrapper, and with it `global_step`.
        """
        shape = (self.settings.lr_schedule, self.settings.warmup_steps, self.max_steps)
        rate = set_rates(optimizer, learning_rate_factor(step - 1, *shape))
        optimizer.optimizer.found_inf = self._watch.found_inf
        (optimizer if counted else optimizer.optimizer).step()
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
            raise TrainingError(bad.complaint(lambda *at: self.trainer.datamodule.sources(*at)))  # type: ignore[attr-defined]

    def _loss_of(self, batches: list[Trajectories]) -> Loss:
        """What trains each batch of the step, by its source."""
        if not self.mixture.by_source:
            return self.loss
        return self.mixture.weighed(self._summed([self.mixture.counts(batch) for batch in batches]))

    def _weights(self, batches: list[Trajectories], loss: Loss) -> Weights | None:
        """Of the additions in this step, None without any."""
        if not self.additions:
            return None
        return self.additions.weights(self._summed([self.additions.counts(batch, loss) for batch in batches]))

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
        return data.passes(self.global_step)

    def reduced(self, tallies: list[Tally]) -> dict[str, tuple[float, float]]:
        """Sums and counts over micro-batches and ranks, as floats."""
        return floats(self._summed(tallies))

    def _summed(self, tallies: list[Tally]) -> Tally:
        """The same on the device, float64, in one exchange.

        A rank whose micro-batches lack a metric that another has cannot be: one rank alone mixes losses.
        """
        names, both = added(tallies)
        if self.trainer.world_size > 1:
            both = self.trainer.strategy.reduce(both, reduce_op="sum")
        return {name: (pair[0], pair[1]) for name, pair in zip(names, both, strict=True)}

    def _exchange(self, last: bool) -> AbstractContextManager[Any]:
        """Gradients cross ranks in the last micro-batch's backward pass only."""
        wrapped = self.trainer.model
        return wrapped.no_sync() if isinstance(wrapped, DistributedDataParallel) and not last else nullcontext()
