"""Each section of `bench.gpu_check` checks one thing that only a GPU can show, and returns its figures.

A section takes the device and whether it is to be small (for a rehearsal on a CPU), and raises `Failed` where a
figure is not what it must be, or `Skipped` where it cannot be had.
"""

import copy
import importlib.util
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, LlamaConfig

from bench.big import prepare_big
from bench.memory import measure
from bench.step import Side, ask
from bench.traced import Setting, loss_of, policy_of, trainer_settings
from bench.work import SHAPES, Shape, make_pairs, prepare
from shiqrun.batching.encode import EncodedTrajectory
from shiqrun.batching.rows import Rows
from shiqrun.models.attention import use_packed_attention
from shiqrun.models.model_checks import AGREEMENT, AGREEMENT_HALF, AGREEMENT_QUANTIZED
from shiqrun.models.policy import ModelSettings, Policy
from shiqrun.models.policy import prepare as prepare_model
from shiqrun.models.precision import cast_weights
from shiqrun.models.pretrained import Pretrained
from shiqrun.models.scoring import score_actions
from shiqrun.models.sharding import shard
from shiqrun.training.step.optimiser import adamw, divide_and_clip, heeds_flag

Figures = dict[str, Any]
SMALL = LlamaConfig(
    vocab_size=512,
    hidden_size=64,
    intermediate_size=160,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=1024,
    initializer_range=0.1,
)
MIDDLE = LlamaConfig(
    vocab_size=32_000,
    hidden_size=1024,
    intermediate_size=2816,
    num_hidden_layers=8,
    num_attention_heads=16,
    num_key_value_heads=4,
    max_position_embeddings=1024,
)
ESTIMATE = 0.15
"""Largest difference of the estimate of memory from the peak, relative."""


class Failed(Exception):
    """A figure is not what it must be."""


class Skipped(Exception):
    """The section cannot run here; the message says what it needs."""


def expect(name: str, found: float, most: float) -> float:
    """Return a figure that may be at most `most`.

    Raises:
        Failed: it is larger, or no number.
    """
    if not found <= most:
        raise Failed(f"{name} is {found:.3g}, may be {most:.3g}")
    return found


def needs_cuda(device: str) -> None:
    """Skip a section on a CPU."""
    if device != "cuda":
        raise Skipped("needs CUDA")


def rows_of(vocabulary: int, *, small: bool) -> Rows:
    """Return groups of four completions of one prompt, of different lengths."""
    draw = np.random.default_rng(0)
    made: list[EncodedTrajectory] = []
    for group in range(2 if small else 8):
        prompt = draw.integers(3, vocabulary, 30 + 20 * group)
        for _ in range(4):
            answer = draw.integers(3, vocabulary, int(draw.integers(8, 60 if small else 160)))
            ids = np.concatenate([prompt, answer]).astype(np.int32)
            at = np.arange(len(prompt), len(ids), dtype=np.int32)
            rewards = draw.normal(size=len(at)).astype(np.float32)
            made.append(EncodedTrajectory(ids, at, rewards, f"p{group}", group, len(made), "made", f"p{group}"))
    return Rows(made, 0)


