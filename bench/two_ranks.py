"""`measured` lets real processes do with real numbers what `bench.traced` traces, so that both can be compared.

Each process holds its part of a small model and exchanges weights and gradients by gloo. Its peak is the high-water
mark of resident memory during one micro-batch, above what was resident before the model was made.
"""

import json
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from transformers import LlamaConfig

from bench.clock import environment, forget_peak, resident
from bench.traced import Setting, batch_of, loss_of, policy_of, trainer_settings
from shiqrun.models.sharding import shard
from shiqrun.training.step.optimiser import adamw, divide_and_clip

SMALL = LlamaConfig(
    vocab_size=8192,
    hidden_size=512,
    intermediate_size=2048,
    num_hidden_layers=8,
    num_attention_heads=8,
    num_key_value_heads=4,
    max_position_embeddings=1024,
    tie_word_embeddings=True,
)
"""A model of 38 million parameters."""
SMALL_SETTING = Setting(tokens=512, row=128, checkpointing=False, autocast=False, as_gpu=False)
GIVES_BACK = dict.fromkeys(("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"), str(1 << 20))
"""glibc's settings with which freed tensors are given back at once, so that resident memory is what lives."""
WATCHED = {"all_gather_single": "all-gathered", "reduce_scatter_single": "reduce-scattered"}
"""Functions of torch.distributed that FSDP2 calls: what they are called here. Of their two tensors the larger is whole.

(An operator of gloo that passes through a `TorchDispatchMode` never ends.)"""


def measured(setting: Setting, world: int = 2) -> list[dict[str, Any]]:
    """Return for each of `world` processes its `peak` in bytes, and the bytes that it `sent`.

    Raises:
        SystemExit: a process failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        words = [json.dumps({"rank": n, "world": world, "folder": folder, **asdict(setting)}) for n in range(world)]
        env = environment(1, tuned=False) | GIVES_BACK
        command = [sys.executable, "-m", "bench.two_ranks"]
        running = [subprocess.Popen([*command, word], env=env, stdout=subprocess.PIPE, text=True) for word in words]
        said = [process.communicate(timeout=300)[0] for process in running]
    if any(process.returncode for process in running):
        raise SystemExit(f"{[process.returncode for process in running]}: {said}")
    return [json.loads(text.strip().splitlines()[-1]) for text in said]


@contextmanager
def _counted() -> Iterator[Counter[str]]:
    """Yield the bytes of whole tensors that pass each kind of collective in the block."""
    sent: Counter[str] = Counter()

    def watched(name: str) -> Any:
        call, kind = getattr(dist, name), WATCHED[name]

        def counting(*args: Any, **options: Any) -> Any:
            tensors = [x for x in (*args, *options.values()) if isinstance(x, Tensor)]
            sent[kind] += max(x.numel() * x.element_size() for x in tensors)
            return call(*args, **options)

        return counting

    with ExitStack() as stack:
        for name in WATCHED:
            stack.enter_context(patch.object(dist, name, watched(name)))
        yield sent


def _measure(rank: int, world: int, folder: str, setting: Setting) -> dict[str, Any]:
    """Return peak and sent bytes of this process."""
    store = dist.FileStore(str(Path(folder) / "store"), world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    mesh, batch = init_device_mesh("cpu", (world,)), batch_of(setting)
    before = forget_peak()
    policy = policy_of(SMALL, setting)
    shard(policy, mesh)
    optimizer = adamw(policy, trainer_settings(), value_lr_ratio=1.0)
    loss_of(policy, batch).backward()  # what libraries set up once is there afterwards
    divide_and_clip(optimizer, torch.ones(()), 1.0)
    optimizer.step()
    forget_peak()
    with _counted() as sent:
        loss_of(policy, batch).backward()
    peak = resident("VmHWM") - before
    dist.barrier()
    dist.destroy_process_group()
    return {"peak": int(peak * 2**20), "sent": dict(sent)}


def main() -> None:
    """Print the measurement of one process that the argument, a JSON object, specifies."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    spec = json.loads(sys.argv[1])
    rank, world, folder = (spec.pop(key) for key in ("rank", "world", "folder"))
    print("\n" + json.dumps(_measure(rank, world, folder, Setting(**spec))))


if __name__ == "__main__":
    main()
