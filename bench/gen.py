"""This benchmark compares our generation with `generate` of transformers: `python -m bench.gen [--json]`.

128 prompts whose lengths are distributed like those of HH dialogues get 64 new tokens each, without a stop token. The
greedy tokens of all ways are compared first. Then every measurement has a process of its own, the ways in turn,
`--repeats` times; printed are medians of CPU time (user and system), wall time and memory above the model. Each way is
measured with the default allocator and with one that keeps large tensors (`tuned`), because page faults otherwise take
half the time of `generate` on a CPU.

Besides plain `generate` there are its static cache, that cache with a compiled model (after a whole unmeasured run),
and the continuous batching of transformers with a cache as large as it must be. Sampling is at temperature 1 on every
side except `as in rollouts`. A way that cannot run is listed with its error.
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
from transformers import (
    AutoModelForCausalLM,
    CompileConfig,
    ContinuousBatchingConfig,
    GenerationConfig,
    LlamaConfig,
    LogitsProcessor,
)

from bench.clock import MIB, environment, forget_peak, resident
from shiqrun.models.policy import Policy
from shiqrun.sampling.generate import sample_completions

SHAPES = {
    "A": {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 688}
    | {"vocab_size": 32_000},
    "B": {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "intermediate_size": 1376}
    | {"vocab_size": 8192},
}
PAGE = 32
"""Tokens of a page of the cache of continuous batching."""
SAME = 0.97
"""Share of rows whose greedy tokens must be equal: a tie but for rounding may go either way."""
console = Console(width=None if sys.stdout.isatty() else 140)


class Former(LogitsProcessor):
    """This logits processor draws tokens by a running sum of the whole vocabulary in float64, as shiqrun once did."""

    def __init__(self, rows: int, steps: int) -> None:
        self.uniforms, self.step = torch.from_numpy(np.random.default_rng(0).random((rows, steps))), 0

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Return logits that are 0 for the drawn token and -inf for every other, `[rows, V]`."""
        below = scores.double().softmax(-1).cumsum_(-1)
        point = self.uniforms[:, self.step, None].to(scores.device) * below[:, -1:]
        self.step += 1
        drawn = torch.searchsorted(below, point, right=True).clamp_(max=scores.shape[-1] - 1)
        return torch.full_like(scores, float("-inf")).scatter_(-1, drawn, 0.0)


def lengths(args: argparse.Namespace) -> np.ndarray:
    """Return the lengths of the prompts, `[prompts]` tokens: log-normal with median 74, at most 512.

    They are distributed like HH's harmless test set under a vocabulary of 32k tokens.
    """
    drawn = np.random.default_rng(0).normal(4.3, args.spread, args.prompts)
    return np.clip(np.exp(drawn), 10, 512).astype(int)


def model_of(shape: str) -> Any:
    """Return a model of a shape with random weights, always the same."""
    torch.manual_seed(0)
    config = LlamaConfig(**SHAPES[shape], tie_word_embeddings=True, max_position_embeddings=2048)
    return AutoModelForCausalLM.from_config(config).eval()


def build(args: argparse.Namespace) -> tuple[Any, list[np.ndarray]]:
    """Return a model made from its config, and prompts of random tokens."""
    model, rng = model_of(args.model).to(args.device), np.random.default_rng(1)
    return model, [rng.integers(0, model.config.vocab_size, n) for n in lengths(args)]


def by_generate(model: Any, prompts: list[np.ndarray], new: int, batch: int, **options: Any) -> list[list[int]]:
    """Complete prompts by `generate` of transformers, in batches sorted by length.

    With `former` the tokens are drawn by `Former`; other options go into the generation config.
    """
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


def static_cache_options() -> dict[str, Any]:
    """Return the options of `generate` for a static cache and a compiled model, on a CPU too."""
    config = CompileConfig()
    config._compile_all_devices = True
    return {"cache_implementation": "static", "compile_config": config}


