"""This benchmark measures what a step of every method costs: `python -m bench.methods [--only NAME ...]`.

Every method trains the same small Llama on the same pairs, each in a process of its own on one thread. Time is CPU time
of a step and memory the high-water mark above what was resident before the first step. Times are also given relative
to the first method's. What happens before the first step is not in them: scoring the rows by the reference, and for
methods with prompt values sampling the reference's completions. methods.json, written into --out, keeps the figures of
earlier calls, so that the table can be measured in portions.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from rich.table import Table

from bench.work import Shape, make_pairs, prepare
from shiqrun.console import console

SHAPE = Shape(hidden=128, layers=4, heads=4, intermediate=344, vocabulary=8_192, pairs=32)
PAIRS, STEPS, LONGEST = 8, 4, 256
VALUES = ("reward@eval.reward=exact_match", "algo.same_unit=true", "values.samples=1", "values.max_new_tokens=4")
METHODS: dict[str, tuple[str, ...]] = {
    "shiq": (),
    "shiq, frozen": ("algo=shiq", "algo.reference=frozen"),
    "shiq_init": (),
    "shiq_ms": (),
    "shiq_tk": (),
    "tbrm": (),
    "direct": (),
    "copg": (),
    "dro": (),
    "agro": (),
    "dro_v, head": ("algo=dro_v", "algo.value=head"),
    "dro_v, network": ("algo=dro_v",),
    "oreo, head, kl_reg=0, cached": ("algo=oreo", "algo.value=head", "algo.kl_reg=0", "algo.reference=cached"),
    "oreo, head, kl_reg=0": ("algo=oreo", "algo.value=head", "algo.kl_reg=0"),
    "oreo, head": ("algo=oreo", "algo.value=head"),
    "oreo, network": ("algo=oreo",),
    "spo": VALUES,
    "spo_nonterminal": VALUES,
    "spo_advantage": VALUES,
    "qrpo": VALUES,
    "kto": (),
    "kto, frozen": ("algo=kto", "algo.reference=frozen"),
    "dpo": (),
    "ipo": (),
    "reward_model": (),
    "sft": (),
}
"""Row of the table -> overrides; without `algo=` among these the name is that of the method."""


def measure(folder: Path, name: str) -> dict[str, Any]:
    """Measure one method in a process of its own.

    Raises:
        SystemExit: the process failed; its output is the message.
    """
    words = METHODS[name]
    algo = next((word.removeprefix("algo=") for word in words if word.startswith("algo=")), name)
    extra = [word for word in words if not word.startswith("algo=")]
    spec = {"side": "ours", "threads": 1, "folder": str(folder), "steps": STEPS, "pairs": PAIRS, "algo": algo}
    spec |= {"extra": extra}
    done = subprocess.run(
        [sys.executable, "-m", "bench.one", json.dumps(spec)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def show(found: dict[str, dict[str, float]]) -> None:
    """Print the table of all figures that are known."""
    first = next(iter(found.values()))
    table = Table("algo=", "CPU s a step", "relative", "MiB", "relative")
    for name, row in found.items():
        times, sizes = row["seconds"], row["mib"]
        table.add_row(
            name, f"{times:.2f}", f"{times / first['seconds']:.2f}", f"{sizes:.0f}", f"{sizes / first['mib']:.2f}"
        )
    console.print(table)


def main() -> None:
    """Measure the methods that are asked for, and print the table of all that were measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", choices=METHODS, default=list(METHODS))
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("bench/out"))
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    kept = asked.out / "methods.json"
    known = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        prepare(folder, SHAPE, make_pairs(4 * SHAPE.pairs), pairs=SHAPE.pairs, longest=LONGEST)
        rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
        answered = [json.dumps({**row, "answer": "ba"}) for row in rows]  # what `exact_match` compares with
        (folder / "pairs.jsonl").write_text("\n".join(answered) + "\n", encoding="utf-8")
        for name in asked.only:
            found = [measure(folder, name) for _ in range(asked.repeats)]
            known[name] = {
                "seconds": median(run["cpu"] for run in found) / (STEPS - 1),
                "mib": median(run["memory_mib"] for run in found),
            }
            kept.write_text(json.dumps(known, indent=1), encoding="utf-8")
            console.print(f"{name}: {known[name]['seconds']:.2f} s, {known[name]['mib']:.0f} MiB", highlight=False)
    show({name: known[name] for name in METHODS if name in known})


if __name__ == "__main__":
    main()
