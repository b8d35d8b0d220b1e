"""The callback `Rollouts` publishes the policy's weights to the engine that samples, and logs what was sampled.

Ranks that share an engine hand it whole weights from rank 0; ranks that share the weights keep the rows that they hold.
"""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.distributed.tensor import DTensor

from shiqrun.models.policy import Policy
from shiqrun.rollout.engine import Engine
from shiqrun.rollout.mixing import OnlineData
from shiqrun.rollout.several_ranks import SharedEngine, TogetherEngine
from shiqrun.training.sharded_strategy import sharded_like
from shiqrun.training.step.method import Method
from shiqrun.training.step.rounding import local
from shiqrun.training.step.sharded import ShardedMethod
from shiqrun.util import ranks


class Rollouts(Callback):
    """A `Rollouts` is a callback that publishes the policy's weights to the engine and logs sampling metrics.

    Args:
        engine: samples trajectories.
        data: hands them out to optimiser steps.
        every: optimiser steps between two sets of weights.
    """

    def __init__(self, engine: Engine, data: OnlineData, every: int) -> None:
        self.engine, self.data, self.every = engine, data, every
        self._published: tuple[int, Mapping[str, Tensor] | None] = (-1, None)
        self._step = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the weights that the engine samples with, unless they are those of the checkpoint itself."""
        version, weights = self._published
        return {"version": version, "weights": None if version == self._step else weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the weights that the engine sampled with."""
        self._published = (state_dict["version"], state_dict["weights"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Publish the first weights, or after a resume those that the engine sampled with."""
        assert isinstance(pl_module, Method)
        self._step = trainer.global_step
        version, saved = self._published
        policy = pl_module.policy
        self._publish(max(version, 0), self._restored(saved, policy) if saved else self._trained(policy))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Report the finished step to the data, log sampling metrics, and publish weights every `every` steps."""
        assert isinstance(pl_module, Method)
        self._step = step = trainer.global_step
        self.data.finish_step(step)
        if pl_module.logs_now(step):
            found = self.data.sampling_metrics() | self.engine.metrics()
            pl_module.record({f"rollout/{name}": value for name, value in found.items()})
        if step % self.every == 0 and step < (trainer.max_steps or 0):
            self._publish(step, self._trained(pl_module.policy))

    def _trained(self, policy: Policy) -> Mapping[str, Tensor]:
        """Return the weights to publish."""
        return trained_weights(policy)

    def _restored(self, saved: Mapping[str, Any], policy: Policy) -> Mapping[str, Tensor]:
        """Return the weights to publish of those that a checkpoint has kept."""
        return saved

    def _publish(self, version: int, weights: Mapping[str, Tensor]) -> None:
        self._published = (version, weights)
        self.engine.publish(version, weights)

    def summary(self) -> dict[str, Any]:
        """Return the counts and staleness of all sampling for `summary.json`."""
        told = self.engine.stats() | self.data.total_staleness()
        return {f"rollout/{name}": value for name, value in told.items()}


class SentRollouts(Rollouts):
    """A `SentRollouts` publishes to an engine that rank 0 has; whole weights are gathered there, and nowhere else."""

    def _trained(self, policy: Policy) -> Mapping[str, Tensor]:
        return whole_on_rank_0(policy)

    def _publish(self, version: int, weights: Mapping[str, Tensor]) -> None:
        super()._publish(version, weights if ranks.rank() == 0 else {})


class ShardedRollouts(Rollouts):
    """A `ShardedRollouts` publishes to a copy of the policy that is sharded as the policy is, each rank its own rows.

    A checkpoint has the rows of the copy, from which another number of ranks can go on.
    """

    engine: TogetherEngine

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Have the method shard the copy with its policy."""
        assert isinstance(pl_module, ShardedMethod)
        pl_module.copies = [*pl_module.copies, self.engine.worker.policy]

    def _trained(self, policy: Policy) -> Mapping[str, Tensor]:
        return {name: local(p.detach()) for name, p in _trained_parameters(policy)}

    def _restored(self, saved: Mapping[str, Any], policy: Policy) -> Mapping[str, Tensor]:
        named = dict(_trained_parameters(policy))
        return {name: local(sharded_like(named[name], value)) for name, value in saved.items()}

    def _publish(self, version: int, weights: Mapping[str, Tensor]) -> None:
        self.engine.publish(version, weights)
        acting = dict(self.engine.worker.policy.model.named_parameters())
        self._published = (version, {name: acting[name].detach() for name in weights})


def rollouts_of(engine: Engine, data: OnlineData, every: int) -> Rollouts:
    """Return the callback that publishes weights to an engine as it takes them; see `Rollouts`."""
    if isinstance(engine, TogetherEngine):
        return (ShardedRollouts if data.even else Rollouts)(engine, data, every)
    return (SentRollouts if isinstance(engine, SharedEngine) else Rollouts)(engine, data, every)


def _trained_parameters(policy: Policy) -> list[tuple[str, Tensor]]:
    return [(name, p) for name, p in policy.model.named_parameters() if p.requires_grad]


def trained_weights(policy: Policy) -> dict[str, Tensor]:
    """Return the parameters that training changes, by name, copied to the CPU."""
    named = policy.model.named_parameters()
    return {name: p.detach().to("cpu", copy=True) for name, p in named if p.requires_grad}


def whole_on_rank_0(policy: Policy) -> dict[str, Tensor]:
    """Return the parameters that training changes, whole, on the CPU of rank 0; all ranks gather them one by one."""
    found: dict[str, Tensor] = {}
    for name, p in _trained_parameters(policy):
        tensor = p.detach()
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if ranks.rank() == 0:
            found[name] = whole.to("cpu", copy=True)
    return found
