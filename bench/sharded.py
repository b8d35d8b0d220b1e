"""This benchmark measures the memory of ranks that share a model's weights: loading, a step, a checkpoint, a resume.

    python -m bench.sharded [--ranks 1 2] [--shape 0.2B|small]

The model is a Llama with random weights in bfloat16 files, trained in float32 by AdamW on the CPU. One rank loads and
saves as a run of one process does. Each figure is the peak of a rank's resident memory in that stage, above what it had
before the model was loaded.
"""

import argparse
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from shiqrun.batching.encode import EncodedTrajectory
from shiqrun.batching.rows import Rows
from shiqrun.evaluation.checkpoint_files import map_content, save_checkpoint
from shiqrun.models.early_sharding import share_empty
from shiqrun.models.model_checks import check_head, enable_packing
from shiqrun.models.outline import outline_of
from shiqrun.models.policy import Policy
from shiqrun.models.sharding import in_step
from shiqrun.settings import STAMP
from shiqrun.training.sharded_strategy import fill_moments, fill_weights, save_sharded

SHAPES: dict[str, dict[str, Any]] = {
    "small": {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4, "vocab_size": 4000},
    "0.2B": {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 12, "vocab_size": 32000},
}
TOKENS = 64


def resident(kind: str) -> float:
    """Return this process's resident memory in GiB: VmRSS, or its peak VmHWM."""
    found = re.search(rf"{kind}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 2**20


@contextmanager
def stage(name: str, before: float, told: list[tuple[str, float, float]]) -> Iterator[None]:
    """Note the peak above `before`, in GiB, and the seconds of a block."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    began = time.perf_counter()
    yield
    told.append((name, resident("VmHWM") - before, time.perf_counter() - began))


def rows(vocabulary: int) -> Rows:
    """Return two trajectories of random tokens."""
    rng, index = np.random.default_rng(0), np.arange(TOKENS // 2, TOKENS, dtype=np.int32)
    ids = rng.integers(1, vocabulary, (2, TOKENS)).astype(np.int32)
    zero = np.zeros(len(index), np.float32)
    return Rows([EncodedTrajectory(x, index, zero, f"p{n}", n, 0, f"f:{n}", f"p{n}") for n, x in enumerate(ids)], pad=0)


def load(folder: Path, world: int) -> Policy:
    """Return the policy, whole on one rank; of several, each reads its rows."""
    config = AutoConfig.from_pretrained(folder)
    if world == 1:
        return Policy(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))
    found = outline_of(config, torch.float32, [folder / "model.safetensors"], trust_remote_code=False)
    policy = Policy(found.model)
    share_empty(policy, found.fill, torch.device("cpu"))
    return policy


def measure(rank: int, world: int, folder: Path, results: Any) -> None:
    """Go through the stages on one rank, and tell the peaks."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting-{world}", rank=rank, world_size=world)
    data = rows(AutoConfig.from_pretrained(folder).vocab_size)
    before = resident("VmRSS")
    told: list[tuple[str, float, float]] = []
    with stage("load", before, told):
        policy = load(folder, world)
    with stage("check head and packing", before, told), in_step(policy):
        check_head(policy, data.collate([0]))
        enable_packing(policy, data)
    policy.train()
    optimiser = torch.optim.AdamW(policy.parameters(), lr=1e-5, fused=True)
    with stage("step", before, told):
        policy(data.with_layout(packed=True, device="cpu").collate([0, 1])).logit.sum().backward()
        optimiser.step()
        optimiser.zero_grad()
    state = {"global_step": 1, "state_dict": policy.state_dict(), "optimizer_states": [optimiser.state_dict()]}
    save: Callable[[dict[str, Any], Path], None] = save_checkpoint if world == 1 else save_sharded
    with stage("save", before, told):
        save({**state, STAMP: {}}, folder / f"{world}.ckpt")
    del state, optimiser
    optimiser = torch.optim.AdamW(
        policy.parameters(), lr=1e-5, fused=True
    )  # without moments, as a run that goes on has
    with stage("resume", before, told):
        content = map_content(folder / f"{world}.ckpt")
        fill_weights(policy, content["state_dict"])
        fill_moments(optimiser, content["optimizer_states"][0])
    results.put((rank, told))
    dist.destroy_process_group()


def main() -> None:
    """Measure each number of ranks one after the other, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="0.2B")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    with tempfile.TemporaryDirectory(dir=".") as place:
        folder = Path(place).resolve()
        heads: dict[str, Any] = {"num_attention_heads": 8, "num_key_value_heads": 8}
        model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPES[options.shape], **heads))
        size = sum(p.numel() for p in model.parameters())
        print(f"{size / 1e6:.0f}M parameters, {4 * size / 2**30:.2f} GiB in float32; GiB above the start, a rank")
        model.bfloat16().save_pretrained(folder)
        del model
        for world in options.ranks:
            context = torch.multiprocessing.get_context("spawn")
            results = context.SimpleQueue()
            torch.multiprocessing.spawn(measure, (world, folder, results), nprocs=world)
            told = [list_of for _, list_of in sorted(results.get() for _ in range(world))]
            for (name, _, seconds), *_ in zip(*told, strict=True):
                peaks = ", ".join(f"{peak:.2f}" for one in told for other, peak, _ in one if other == name)
                print(f"ranks: {world}, {name}: {peaks} ({seconds:.1f} s)")


if __name__ == "__main__":
    main()
