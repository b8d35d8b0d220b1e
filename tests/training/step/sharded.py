"""Two ranks of a process group over gloo, on one machine, for tests of sharded weights."""

import os
import tempfile
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def _enter(rank, world, place, work, results, arguments):
    torch.set_num_threads(1)
    options = {"rank": rank, "world_size": world, "timeout": timedelta(seconds=60)}
    dist.init_process_group("gloo", init_method=f"file://{place}/store", **options)
    try:
        results.put((rank, work(rank, *arguments)))
    finally:
        dist.destroy_process_group()


def on_ranks(world, work, *arguments):
    """What `work(rank, *arguments)` returns on each of so many ranks, in order; plain values."""
    context = mp.get_context("spawn")
    results = context.SimpleQueue()
    with tempfile.TemporaryDirectory() as place:
        os.environ.pop("MASTER_ADDR", None)
        mp.spawn(_enter, (world, place, work, results, arguments), nprocs=world)
        found = [results.get() for _ in range(world)]
    return [value for _, value in sorted(found)]