def scoring(device: str, small: bool) -> Figures:
    """Compare logits, log-partitions and their gradients with float64, from the same inputs."""
    n, width, vocabulary = (64, 32, 1000) if small else (512, 896, 151_936)
    found: Figures = {}
    for name, dtype, factors, most in (
        ("fp32", torch.float32, None, 1e-4),
        ("bf16", torch.bfloat16, None, 1e-2),
        ("fp32 under autocast", torch.float32, torch.bfloat16, 1e-1),
    ):
        torch.manual_seed(0)
        hidden = torch.randn(n, width, device=device).to(dtype).requires_grad_()
        weight = (4 * torch.randn(vocabulary, width, device=device) / width**0.5).to(dtype).requires_grad_()
        targets = torch.randint(vocabulary, (n,), device=device)
        exact = [x.detach().double().requires_grad_() for x in (hidden, weight)]
        logits = exact[0] @ exact[1].t()
        oracle = torch.stack([logits.gather(-1, targets[:, None]).squeeze(-1), logits.logsumexp(-1)])
        ours = torch.stack(score_actions(hidden, weight, None, targets, dtype=factors))
        upstream = torch.randn(2, n, device=device)
        (ours * upstream).sum().backward()
        (oracle * upstream).sum().backward()
        del logits
        found[f"{name}: scores, nats"] = expect(name, float((ours.double() - oracle).abs().max()), most)
        for part, x, y in (("hidden", hidden, exact[0]), ("head", weight, exact[1])):
            assert x.grad is not None
            assert y.grad is not None
            gap = float((x.grad.double() - y.grad).abs().max() / y.grad.abs().max())
            found[f"{name}: gradient of {part}, relative"] = expect(f"{name}, gradient of {part}", gap, most)
    return found


def packing(device: str, small: bool) -> Figures:
    """Compare padded and packed scores of a model, in float32 and bfloat16, with padded ones in float64."""
    config = SMALL if small else MIDDLE
    rows, found = rows_of(config.vocab_size, small=small), {}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).to(device).eval()
    use_packed_attention(model)
    picked = list(range(len(rows)))
    batches = {
        p: rows.with_layout(packed=p, device=device).collate(picked).to(torch.device(device)) for p in (False, True)
    }

    def scores(of: Any, *, packed: bool) -> Tensor:
        with torch.no_grad():
            made = Policy(of)(batches[packed])
        mask = batches[packed].action_mask
        return torch.stack([made.logit[mask], made.log_partition[mask]]).double()

    oracle = scores(copy.deepcopy(model).double(), packed=False)
    for name, dtype, most in (("fp32", torch.float32, AGREEMENT), ("bf16", torch.bfloat16, AGREEMENT_HALF)):
        cast = cast_weights(copy.deepcopy(model), dtype)
        both = scores(cast, packed=False), scores(cast, packed=True)
        gaps = [float((x - oracle).abs().max()) for x in both]
        found[f"{name}: padded, nats from float64"] = expect(f"{name} padded", gaps[0], most)
        found[f"{name}: packed, nats from float64"] = expect(f"{name} packed", gaps[1], most)
        found[f"{name}: packed from padded, nats"] = float((both[0] - both[1]).abs().max())
    return found


def one_rank(device: str, small: bool) -> Figures:
    """Compare gradients and an update of one rank under FSDP2 with those without it."""
    config, setting = (SMALL if small else MIDDLE), Setting(checkpointing=True, autocast=False, as_gpu=device == "cuda")
    batch = rows_of(config.vocab_size, small=small).with_layout(packed=True, device=device)
    given = batch.collate(range(len(batch))).to(torch.device(device))
    torch.manual_seed(0)
    plain = policy_of(config, setting).to(device)
    sharded = copy.deepcopy(plain)
    with tempfile.TemporaryDirectory() as folder:
        store = dist.FileStore(str(Path(folder) / "store"), 1)
        dist.init_process_group("nccl" if device == "cuda" else "gloo", store=store, rank=0, world_size=1)
        shard(sharded, init_device_mesh(device, (1,)))
        gaps = {"gradient": 0.0, "weight": 0.0}
        for policy in (plain, sharded):
            loss_of(policy, given).backward()
        for p, q in zip(plain.parameters(), sharded.parameters(), strict=True):
            gaps["gradient"] = max(gaps["gradient"], _gap(p.grad, q.grad))
        for policy in (plain, sharded):
            optimizer = adamw(policy, trainer_settings(), value_lr_ratio=1.0)
            divide_and_clip(optimizer, torch.tensor(1e-3, device=device), 1.0)
            optimizer.step()
        for p, q in zip(plain.parameters(), sharded.parameters(), strict=True):
            gaps["weight"] = max(gaps["weight"], _gap(p, q))
        dist.destroy_process_group()
    return {f"{name}, relative": expect(name, gap, 1e-3) for name, gap in gaps.items()}


