"""`shiqrun toy STUDY` runs a tabular study, prints its tables and writes CSV, PNG and SVG."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Ge
from omegaconf import DictConfig, OmegaConf

from shiqrun.config.validate import COMMON_NODES, Schema, target
from shiqrun.util.summary import write_summary

SCHEMA = Schema(
    root="shiqrun.commands.toy.Root",
    nodes={"study": None, **COMMON_NODES},
    groups=[*COMMON_NODES, "study"],
)


@dataclass(frozen=True, kw_only=True)
class Root:
    """`Root` holds the keys of `conf/toy.yaml` that are no groups."""

    seed: Annotated[int, Ge(0)]
    out: str | None
    run_dir: str
    resume: str | None = None
    dry_run: bool


def run(config: DictConfig, run_dir: Path) -> None:
    """Run the toy study, and write its files into `out` or the run directory."""
    from shiqrun.console import console, say_dry_run, say_next, waiting
    from shiqrun.training.artifacts import provenance

    study = target(config.study)
    if config.dry_run:
        console.print(OmegaConf.to_yaml(config.study, resolve=True), highlight=False, markup=False)
        say_dry_run()
        return
    began = time.perf_counter()
    with _one_thread():
        findings = study(config.seed)
    seconds = time.perf_counter() - began
    for table in findings.tables:
        console.print(table.as_table())
    with waiting("drawing"):
        files = findings.write(Path(config.out) if config.out else run_dir)
    about = {"study": findings.name, "seed": config.seed, "seeds": config.study.seeds, "seconds": round(seconds, 1)}
    write_summary(run_dir, {**findings.summary(), **about, **provenance()})
    console.print(f"mean ± half of the 95 % interval over {config.study.seeds} seeds; {seconds:.0f} s")
    for file in files:
        console.print(str(file), highlight=False, soft_wrap=True)
    picture = next(file for file in files if file.suffix == ".png")
    say_next(f"look at {picture}", "shiqrun toy --help: other studies")


@contextmanager
def _one_thread() -> Iterator[None]:
    """Have torch compute on one thread inside the context: on small tensors, threads would wait for each other."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
