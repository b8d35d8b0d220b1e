"""Ranks of a process group over gloo, on one machine: processes of their own that a test talks to."""

import multiprocessing
import tempfile
from datetime import timedelta

import torch
import torch.distributed as dist

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([__name__])  # so that only the first process has to import torch


def _enter(rank, world, place, work, answers, arguments):
    torch.set_num_threads(1)
    options = {"rank": rank, "world_size": world, "timeout": timedelta(seconds=60)}
    dist.init_process_group("gloo", init_method=f"file://{place}/store", **options)
    try:
        answers.put((rank, work(rank, *arguments)))
    finally:
        dist.destroy_process_group()


def on_ranks(world, work, *arguments):
    """What `work(rank, *arguments)` returns on each of so many ranks, in order; plain values."""
    answers = PROCESSES.SimpleQueue()
    with tempfile.TemporaryDirectory() as place:
        started = [
            PROCESSES.Process(target=_enter, args=(rank, world, place, work, answers, arguments))
            for rank in range(world)
        ]
        for process in started:
            process.start()
        for process in started:
            process.join()
        assert [process.exitcode for process in started] == [0] * world
        return [value for _, value in sorted(answers.get() for _ in range(world))]