def _gap(plain: Any, sharded: Any) -> float:
    whole = sharded.full_tensor() if isinstance(sharded, DTensor) else sharded
    return float((plain - whole).abs().max() / plain.abs().max().clamp(min=1e-12))


def non_finite(device: str, small: bool) -> Figures:
    """Check that a step whose flag says it is not finite changes nothing, and that the next one does."""
    found: Figures = {}
    for half in (False, True):
        setting = Setting(half=half, checkpointing=False, autocast=False, as_gpu=device == "cuda")
        policy = policy_of(SMALL if small else MIDDLE, setting).to(device)
        optimizer: Any = adamw(policy, trainer_settings(), value_lr_ratio=1.0)
        name, moved = "bf16" if half else "fp32", []
        for step, flag in enumerate((1.0, 0.0), 1):
            before = [p.detach().clone() for p in policy.parameters()]
            for p in policy.parameters():
                p.grad = torch.full_like(p, float("nan") if flag else 1.0)
            optimizer.found_inf, optimizer.moment = torch.tensor(flag, device=device), (step, 1)
            optimizer.step()
            moved.append(sum(int((p != old).sum()) for p, old in zip(policy.parameters(), before, strict=True)))
        found[f"{name}: weights moved by a step that is not finite"] = expect(name, moved[0], 0)
        found[f"{name}: weights moved by the next step"] = moved[1]
        if not (heeds_flag(optimizer) and moved[1]):
            raise Failed(f"{name}: fused {heeds_flag(optimizer)}, {moved[1]} weights moved")
    return found


def nf4(device: str, small: bool) -> Figures:
    """Check packed against padded scores, and a finite gradient, with 4-bit weights."""
    needs_cuda(device)
    for library, extra in (("bitsandbytes", "4bit"), ("peft", "peft")):
        if importlib.util.find_spec(library) is None:
            raise Skipped(f"needs the extra `{extra}`")
    config, lora = (SMALL if small else MIDDLE), 8
    settings = ModelSettings(
        gradient_checkpointing=False, attn_implementation=None, lora_r=lora, lora_alpha=16, lora_target_modules=None
    )
    rows = rows_of(config.vocab_size, small=small)
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        start = Pretrained(path=folder, trust_remote_code=False, quantize="nf4", lora_r=lora).build([0], 0)  # type: ignore[arg-type]
    policy = Policy(prepare_model(start, settings), autocast=torch.bfloat16)
    use_packed_attention(policy.causal_lm)
    layouts = [rows.with_layout(packed=p, device=device) for p in (False, True)]
    batches = [made.collate(range(len(rows))).to(torch.device(device)) for made in layouts]
    with torch.no_grad():
        padded, packed = (policy(batch).logp[batch.action_mask] for batch in batches)
    gap = expect("packed from padded", float((padded - packed).abs().max()), AGREEMENT_QUANTIZED)
    loss_of(policy, batches[1]).backward()
    gradients = [p.grad for p in policy.parameters() if p.requires_grad and p.grad is not None]
    if not gradients or not all(bool(g.isfinite().all()) for g in gradients):
        raise Failed("an adapter has no finite gradient")
    held = sum(p.numel() * p.element_size() for p in policy.parameters() if not p.requires_grad)
    return {"packed from padded, nats": gap, "frozen bytes": held}


