"""`try_kills` kills runs at random moments, resumes them, and compares them with a run that nothing disturbed."""

import random
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from tests.campaign.outcome import differences, outcome
from tests.campaign.world import online, run, run_well, start, training

MEANT = re.compile(":resume$|/LEASES:")
"""What a resumed run is meant to write otherwise."""
RUNS = {"logged": training("killed"), "online": online("killed")}


def try_kills(world: Path, place: Path, count: int, seed: int) -> Iterator[str]:
    """Yield what was wrong with each of `count` runs that were killed once and resumed; empty where nothing was."""
    rng, whole = random.Random(seed), {}
    run_dir = place / "killed"
    for number in range(count):
        name = sorted(RUNS)[number % len(RUNS)]
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(world, place)
        if name not in whole:
            begun = time.monotonic()
            run_well(place, RUNS[name])
            whole[name] = time.monotonic() - begun, outcome(run_dir)
            shutil.rmtree(run_dir)
        seconds, sound = whole[name]
        after = rng.uniform(0, seconds)
        process = start(place, RUNS[name])
        time.sleep(after)
        with suppress(ProcessLookupError):  # it was quicker
            process.kill()
        process.wait()
        begun_before = (run_dir / ".hydra/config.yaml").exists()
        code, said = run(place, ("train", "resume=killed") if begun_before else RUNS[name])
        left = [str(f.relative_to(place)) for f in run_dir.rglob("*") if f.name.endswith(".tmp")]
        other = [key for key in differences(sound, outcome(run_dir)) if not MEANT.search(key)]
        what = f"HOLE {name}, killed after {after:.2f} of {seconds:.2f} s: exit {code}, left {left}, other {other[:8]}"
        yield f"{what}\n{said[-700:]}" if code != 0 or left or other else ""
