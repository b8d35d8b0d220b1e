"""`SharedWeights` makes the models of a run whole again whose weights its ranks have shared."""

from collections.abc import Sequence
from dataclasses import replace

from shiqrun.models.policy import Policy
from shiqrun.models.reference import AdapterOff, FrozenReference, Live, frozen_copies
from shiqrun.models.sharding import gathered, is_sharded, skeleton
from shiqrun.training.plan import Run
from shiqrun.training.step.method import Method
from shiqrun.training.step.sharded import ShardedMethod


class SharedWeights:
    """A `SharedWeights` holds the models of a run without their weights, for rank 0 to fill after the last step.

    Args:
        policy: of the run, not sharded yet.
        references: of the method and of the evaluation; they may be one.
    """

    def __init__(self, policy: Policy, references: Sequence[object]) -> None:
        live = [r for r in references if isinstance(r, FrozenReference | AdapterOff)]
        self.references: list[Live] = list(dict.fromkeys(live))
        self.copies = frozen_copies(*references)
        self._empty = [skeleton(each) for each in (policy, *self.copies)]

    def shard_with(self, method: Method) -> None:
        """Have a method shard the frozen copies with its policy, if it shards that."""
        if isinstance(method, ShardedMethod):
            method.copies = self.copies

    def gathered(self, run: Run, method: Method) -> Run:
        """Return the run with its sharded policy whole on rank 0, as method and references have it then; all ranks."""
        if not is_sharded(run.policy):
            return run
        sharded: list[Policy] = [run.policy, *self.copies]
        method.policy, *copies = [gathered(policy, empty) for policy, empty in zip(sharded, self._empty, strict=True)]
        for reference in self.references:
            if isinstance(reference, AdapterOff):
                reference.use(method.policy)
            else:
                reference.policy = copies[self.copies.index(reference.policy)]
        return replace(run, policy=method.policy)
