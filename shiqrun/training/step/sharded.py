"""`ShardedMethod` is a `Method` whose policy is sharded over ranks before its optimiser is made."""

from collections.abc import Sequence

from shiqrun.models.policy import Policy
from shiqrun.models.sharding import is_sharded, shard
from shiqrun.training.step.method import Method


class ShardedMethod(Method):
    """A `ShardedMethod` trains weights of which each rank holds a part (`hardware=fsdp`).

    Attributes:
        copies: frozen copies of the policy, which are sharded with it.
    """

    copies: Sequence[Policy] = ()

    def configure_model(self) -> None:
        """Shard the policy and its frozen copies over all ranks."""
        assert self.device_mesh is not None
        for policy in (self.policy, *self.copies):
            if not is_sharded(policy):
                shard(policy, self.device_mesh["data_parallel"])
