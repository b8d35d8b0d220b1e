"""Ranks of a process group over gloo, on one machine: processes of their own that a test talks to."""

import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta

import torch
import torch.distributed as dist

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([__name__])  # so that only the first process has to import torch


def _enter(rank, world, place, work, arguments):
    torch.set_num_threads(1)
    options = {"rank": rank, "world_size": world, "timeout": timedelta(seconds=60)}
    dist.init_process_group("gloo", init_method=f"file://{place}/store", **options)
    try:
        return work(rank, *arguments)
    finally:
        dist.destroy_process_group()


def on_ranks(world, work, *arguments):
    """What `work(rank, *arguments)` returns on each of so many ranks, in order."""
    with tempfile.TemporaryDirectory() as place, ProcessPoolExecutor(world, PROCESSES, max_tasks_per_child=1) as pool:
        running = [pool.submit(_enter, rank, world, place, work, arguments) for rank in range(world)]
        return [each.result() for each in running]
