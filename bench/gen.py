"""Generation against `generate` of transformers: `python -m bench.gen [--json]`.

128 prompts whose lengths are spread like those of HH dialogues, 64 new tokens each, no stop token. Greedy tokens are
compared first. Then one process a measurement, the ways in turn, `--repeats` times; medians of CPU time (user and
system) beside wall time and of the memory above the model. Each way is measured with the allocator as it comes and with
one that keeps large tensors (`tuned`), without which page faults are half the time of `generate` on a CPU.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, LogitsProcessor

from bench.clock import MIB, environment, forget_peak, resident
from shiqrun.models.generate import sample_completions
from shiqrun.models.policy import Policy

SHAPES = {
    "A": {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 688}
    | {"vocab_size": 32_000},
    "B": {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "intermediate_size": 1376}
    | {"vocab_size": 8192},
}
SAME = 0.97
"""Share of rows whose greedy tokens must be equal: a tie but for rounding may go either way."""
console = Console(width=None if sys.stdout.isatty() else 140)


class Former(LogitsProcessor):
    """How shiqrun drew before: the running sum of the whole vocabulary in float64."""

    def __init__(self, rows: int, steps: int) -> None:
        self.uniforms, self.step = torch.from_numpy(np.random.default_rng(0).random((rows, steps))), 0

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """0 for the drawn token, -inf for every other, `[rows, V]`."""
        below = scores.double().softmax(-1).cumsum_(-1)
        point = self.uniforms[:, self.step, None].to(scores.device) * below[:, -1:]
        self.step += 1
        drawn = torch.searchsorted(below, point, right=True).clamp_(max=scores.shape[-1] - 1)
        return torch.full_like(scores, float("-inf")).scatter_(-1, drawn, 0.0)


def lengths(args: argparse.Namespace) -> np.ndarray:
    """`[prompts]` tokens: log-normal, median 74, at most 512 (of HH's harmless test set by a 32k vocabulary)."""
    drawn = np.random.default_rng(0).normal(4.3, args.spread, args.prompts)
    return np.clip(np.exp(drawn), 10, 512).astype(int)


def built(args: argparse.Namespace) -> tuple[Any, list[np.ndarray]]:
    """A model from its config and prompts of random tokens."""
    torch.manual_seed(0)
    config = LlamaConfig(**SHAPES[args.model], tie_word_embeddings=True, max_position_embeddings=2048)
    model = AutoModelForCausalLM.from_config(config).eval().to(args.device)
    rng = np.random.default_rng(1)
    return model, [rng.integers(0, config.vocab_size, n) for n in lengths(args)]


def by_generate(model: Any, prompts: list[np.ndarray], new: int, batch: int, **options: Any) -> list[list[int]]:
    """`generate` in batches of prompts by length; `former` draws by `Former`, else the options are of its config."""
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    found: list[list[int]] = [[]] * len(prompts)
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        width = len(prompts[rows[0]])
        ids = torch.from_numpy(np.stack([np.pad(prompts[i], (width - len(prompts[i]), 0)) for i in rows]))
        mask = torch.arange(width) >= width - torch.tensor([len(prompts[i]) for i in rows])[:, None]
        settings = {k: v for k, v in options.items() if k != "former"}
        out = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.long().to(model.device),
            generation_config=GenerationConfig(max_new_tokens=new, pad_token_id=0, use_cache=True, **settings),
            logits_processor=[Former(len(rows), new)] if "former" in options else [],
        )
        for i, row in zip(rows, out[:, width:].tolist(), strict=True):
            found[i] = row
    return found


def ours(model: Any, prompts: list[np.ndarray], new: int, temperature: float) -> list[list[int]]:
    """`sample_completions`, all prompts in one batch."""
    keys = [[n] for n in range(len(prompts))]
    options: dict[str, Any] = {"stop": [], "pad": 0, "max_new_tokens": new, "top_p": 1.0, "batch_size": len(prompts)}
    found = sample_completions(Policy(model).eval(), prompts, keys, temperature=temperature, **options)
    return [c.tokens.tolist() for c in found]


class Way(NamedTuple):
    """How completions are made."""

    label: str
    greedy: bool
    make: Callable[[Any, list[np.ndarray], int], list[list[int]]]


SAMPLED = {"do_sample": True, "top_k": 0}
WAYS = {
    "generate-greedy": Way("generate, greedy", True, lambda m, p, n: by_generate(m, p, n, len(p))),
    "generate-greedy-32": Way("generate, greedy, 32 by length", True, lambda m, p, n: by_generate(m, p, n, 32)),
    "ours-greedy": Way("shiqrun, greedy", True, lambda m, p, n: ours(m, p, n, 0.0)),
    "generate-sampled": Way("generate, sampled", False, lambda m, p, n: by_generate(m, p, n, len(p), **SAMPLED)),
    "generate-sampled-32": Way(
        "generate, sampled, 32 by length", False, lambda m, p, n: by_generate(m, p, n, 32, **SAMPLED)
    ),
    "former-sampled": Way("shiqrun before, sampled", False, lambda m, p, n: by_generate(m, p, n, len(p), former=True)),
    "ours-sampled": Way("shiqrun, sampled", False, lambda m, p, n: ours(m, p, n, 1.0)),
}


