"""Ranks are the processes that train one policy together; these functions say which one this is, and exchange objects.

They are there before anything of a run is prepared (`config/ranks.py` starts or meets them). A process that is alone is
rank 0 of 1, and exchanges nothing. Every rank must call an exchanging function, in the same order.
"""

import sys
from typing import Any, TypeVar

Object = TypeVar("Object")


def rank() -> int:
    """Return this process's number among the ranks of the run, from 0."""
    group = _group()
    return int(group.get_rank()) if group else 0


def world() -> int:
    """Return the number of ranks of the run, over all nodes."""
    group = _group()
    return int(group.get_world_size()) if group else 1


def barrier() -> None:
    """Wait until all ranks are here."""
    gather_objects(None)  # over the CPU, where a long wait keeps no GPU busy


def broadcast_object(value: Object) -> Object:
    """Return rank 0's object on all ranks; it is pickled."""
    if world() == 1:
        return value
    box = [value]
    _group().broadcast_object_list(box, src=0)
    return box[0]


def gather_objects(value: Object) -> list[Object]:
    """Return the objects of all ranks, in their order, on each of them; they are pickled."""
    if world() == 1:
        return [value]
    found: list[Any] = [None] * world()
    _group().all_gather_object(found, value)
    return found


def gather_on_rank_0(value: Object) -> list[Object]:
    """Return the objects of all ranks, in their order, on rank 0, and nothing on the others; they are pickled."""
    if world() == 1:
        return [value]
    found: list[Any] | None = [None] * world() if rank() == 0 else None
    _group().gather_object(value, found, dst=0)
    return found or []


def _group() -> Any:
    """Return `torch.distributed` where this process has joined a process group, else None; torch is not imported."""
    distributed = sys.modules.get("torch.distributed")
    there = distributed is not None and distributed.is_available() and distributed.is_initialized()
    return distributed if there else None
