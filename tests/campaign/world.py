"""A *world* is a folder of small runs and caches made by the real command line; a `Reading` reads some of it again."""

import os
import pkgutil
import subprocess
import time
from collections.abc import Iterable, Sequence
from contextlib import chdir
from pathlib import Path
from typing import NamedTuple

import shiqrun
from tests.evaluation.runs import SETTINGS, base_words, words, write_data
from tests.support.forks import CONTEXT, Forked

HUNG = 120  # seconds
ENVIRONMENT = {"SHIQRUN_CACHE": "cache", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "300"}
RUNS_DATA = ("data=jsonl", "data.path=data.jsonl")
EVALUATED = (*SETTINGS, "reward=exact_match", "run_dir=out")
VALUES = ("values", *RUNS_DATA, "model=hf", "model.path=base/policy", "reward=exact_match", "values.samples=4")
VALUES = (*VALUES, "values.max_new_tokens=6")
SCORE = ("score", *RUNS_DATA, "reward=exact_match")
ONLINE = ("rollout=local", "rollout.max_new_tokens=6", "rollout.samples_per_prompt=2")
ONLINE = (*ONLINE, "rollout.model_update_interval=2", "algo.reference=frozen")


def training(name: str, *more: str, algo: str = "algo.beta=0.2") -> tuple[str, ...]:
    """Words of a run of seven steps in the working directory."""
    return tuple(words(Path(), name, *more, algo=algo))


def online(name: str, *more: str) -> tuple[str, ...]:
    """Words of a run that trains on what its policy samples."""
    return training(name, *ONLINE, *more, algo="algo=copg")


PARTS = {
    "base": (tuple(base_words(Path())), False),
    "done": (training("done"), False),
    "cut": (training("cut", "trainer.max_steps=9"), True),
    "online_cut": (online("online_cut", "trainer.max_steps=9"), True),
    "values": ((*VALUES, "run_dir=values"), False),
    "scored": ((*SCORE, "run_dir=scored"), False),
}
"""The runs of a world: the command that makes each, and whether it is killed in the middle."""


class Reading(NamedTuple):
    """A `Reading` is a command that reads files of the world again.

    Attributes:
        needs: the parts of the world that it reads, beside `base`.
        files: glob patterns of the files that a trial may damage.
        words: the command line.
        result: the folder that is its outcome; empty where the outcome is what it prints.
    """

    needs: tuple[str, ...]
    files: tuple[str, ...]
    words: tuple[str, ...]
    result: str = "out"


REPLAYED = training("out", "data.path=online_cut/experience", "data.val_fraction=0", "eval.every=0", "eval.reward=null")
SPO = training("out", "algo.values=values/values.jsonl", algo="algo=spo")
RUN, SAVED, ENDED = ("done",), ("done/.hydra/*.yaml", "done/summary.json"), ("done/policy/*", "done/summary.json")
PAGE = ("done/metrics.csv", "done/samples.jsonl", "done/credit.jsonl")
READINGS = {
    "resume": Reading(("cut",), ("cut/**/*",), ("train", "resume=cut"), "cut"),
    "resume_online": Reading(("online_cut",), ("online_cut/**/*",), ("train", "resume=online_cut"), "online_cut"),
    "resume_inputs": Reading(("cut",), ("base/policy/*", "data.jsonl"), ("train", "resume=cut"), "cut"),
    "resume_done": Reading(RUN, SAVED, ("train", "resume=done"), "done"),
    "eval": Reading(RUN, (*SAVED, *ENDED), ("eval", "run=done", *EVALUATED)),
    "eval_last": Reading(RUN, (*ENDED, "done/*/last.ckpt"), ("eval", "run=done", "checkpoint=last", *EVALUATED)),
    "eval_best": Reading(RUN, (*ENDED, "done/*/best.ckpt"), ("eval", "run=done", "checkpoint=best", *EVALUATED)),
    "report": Reading(RUN, (*SAVED, *PAGE), ("report", "done", "--out", "out/report.html")),
    "inspect": Reading(RUN, (*SAVED, *ENDED), ("inspect", "run=done", "limit=2"), ""),
    "from_policy": Reading(RUN, ENDED, training("out", "model.path=done/policy")),
    "from_values": Reading(("values",), ("values/values.jsonl", "values/summary.json"), SPO),
    "from_experience": Reading(("online_cut",), ("online_cut/experience/*",), REPLAYED),
    "values": Reading(("values",), ("cache/values/*",), (*VALUES, "run_dir=out")),
    "score": Reading(("scored",), ("cache/scores/**/*",), (*SCORE, "run_dir=out")),
    "cache": Reading(RUN, ("cache/rows/**/*", "cache/reference-*"), training("out")),
}


def start(place: Path, command: Sequence[str]) -> Forked:
    """Start a command line in a folder, in a process forked from one that has imported shiqrun."""
    with chdir(place):
        return Forked(tuple(command))


def run(place: Path, command: Sequence[str]) -> tuple[int | None, str]:
    """(exit code, output) of a command line in a folder; the code is None where it hung and was killed."""
    process = start(place, command)
    try:
        said, _ = process.communicate(HUNG)
    except subprocess.TimeoutExpired as late:
        return None, str(late.output)
    return process.returncode, said


def run_well(place: Path, command: Sequence[str]) -> str:
    """Output of a command line that has to succeed."""
    code, said = run(place, command)
    assert code == 0, f"{' '.join(command)}: exit {code}\n{said}"
    return said


def interrupt(place: Path, command: Sequence[str], run_dir: Path, rows: int = 6) -> None:
    """Kill a run once its `metrics.csv` has so many lines and it has a checkpoint."""
    process = start(place, command)
    metrics, last = run_dir / "metrics.csv", run_dir / "checkpoints/last.ckpt"
    end = time.monotonic() + HUNG
    while not (last.exists() and metrics.exists() and metrics.read_text().count("\n") >= rows):
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < end, "it hangs"
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert not (run_dir / "summary.json").exists(), "it was over before the kill"


def prepare() -> None:
    """Set what every command of the campaign has in common; import all of shiqrun, once, for all processes to come."""
    os.environ |= ENVIRONMENT
    found = [m.name for m in pkgutil.walk_packages(shiqrun.__path__, "shiqrun.")]
    CONTEXT.set_forkserver_preload([name for name in found if ".ray" not in name and "__main__" not in name])


def make_world(place: Path, readings: Iterable[Reading]) -> None:
    """Make the parts of a world that readings need, unless they are there from an earlier campaign."""
    place.mkdir(exist_ok=True)
    if not (place / "data.jsonl").exists():
        write_data(place / "data.jsonl", low=0)  # right 1, wrong 0: as the reward counts, which prompt values need
    needed = {"base", *(part for reading in readings for part in reading.needs)}
    for name, (command, killed) in PARTS.items():
        if name in needed and not (place / name).exists():
            if killed:
                interrupt(place, command, place / name)
            else:
                run_well(place, command)
