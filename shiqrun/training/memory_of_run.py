"""`memory_lines` says how much memory a prepared run needs, of what, and what to change where it does not fit."""

import os
import resource
import sys
from dataclasses import replace

import torch

from shiqrun.batching.steps import Steps
from shiqrun.models.adapter import is_quantized
from shiqrun.training.memory import Shape, Use, estimate, remedies, shape_of
from shiqrun.training.plan import Run

LOOKED_AT = 20
"""Optimiser steps whose micro-batches are looked at for the largest."""
GIB = 2**30


def memory_lines(run: Run) -> list[str]:
    """Return a line with the memory that a run needs, and one with what to change where the machine has less."""
    shape, use = needs(run)
    parts = estimate(shape, use)
    peak = sum(parts.values())
    of = ", ".join(f"{name} {size / GIB:.2g}" for name, size in parts.items() if size > 0.01 * peak)
    each = f" on each of {use.ranks} ranks" if use.ranks > 1 else ""
    lines = [f"about {peak / GIB:.2g} GiB at the peak{each}: {of}"]
    share = run.plan.hardware.devices if use.device == "cpu" else 1  # processes on CPUs share the machine's memory
    there = available(use.device) / share
    if peak > there:
        changes = "; then ".join(f"{words} ({size / GIB:.2g} GiB)" for words, size in remedies(shape, use))
        lines.append(f"this does not fit the {there / GIB:.2g} GiB here; set {changes or 'another model'}")
    return lines


def needs(run: Run) -> tuple[Shape, Use]:
    """Return the sizes of a run's model, and how it is trained."""
    plan, policy, hardware = run.plan, run.policy, run.plan.hardware
    everything = list(policy.parameters())
    shape = replace(
        shape_of(policy.model),
        parameters=sum(p.numel() for p in everything),
        trained=sum(p.numel() for p in everything if p.requires_grad),
    )
    if policy.value is not None and policy.value.body is not None:  # a network of its own
        shape = replace(shape, layers=2 * shape.layers)
    tokens, actions, accumulates = _largest_micro_batch(run)
    evaluated = run.evaluator is not None and not plan.model.lora_r
    compared = plan.algo.reference == "frozen" or evaluated
    moves = plan.algo.reference_every is not None and evaluated  # the first reference stays beside the present one
    room = int(run.encoded.train.prompt_lengths.max()) + plan.eval.max_new_tokens
    return shape, Use(
        device=hardware.device().type,
        tokens=tokens,
        actions=actions,
        accumulates=accumulates,
        half=hardware.weights == "bf16",
        eight_bit=plan.trainer.optimizer == "adamw_8bit",
        quantized=is_quantized(policy.model),
        autocast=hardware.autocast() is not None,
        checkpointing=plan.model.gradient_checkpointing,
        lora=bool(plan.model.lora_r),
        copies=int(compared) + int(moves) + (getattr(plan.rollout, "engine", None) == "local"),
        sampled=plan.eval.batch_size * room if run.evaluator is not None else 0,
        ranks=hardware.processes if hardware.strategy == "fsdp" else 1,
        evaluates=bool(plan.eval.every),
    )


def _largest_micro_batch(run: Run) -> tuple[int, int, bool]:
    """Return tokens and actions of the largest micro-batch of the first steps, and whether a step has several."""
    plan, rows = run.plan, run.encoded.train
    steps = Steps(
        rows,
        batch_size=plan.trainer.batch_size,
        micro_batch_tokens=plan.trainer.micro_batch_tokens,
        seed=plan.seed,
        start=0,
        rank=0,
        world=plan.hardware.processes,
    )
    cuts = [steps.rows_of(step) for step in range(min(LOOKED_AT, run.max_steps))]
    batches = [batch for cut in cuts for batch in cut]
    largest = max(batches, key=rows.tokens_read)
    actions = max(int(rows.actions[batch].sum()) for batch in batches)
    return rows.tokens_read(largest), actions, max(map(len, cuts)) > 1


def peak_memory(device: str) -> int:
    """Return the most bytes that this process has used so far, on its GPU where it has one, else in main memory."""
    if device == "cuda":
        return int(torch.cuda.max_memory_allocated())
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else 1024 * used


def available(device: str) -> float:
    """Return the bytes of memory of the machine or of its GPU."""
    if device == "cuda":
        return float(torch.cuda.mem_get_info()[1])
    return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
