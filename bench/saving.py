"""This benchmark measures peak memory, seconds and size of saving a checkpoint, by Lightning's writer and by ours.

    python -m bench.saving [--shape 0.5B|small] [--writer lightning|shiqrun]

The checkpoint holds float32 weights of a Qwen2-shaped model, drawn at random, and both moments of AdamW. Each writer
has a process of its own, because the peak of a process never falls.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from transformers import Qwen2Config, Qwen2ForCausalLM

from shiqrun.evaluation.checkpoint_files import read_checkpoint, save_checkpoint

SHAPES = {
    "small": {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8, "vocab_size": 32000},
    "0.5B": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "vocab_size": 151936},
}
HEADS = {"num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": True}


def peak() -> float:
    """Return the process's peak resident memory in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def state(shape: str) -> dict[str, object]:
    """Return a training state: weights, and the moments that one step of AdamW leaves."""
    heads = HEADS if shape == "0.5B" else {**HEADS, "num_attention_heads": 8}
    model = Qwen2ForCausalLM(Qwen2Config(**SHAPES[shape], **heads))
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, foreach=False)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimiser.step()
    return {
        "global_step": 1,
        "state_dict": model.state_dict(),
        "optimizer_states": [optimiser.state_dict()],
        "shiqrun": {},
    }


def measure(shape: str, writer: str) -> None:
    """Print what one writer costs."""
    content = state(shape)
    before = peak()
    with tempfile.TemporaryDirectory(dir=".") as folder:
        path, began = Path(folder) / "last.ckpt", time.perf_counter()
        if writer == "lightning":
            TorchCheckpointIO().save_checkpoint(content, path)
        else:
            save_checkpoint(content, path)
        seconds, size = time.perf_counter() - began, path.stat().st_size / 2**30
        print(f"{writer}: {size:.2f} GiB in {seconds:.1f} s; peak {before:.2f} GiB in steps, {peak():.2f} GiB saving")
        began = time.perf_counter()
        read_checkpoint(path)
        print(f"{writer}: verified at {size / (time.perf_counter() - began):.2f} GiB/s")


def main() -> None:
    """Measure the writers one after the other, each in its own process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="0.5B")
    parser.add_argument("--writer", choices=("lightning", "shiqrun"))
    options = parser.parse_args()
    if options.writer:
        measure(options.shape, options.writer)
        return
    for writer in ("lightning", "shiqrun"):
        words = ["--shape", options.shape, "--writer", writer]
        subprocess.run([sys.executable, "-m", "bench.saving", *words], check=True)


if __name__ == "__main__":
    main()