def measured(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds, MiB above the model and greedy tokens of one way in this process, after a short run unmeasured."""
    torch.set_num_threads(args.threads)
    model, prompts = built(args)
    way, cuda = WAYS[args.way], args.device == "cuda"
    way.make(model, prompts[:8], 2)
    base = torch.cuda.memory_allocated() / MIB if cuda else forget_peak()
    wall, cpu = time.perf_counter(), time.process_time()
    tokens = way.make(model, prompts, args.new)
    if cuda:
        torch.cuda.synchronize()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = torch.cuda.max_memory_allocated() / MIB if cuda else resident("VmHWM")
    assert {len(row) for row in tokens} == {args.new}
    return {"wall": wall, "cpu": cpu, "memory_mib": peak - base, "tokens": tokens if way.greedy else []}


def in_a_process(args: argparse.Namespace, way: str, tuned: bool) -> dict[str, Any]:
    """What `measured` gives, from a process of its own."""
    words = [f"--{name}={getattr(args, name)}" for name in ("model", "threads", "device", "prompts", "new", "spread")]
    command = [sys.executable, "-m", "bench.gen", f"--way={way}", *words]
    out = subprocess.run(
        command, check=True, capture_output=True, text=True, env=environment(args.threads, tuned=tuned)
    )
    return json.loads(out.stdout.splitlines()[-1])


def check(found: dict[str, list[list[int]]]) -> dict[str, float]:
    """Share of rows of each greedy way that equal those of `generate`.

    Raises:
        SystemExit: fewer than `SAME`.
    """
    expected = found["generate-greedy"]
    shares = {k: sum(a == b for a, b in zip(v, expected, strict=True)) / len(expected) for k, v in found.items()}
    if min(shares.values()) < SAME:
        raise SystemExit(f"greedy tokens differ: shares of equal rows {shares}, expected at least {SAME}")
    return shares


def bench(args: argparse.Namespace) -> dict[str, Any]:
    """Medians of every way, and tokens a second by them."""
    same = check({way: in_a_process(args, way, True)["tokens"] for way, made in WAYS.items() if made.greedy})
    runs: dict[tuple[str, bool], list[dict[str, Any]]] = {(way, tuned): [] for tuned in (False, True) for way in WAYS}
    for _ in range(args.repeats):
        for way, tuned in runs:
            runs[way, tuned].append(in_a_process(args, way, tuned))
    count, rows = args.prompts * args.new, []
    for (way, tuned), several in runs.items():
        row = {key: median(run[key] for run in several) for key in ("wall", "cpu", "memory_mib")}
        speed = {f"tokens_per_{key}_second": count / row[key] for key in ("cpu", "wall")}
        rows.append({"way": way, "tuned": tuned, **row, **speed})
    prompt = lengths(args)
    sizes = {"mean": float(prompt.mean()), "most": int(prompt.max())}
    return {"model": args.model, "threads": args.threads, "prompt_tokens": sizes, "equal_rows": same, "rows": rows}


def show(result: dict[str, Any]) -> None:
    """The result as a table; the ratio is to `generate` in one batch of the same kind and allocator."""
    sizes, speed = (
        result["prompt_tokens"],
        "tokens_per_cpu_second" if result["threads"] == 1 else "tokens_per_wall_second",
    )
    title = f"model {result['model']}, {result['threads']} threads, prompts of {sizes['mean']:.0f} tokens"
    table = Table(title=f"{title}, {sizes['most']} at most; equal greedy rows {min(result['equal_rows'].values()):.0%}")
    for name in ("way", "allocator", "CPU s", "wall s", "tokens/s", "x generate", "MiB"):
        table.add_column(name, justify="left" if name in ("way", "allocator") else "right")
    base = {(row["way"], row["tuned"]): row[speed] for row in result["rows"]}
    for row in result["rows"]:
        peer = base["generate-greedy" if WAYS[row["way"]].greedy else "generate-sampled", row["tuned"]]
        numbers = f"{row['cpu']:.1f}", f"{row['wall']:.1f}", f"{row[speed]:.0f}", f"{row[speed] / peer:.1f}"
        allocator = "tuned" if row["tuned"] else "plain"
        table.add_row(WAYS[row["way"]].label, allocator, *numbers, f"{row['memory_mib']:.0f}")
    console.print(table)


def main() -> None:
    """Runs all ways and prints a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=SHAPES, default="A")
    for name, value in (("threads", 1), ("repeats", 3), ("prompts", 128), ("new", 64)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--spread", type=float, default=1.0, help="standard deviation of the logarithm of the lengths")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--way", choices=WAYS, help="measure this one in this process")
    args = parser.parse_args()
    if args.way:
        print("\n" + json.dumps(measured(args)))
    elif args.json:
        print(json.dumps(bench(args)))
    else:
        show(bench(args))


if __name__ == "__main__":
    main()