def complete_continuously(model: Any, prompts: list[np.ndarray], new: int, **options: Any) -> list[list[int]]:
    """Complete all prompts at once by `generate_batch`, the continuous batching of transformers.

    The size of the cache is given: by default it takes most of the memory, and takes long to fill.
    """
    pages = sum(-(-(len(p) + new) // PAGE) + 1 for p in prompts)
    found = model.generate_batch(
        [p.tolist() for p in prompts],
        generation_config=GenerationConfig(max_new_tokens=new, pad_token_id=0, eos_token_id=-1, **options),
        continuous_batching_config=ContinuousBatchingConfig(page_size=PAGE, num_blocks=pages, max_batch_tokens=1024),
    )
    assert len(found) == len(prompts)
    return [found[name].generated_tokens for name in sorted(found, key=lambda name: int(name.rpartition("_")[2]))]


def ours(model: Any, prompts: list[np.ndarray], new: int, temperature: Any, **options: Any) -> list[list[int]]:
    """Complete all prompts in one batch by our `sample_completions`."""
    keys = [[n] for n in range(len(prompts))]
    plain: dict[str, Any] = {"stop": [], "pad": 0, "max_new_tokens": new, "top_p": 1.0, "batch_size": len(prompts)}
    found = sample_completions(Policy(model).eval(), prompts, keys, temperature=temperature, **plain, **options)
    return [c.tokens.tolist() for c in found]


def as_rollouts(model: Any, prompts: list[np.ndarray], new: int) -> list[list[int]]:
    """Complete prompts as rollouts do: a temperature per row, .1 to .8, and the policy's own log-probabilities."""
    return ours(model, prompts, new, np.random.default_rng(2).uniform(0.1, 0.8, len(prompts)).tolist(), describe=True)


class Way(NamedTuple):
    """A `Way` is one way to make completions; the benchmark compares ways.

    Attributes:
        warm: a whole unmeasured run comes before the measured one, for what is prepared once for each shape.
    """

    label: str
    greedy: bool
    make: Callable[[Any, list[np.ndarray], int], list[list[int]]]
    warm: bool = False


SAMPLED = {"do_sample": True, "top_k": 0}
STATIC = {"cache_implementation": "static"}
WAYS = {
    "generate-greedy": Way("generate, greedy", True, lambda m, p, n: by_generate(m, p, n, len(p))),
    "generate-greedy-32": Way("generate, greedy, 32 by length", True, lambda m, p, n: by_generate(m, p, n, 32)),
    "static-greedy": Way(
        "generate, static cache, greedy", True, lambda m, p, n: by_generate(m, p, n, len(p), **STATIC)
    ),
    "compiled-greedy": Way(
        "generate, static, compiled, greedy",
        True,
        lambda m, p, n: by_generate(m, p, n, len(p), **static_cache_options()),
        True,
    ),
    "continuous-greedy": Way("continuous batching, greedy", True, complete_continuously),
    "ours-greedy": Way("shiqrun, greedy", True, lambda m, p, n: ours(m, p, n, 0.0)),
    "generate-sampled": Way("generate, sampled", False, lambda m, p, n: by_generate(m, p, n, len(p), **SAMPLED)),
    "generate-sampled-32": Way(
        "generate, sampled, 32 by length", False, lambda m, p, n: by_generate(m, p, n, 32, **SAMPLED)
    ),
    "static-sampled": Way(
        "generate, static cache, sampled", False, lambda m, p, n: by_generate(m, p, n, len(p), **STATIC, **SAMPLED)
    ),
    "compiled-sampled": Way(
        "generate, static, compiled, sampled",
        False,
        lambda m, p, n: by_generate(m, p, n, len(p), **static_cache_options(), **SAMPLED),
        True,
    ),
    "continuous-sampled": Way(
        "continuous batching, sampled", False, lambda m, p, n: complete_continuously(m, p, n, **SAMPLED)
    ),
    "former-sampled": Way("shiqrun before, sampled", False, lambda m, p, n: by_generate(m, p, n, len(p), former=True)),
    "ours-sampled": Way("shiqrun, sampled", False, lambda m, p, n: ours(m, p, n, 1.0)),
    "ours-rollouts": Way("shiqrun, as in rollouts", False, as_rollouts),
}
PEERS = ("generate-greedy", "generate-sampled")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Return seconds, MiB above the model and greedy tokens of one way, in this process, after a short warm-up."""
    torch.set_num_threads(args.threads)
    model, prompts = build(args)
    way, cuda = WAYS[args.way], args.device == "cuda"
    way.make(model, *((prompts, args.new) if way.warm else (prompts[:8], 2)))
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
    """Return the measurement of one way from a process of its own; `error` alone if that fails."""
    words = [f"--{name}={getattr(args, name)}" for name in ("model", "threads", "device", "prompts", "new", "spread")]
    command = [sys.executable, "-m", "bench.gen", f"--way={way}", *words]
    out = subprocess.run(
        command, check=False, capture_output=True, text=True, env=environment(args.threads, tuned=tuned)
    )
    if out.returncode:
        return {"error": (out.stderr.strip().splitlines() or [f"exit status {out.returncode}"])[-1]}
    return json.loads(out.stdout.splitlines()[-1])


def check(found: dict[str, list[list[int]]]) -> dict[str, float]:
    """Return the share of rows of each greedy way that equal those of `generate`.

    Raises:
        SystemExit: a share is below `SAME`.
    """
    expected = found["generate-greedy"]
    shares = {k: sum(a == b for a, b in zip(v, expected, strict=True)) / len(expected) for k, v in found.items()}
    if min(shares.values()) < SAME:
        raise SystemExit(f"greedy tokens differ: shares of equal rows {shares}, expected at least {SAME}")
    return shares


def bench(args: argparse.Namespace) -> dict[str, Any]:
    """Return the medians of every way and its tokens per second, and the errors of ways that cannot run.

    Raises:
        SystemExit: `generate` cannot run, or a greedy way gives other tokens.
    """
    asked = [way for way in WAYS if way in PEERS or way in (args.ways or WAYS)]
    first = {way: in_a_process(args, way, True) for way in asked}
    errors = {way: found["error"] for way, found in first.items() if "error" in found}
    if set(errors) & set(PEERS):
        raise SystemExit(f"generate cannot run: {errors}")
    ways = [way for way in asked if way not in errors]
    same = check({way: first[way]["tokens"] for way in ways if WAYS[way].greedy})
    allocators = (True,) if args.tuned else (False, True)
    runs: dict[tuple[str, bool], list[dict[str, Any]]] = {(way, tuned): [] for tuned in allocators for way in ways}
    for repeat in range(args.repeats):
        for (way, tuned), found in runs.items():
            again = repeat or not tuned
            found.append(in_a_process(args, way, tuned) if again else first[way])
    count, rows = args.prompts * args.new, []
    for (way, tuned), several in runs.items():
        row = {key: median(run[key] for run in several) for key in ("wall", "cpu", "memory_mib")}
        speed = {f"tokens_per_{key}_second": count / row[key] for key in ("cpu", "wall")}
        rows.append({"way": way, "tuned": tuned, **row, **speed})
    prompt = lengths(args)
    sizes = {"mean": float(prompt.mean()), "most": int(prompt.max())}
    of = {"model": args.model, "threads": args.threads, "prompt_tokens": sizes}
    return of | {"equal_rows": same, "rows": rows, "errors": errors}


def show(result: dict[str, Any]) -> None:
    """Print the result as a table; ratios are to `generate` in one batch of the same kind with the same allocator."""
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
    for way, error in result["errors"].items():
        console.print(f"{WAYS[way].label} cannot run here: {error}", markup=False)


def main() -> None:
    """Measure all ways of generation and print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=SHAPES, default="A")
    for name, value in (("threads", 1), ("repeats", 3), ("prompts", 128), ("new", 64)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--spread", type=float, default=1.0, help="standard deviation of the logarithm of the lengths")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--ways", nargs="+", choices=WAYS, help="these beside plain generate, not all")
    parser.add_argument("--tuned", action="store_true", help="with the tuned allocator alone")
    parser.add_argument("--way", choices=WAYS, help="measure this one in this process")
    args = parser.parse_args()
    if args.way:
        print("\n" + json.dumps(measure(args)))
    elif args.json:
        print(json.dumps(bench(args)))
    else:
        show(bench(args))


if __name__ == "__main__":
    main()
