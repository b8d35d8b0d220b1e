"""`ShardedMethod` is a `Method` whose policy is sharded over ranks before its optimiser is made."""

from shiqrun.models.sharding import is_sharded, shard
from shiqrun.training.step.method import Method


class ShardedMethod(Method):
    """A `ShardedMethod` trains weights of which each rank holds a part (`hardware=fsdp`)."""

    def configure_model(self) -> None:
        """Shard the policy over all ranks."""
        if not is_sharded(self.policy):
            assert self.device_mesh is not None
            shard(self.policy, self.device_mesh["data_parallel"])