def attention(device: str, small: bool) -> Figures:
    """Time packed attention by "sdpa" against torch's kernel for sequences of different lengths, and compare both."""
    needs_cuda(device)
    from torch.nn.attention.varlen import varlen_attn

    from shiqrun.models.attention import packed_attention

    heads, width, lengths = 16, 64, [700, 650, 600, 550, 500, 450, 400, 350][: 2 if small else 8]
    rows = [
        EncodedTrajectory(
            np.full(n, i + 3, np.int32), np.array([n - 1], np.int32), None, f"p{i}", i, 0, "made", f"p{i}"
        )
        for i, n in enumerate(lengths)
    ]
    layout = Rows(rows, 0, packed=True, device=device).collate(range(len(rows))).to(torch.device(device)).layout
    assert layout is not None
    total, longest = sum(lengths), max(lengths)
    q, k, v = (torch.randn(1, heads, total, width, device=device, dtype=torch.bfloat16) for _ in range(3))
    edges = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32, device=device)
    module = torch.nn.Module()
    module.config = SMALL  # type: ignore[assignment]
    flat_q, flat_k, flat_v = (x[0].transpose(0, 1).contiguous() for x in (q, k, v))

    def ours() -> Tensor:
        return packed_attention(module, q, k, v, None, packing=layout.attention, sliding_window=None)[0][0]

    def theirs() -> Tensor:
        out = varlen_attn(flat_q, flat_k, flat_v, edges, edges, longest, longest, window_size=(-1, 0))
        assert isinstance(out, Tensor)
        return out

    gap = expect("difference", float((ours() - theirs()).abs().max()), 0.05)
    return {"ms, packed": 1e3 * _seconds(ours), "ms, varlen": 1e3 * _seconds(theirs), "largest difference": gap}


def _seconds(call: Callable[[], Any], repeats: int = 20) -> float:
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(repeats):
        call()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / repeats


def step(device: str, small: bool) -> Figures:
    """Time steps of DPO beside TRL's trainer, as it comes and at its best, as `bench.step` does."""
    shape = replace(SHAPES["gpu"], pairs=32)
    if small:
        shape = Shape(hidden=32, layers=1, heads=2, intermediate=64, vocabulary=600, pairs=16)
    sides = [Side("ours", "bf16"), Side("trl", "bf16", presort=True), Side("trl", "bf16", default=True)]
    found: Figures = {}
    if importlib.util.find_spec("trl") is None:
        sides, found = sides[:1], {"TRL": "not measured: needs the extra `bench`"}
    with tempfile.TemporaryDirectory() as work:
        prepare(Path(work), shape, make_pairs(12 * shape.pairs), pairs=shape.pairs + 8)
        steps = 1 + shape.pairs // 8
        for side in sides:
            row = ask(side.spec(Path(work), steps, device), threads=1)
            found[f"{side.label}: s a step"] = row["wall"] / (steps - 1)
            found[f"{side.label}: MiB"] = row["memory_mib"]
    return found


def memory(device: str, small: bool) -> Figures:
    """Compare the estimate of memory with the peak of short runs."""
    found: Figures = {}
    runs = ("tiny",) if small else ("0.5B", "0.5B, checkpointing", "0.5B, lora_r=16")
    with tempfile.TemporaryDirectory() as folder:
        prepare_big(Path(folder), "tiny" if small else "0.5B", pairs=10, longest=256)
        for name in runs:
            if device == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            row = measure(folder, name, device, "fp32" if device == "cpu" else "bf16")
            ratio = row["estimate"] / row["peak"]
            found[f"{name}: GB at the peak"] = row["peak"] / 1e9
            found[f"{name}: estimate over peak"] = ratio
            if not small:
                expect(f"{name}: estimate over peak, from 1", abs(ratio - 1), ESTIMATE)
    return found


SECTIONS: dict[str, tuple[Callable[[str, bool], Figures], int]] = {
    "scoring": (scoring, 40),
    "packing": (packing, 40),
    "one_rank": (one_rank, 45),
    "non_finite": (non_finite, 30),
    "nf4": (nf4, 45),
    "attention": (attention, 30),
    "step": (step, 130),
    "memory": (memory, 120),
}
"""Functions by name, with the most seconds of each; 480 together."""
