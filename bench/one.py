"""`python -m bench.one SPEC` makes one measurement of `bench.step` and prints it as a last line of JSON."""

import json
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

from bench.clock import gemm_peak


def _ours(spec: dict[str, Any]) -> dict[str, Any]:
    from bench.ours import Settings, measure

    return measure(Settings(**spec))


def _trl(spec: dict[str, Any]) -> dict[str, Any]:
    from bench import ours, peer
    from bench.order import pairs_in_order, sort_by_length
    from bench.work import tokenizer_of

    folder, sort = Path(spec.pop("folder")), spec.pop("presort")
    settings = peer.Settings(model=str(folder / "model"), **spec)
    same = ours.Settings(folder=str(folder), steps=settings.steps, pairs=settings.pairs)
    pairs = pairs_in_order(folder, ours.encode_rows(same), seed=0, pairs=settings.pairs, steps=settings.steps)
    if sort:
        pairs = sort_by_length(pairs, settings.pairs, settings.warmup)
    with tempfile.TemporaryDirectory() as out:
        return peer.measure(settings, pairs, tokenizer_of(folder), out)


def _peak(spec: dict[str, Any]) -> dict[str, Any]:
    found = {name: gemm_peak(getattr(torch, name), spec["device"]) for name in ("float32", "bfloat16")}
    return {"fp32": found["float32"], "bf16": found["bfloat16"]}


def _tokens(spec: dict[str, Any]) -> dict[str, Any]:
    from bench import ours
    from bench.order import counts, pairs_in_order, sort_by_length

    settings, folder = ours.Settings(**spec), Path(spec["folder"])
    pairs = pairs_in_order(folder, ours.encode_rows(settings), seed=0, pairs=settings.pairs, steps=settings.steps)
    first = settings.warmup * settings.pairs
    sorted_pairs = sort_by_length(pairs, settings.pairs, settings.warmup)[first:]
    return {
        **counts(pairs[first:], settings.pairs),
        "padded_sorted": counts(sorted_pairs, settings.pairs)["padded"],
    }


SIDES = {"ours": _ours, "trl": _trl, "peak": _peak, "tokens": _tokens}


def main() -> None:
    """Make the measurement that the argument, a JSON object, specifies."""
    warnings.filterwarnings("ignore")
    spec = json.loads(sys.argv[1])
    torch.set_num_threads(spec.pop("threads"))
    found = SIDES[spec.pop("side")](spec)
    print("\n" + json.dumps(found))


if __name__ == "__main__":
    main()
