"""These settings say how a run samples during training (`conf/rollout/*.yaml`) and divides a batch among sources."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Len, MinLen

OfflineSource = Literal["logged", "replay", "annotated", "further"]
"""Sources of trajectories not sampled for this step: the data set, this run's earlier rollouts, the data set's rows
with value targets, or another file."""
ONLINE = "online"
BF16_GAP = 0.05
"""Nats a token by which samples of weights in bfloat16 may differ from the policy before the first step."""


@dataclass(frozen=True, kw_only=True)
class RolloutSettings:
    """Rollout settings hold what every engine of sampling understands.

    Attributes:
        engine: name of the engine.
        model_update_interval: optimiser steps between two sets of weights for sampling.
        max_staleness: the most optimiser steps that a trajectory's weights may be old when it is trained on; None for
            any number.
        temperature: least and greatest sampling temperature; each prompt's is drawn uniformly between them.
        top_p: share of probability that is sampled from.
        samples_per_prompt: completions of a prompt that are sampled together and trained on in the same step.
        max_new_tokens: tokens after which a completion is cut off.
        batch_size: completions sampled together; bounds memory.
        offline: share of a batch that was not sampled for it.
        sources: weights by which the sources divide this share.
        losses: name of the loss of a source; None for the method's loss.
        replay_size: the most trajectories that `replay` draws from, the last ones.
        path: file or directory of the source `further`.
        reward_timeout: seconds after which a reward that gives no answer is given up.
    """

    engine: ClassVar[str]
    model_update_interval: Annotated[int, Gt(0)]
    max_staleness: Annotated[int, Ge(0)] | None
    temperature: Annotated[list[Annotated[float, Ge(0)]], Len(2, 2)]
    top_p: Annotated[float, Gt(0), Le(1)]
    samples_per_prompt: Annotated[int, Gt(0)]
    max_new_tokens: Annotated[int, Gt(0)]
    batch_size: Annotated[int, Gt(0)]
    offline: Annotated[float, Ge(0), Le(1)]
    sources: dict[OfflineSource, Annotated[float, Ge(0)]] = field(default_factory=dict)
    losses: dict[Literal["online"] | OfflineSource, str | None] = field(default_factory=dict)
    replay_size: Annotated[int, Gt(0)]
    path: str | None
    reward_timeout: Annotated[float, Gt(0)]

    @property
    def tolerated_gap(self) -> float | None:
        """Return the nats a token by which samples may differ from the policy; None for what rounding explains."""
        return None

    def shares(self, batch_size: int) -> dict[str, int]:
        """Return the number of trajectories of an optimiser step by source, for the sources with a weight.

        Sampled and replayed ones come in whole groups. Whether the numbers make a step that can be trained on is for
        the rules of `training/checks_rollout.py`.

        Args:
            batch_size: trajectories of the step.
        """
        group = self.samples_per_prompt
        online = min(round((1 - self.offline) * batch_size / group), batch_size // group) * group
        return {ONLINE: online, **self._divide(batch_size - online)}

    def _divide(self, left: int) -> dict[str, int]:
        """Divide so many trajectories among the sources by their weights: first `replay`, in whole groups."""
        weights = {str(name): w for name, w in self.sources.items() if w} if self.offline else {}
        exact = {name: left * w / sum(weights.values()) for name, w in weights.items()}
        found: dict[str, int] = {}
        if "replay" in exact:
            group = self.samples_per_prompt
            found["replay"] = min(round(exact.pop("replay") / group), left // group) * group
            left -= found["replay"]
            exact = {name: left * weights[name] / sum(weights[n] for n in exact) for name in exact}
        found |= {name: int(x) for name, x in exact.items()}
        for name in sorted(exact, key=lambda n: found[n] - exact[n])[: left - sum(found[n] for n in exact)]:
            found[name] += 1
        return found


@dataclass(frozen=True, kw_only=True)
class LocalRollouts(RolloutSettings):
    """Local rollouts are settings of sampling in the training process (`conf/rollout/local.yaml`)."""

    engine: ClassVar[str] = "local"


@dataclass(frozen=True, kw_only=True)
class RayRollouts(RolloutSettings):
    """Ray rollouts are settings of sampling in processes of a Ray cluster (`conf/rollout/ray.yaml`).

    Attributes:
        actors: number of processes that sample.
        waiting: the most trajectories that wait to be trained on; with more the actors pause.
        address: of a Ray cluster; None starts one on this machine.
        actor_cpus: CPU cores that each actor reserves.
        actor_gpus: share of a GPU that each actor reserves.
        reward_gpus: share of a GPU that each actor's reward reserves, in a process of its own.
        weight_dtype: of the weights that travel to the actors; None for the policy's own.
    """

    engine: ClassVar[str] = "ray"

    actors: Annotated[int, Gt(0)]
    waiting: Annotated[int, Gt(0)]
    address: str | None
    actor_cpus: Annotated[float, Ge(0)]
    actor_gpus: Annotated[float, Ge(0), Le(1)]
    reward_gpus: Annotated[float, Ge(0), Le(1)]
    weight_dtype: Literal["fp32", "bf16"] | None = None

    @property
    def tolerated_gap(self) -> float | None:
        """Return the nats a token that rounding the weights to bfloat16 explains."""
        return BF16_GAP if self.weight_dtype == "bf16" else None


@dataclass(frozen=True, kw_only=True)
class VllmRollouts(RolloutSettings):
    """vLLM rollouts are settings of sampling by a vLLM server over HTTP (`conf/rollout/vllm.yaml`).

    Attributes:
        base_url: of the server.
        model: its name there; None for the one that the server lists.
        key_env: environment variable with the server's key; nothing is sent where it is not set.
        command: starts the server, with {model} and {port} filled in; None where it is started by others.
        start_timeout: seconds until the server must answer.
        timeout: seconds that an answer may take, and that a server that has died may take to come back.
        num_concurrent: requests that are on their way at the same time.
        weights_dir: directory through which weights travel, which this process and the server both see; None for one
            in the run directory.
        weight_dtype: of the weights that travel; None for the policy's own.
        max_gap: nats a token by which the server's log-probabilities may differ from the policy's on average.
    """

    engine: ClassVar[str] = "vllm"

    base_url: Annotated[str, MinLen(1)]
    model: str | None
    key_env: str | None
    command: str | None
    start_timeout: Annotated[float, Gt(0)]
    timeout: Annotated[float, Gt(0)]
    num_concurrent: Annotated[int, Gt(0)]
    weights_dir: str | None
    weight_dtype: Literal["fp32", "bf16"] | None
    max_gap: Annotated[float, Gt(0)]

    @property
    def tolerated_gap(self) -> float | None:
        """Return the largest allowed mean gap, nats a token."""
        return self.max_gap

    @property
    def as_it_is(self) -> bool:
        """Return whether all samples are drawn from the policy's own distribution, at temperature 1 without top-p."""
        return self.top_p == 1 and set(self.temperature) == {1.0}
