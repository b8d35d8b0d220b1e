"""`StepClock` measures a training run in its own process: time between optimiser steps, peak memory and tokens.

shiqrun and its peers are watched from outside, through hooks that torch calls for any optimiser and any embedding. The
clock runs from the end of the warm-up steps to the end of the last step: collating, logging and all else that a trainer
does between its steps count, and nothing before or after.
"""

import ctypes
import gc
import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

MIB = 1 << 20


def resident(line: str = "VmRSS") -> float:
    """Return this process's resident memory in MiB, now or with VmHWM its maximum since `forget_peak`."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split(f"{line}:")[1].split()[0]) / 1024


def forget_peak() -> float:
    """Reset the high-water mark of resident memory to the present value, and return that value, MiB."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # gives freed memory back to the system, so that it does not count as resident
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return resident()


class StepClock:
    """A StepClock measures time, peak memory and tokens of a training run in this process.

    Args:
        warmup: steps before the clock starts.
        steps: of the run, with the warm-up.
        device: cpu or cuda.
    """

    def __init__(self, *, warmup: int, steps: int, device: str) -> None:
        self.warmup, self.total, self.device = warmup, steps, device
        self.steps, self.read, self.base = 0, 0, 0.0
        self.found: dict[str, float] = {}
        self._hook = register_optimizer_step_post_hook(self._count_step)

    def watch(self, embedding: nn.Module) -> None:
        """Start to count the tokens that pass an embedding, which are those that pass the body of the model."""
        embedding.register_forward_pre_hook(self._count_tokens)

    def begin(self) -> None:
        """Start the clock before the first step; memory that is resident now does not count as memory of training."""
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self.base = torch.cuda.memory_allocated() / MIB
        else:
            self.base = forget_peak()

    def _count_tokens(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.read += inputs[0].numel()

    def _now(self) -> tuple[float, float, int]:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter(), time.process_time(), self.read

    def _count_step(self, *_: Any) -> None:
        self.steps += 1
        if self.steps == self.warmup:
            self._began = self._now()
        elif self.steps == self.total:
            wall, cpu, read = (now - began for now, began in zip(self._now(), self._began, strict=True))
            peak = torch.cuda.max_memory_allocated() / MIB if self.device == "cuda" else resident("VmHWM")
            self.found = {"wall": wall, "cpu": cpu, "body_tokens": read, "memory_mib": peak - self.base}

    def result(self) -> dict[str, float]:
        """Return the measurements of the run.

        Returns:
            `wall` and `cpu` seconds and `body_tokens` after the warm-up; `memory_mib` over all steps.

        Raises:
            SystemExit: the run had another number of steps.
        """
        self._hook.remove()
        if not self.found:
            raise SystemExit(f"the run made {self.steps} optimiser steps, expected {self.total}")
        return self.found


def gemm_peak(dtype: torch.dtype, device: str, size: int = 2048, repeats: int = 5) -> dict[str, float]:
    """Return the flops a second of the fastest of a few square matrix products, by wall time and by CPU time."""
    a = torch.randn(size, size, device=device).to(dtype)
    best = {"wall": 0.0, "cpu": 0.0}
    for _ in range(repeats + 1):
        wall, cpu = time.perf_counter(), time.process_time()
        a @ a
        if device == "cuda":
            torch.cuda.synchronize()
        took = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        best = {k: max(best[k], 2.0 * size**3 / max(took[k], 1e-9)) for k in best}
    return best


def tuned_allocator() -> dict[str, str]:
    """Return the environment variables with which glibc keeps large tensors instead of returning them to the system.

    Without it every step pays for page faults.
    """
    return dict.fromkeys(("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"), str(16 << 30))


def environment(threads: int, *, tuned: bool) -> dict[str, str]:
    """Return the environment variables of a measuring process: threads and allocator set, network and bars off."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    quiet = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "TOKENIZERS_PARALLELISM": "false"}
    quiet |= {"HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1"}
    threading = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    return {**kept, **quiet, **threading, **(tuned_allocator() if tuned else {})}
