"""`ShardedStrategy` saves the rows that each rank holds to a file of its own, and reads any checkpoint into them."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from shiqrun.errors import InputError, TrainingError
from shiqrun.evaluation.checkpoint_files import map_content, not_written
from shiqrun.evaluation.sharded_files import Pieces, make_whole, new_directory, pick_out, publish, write_rank
from shiqrun.models.sharding import first_row


class ShardedStrategy(ModelParallelStrategy):
    """A `ShardedStrategy` is Lightning's for sharded weights, with checkpoints that are replaced as a whole.

    No tensor is gathered or copied for a checkpoint: each rank streams its rows to the disk, and reads them back.
    Lightning's own sharded checkpoint is written over the former one, so that a kill leaves a mixture of both.
    """

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return the module's tensors themselves, sharded as they are."""
        assert self.lightning_module is not None
        return self.lightning_module.state_dict()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return the optimiser's state with its tensors themselves, sharded as they are."""
        return (optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer).state_dict()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint from all ranks, as a whole or not at all.

        Raises:
            TrainingError: a rank could not write its file; the former checkpoint is whole.
        """
        save_sharded(checkpoint, Path(filepath))

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read this rank's rows of weights and moments from a checkpoint of any strategy; return what else it holds."""
        content = map_content(Path(checkpoint_path))
        assert self.lightning_module is not None
        fill_weights(self.lightning_module, content.pop("state_dict"))
        for optimizer, saved in zip(self.optimizers, content.pop("optimizer_states"), strict=True):
            fill_moments(optimizer, saved)
        return content


def save_sharded(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a checkpoint from all ranks to a new directory, then let its name stand for that.

    Raises:
        TrainingError: a rank could not write its file; the former checkpoint is whole.
    """
    rank = dist.get_rank()
    folder = _on_rank_0(path, lambda: new_directory(path, int(checkpoint["global_step"])))
    plain, sharded = pick_out(checkpoint, lambda x: isinstance(x, DTensor))
    rows = {name: (first_row(x), x.detach().to_local()) for name, x in sharded.items()}
    files, error = None, None
    try:
        files = write_rank(folder, rank, plain if rank == 0 else None, rows)
    except OSError as failure:
        error = failure.strerror
    told: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(told, (files, error))
    errors = [error for _, error in told if error is not None]
    if errors:
        if rank == 0:
            shutil.rmtree(folder, ignore_errors=True)
        raise TrainingError(not_written(path, errors[0]))
    _on_rank_0(path, lambda: publish(path, folder, {k: v for files, _ in told for k, v in files.items()}))


def _on_rank_0(path: Path, act: Callable[[], Any]) -> Any:
    """Let rank 0 do something; return its result, or raise its error, on all ranks.

    Raises:
        TrainingError: a file of the checkpoint `path` could not be written.
    """
    told: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            told[0] = act()
        except OSError as failure:
            told[1] = failure.strerror
    dist.broadcast_object_list(told)
    if told[1] is not None:
        raise TrainingError(not_written(path, told[1]))
    return told[0]


@torch.no_grad()
def fill_weights(module: nn.Module, saved: Mapping[str, Any]) -> None:
    """Copy saved weights into a module, of sharded ones the rows that this rank holds.

    Raises:
        InputError: they are of another model.
    """
    own = module.state_dict()
    if other := own.keys() ^ saved.keys():
        where = "the checkpoint lacks" if min(other) in own else "only the checkpoint has"
        raise InputError(f"{where} the weight {min(other)}; go on with the config that the checkpoint was saved with")
    for name, x in own.items():
        _fill(x, saved[name])


def fill_moments(optimizer: Optimizer, saved: dict[str, Any]) -> None:
    """Load an optimiser's saved state, of sharded parameters the rows that this rank holds."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for number, p in zip(numbers, parameters, strict=True):
        if number in saved["state"]:
            state[number] = {key: sharded_like(p, value) for key, value in saved["state"][number].items()}
    optimizer.load_state_dict({"state": state, "param_groups": saved["param_groups"]})


def sharded_like(p: Tensor, value: Any) -> Any:
    """Return a saved tensor of a parameter, its moment for one, in memory of its own, sharded as the parameter is."""
    if not isinstance(value, Tensor | Pieces):
        return value
    if isinstance(p, DTensor) and tuple(value.shape) == tuple(p.shape):
        own = torch.empty_like(p, dtype=value.dtype)
        _fill(own, value)
        return own
    whole: Tensor = make_whole(value)
    return whole.clone()


def _fill(x: Tensor, saved: Tensor | Pieces) -> None:
    """Copy a saved tensor into one of the same shape, or its rows into the part that this rank holds."""
    if not isinstance(x, DTensor):
        x.copy_(make_whole(saved))
        return
    first, rows = first_row(x), x.to_local()
    pieces = saved if isinstance(saved, Pieces) else Pieces(tuple(saved.shape), [(0, saved)])
    pieces.fill(rows, first)
