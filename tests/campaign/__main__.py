"""`python -m tests.campaign` damages files and kills runs; it prints a table and exits with 1 if it finds a hole."""

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.campaign.kills import try_kills
from tests.campaign.trials import VERDICTS, Campaign
from tests.campaign.world import READINGS, make_world, prepare


def main(given: Sequence[str] | None = None) -> int:
    """Run the trials that the command line asks for; return 1 where there was a hole."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__)
    parser.add_argument("--trials", type=int, default=28, help="files to damage, one after another")
    parser.add_argument("--first", type=int, default=0, help="number of the first trial, to repeat one of a campaign")
    parser.add_argument("--kills", type=int, default=2, help="runs to kill and resume")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin nothing after so many seconds")
    parser.add_argument("--world", type=Path, help="keep the world of runs there, or use the one that is there")
    parser.add_argument("--only", nargs="+", choices=READINGS, default=list(READINGS), help="the commands that read")
    asked = parser.parse_args(given)
    end = time.monotonic() + asked.seconds
    prepare()
    with tempfile.TemporaryDirectory(prefix="campaign") as folder:
        world, place = asked.world or Path(folder, "world"), Path(folder, "trial")
        make_world(world, [READINGS[name] for name in asked.only])
        campaign = Campaign(world, place, asked.seed)
        damaged = [
            said(campaign.trial(asked.only[number % len(asked.only)], number))
            for number in range(asked.first, asked.first + asked.trials)
            if time.monotonic() < end
        ]
        killed = [said(hole) for hole in try_kills(world, place, asked.kills, asked.seed)]
    print_table(campaign)
    print(f"{len(damaged)} files damaged, {campaign.flips} of them by a flip, seed {asked.seed}: {sum(damaged)} holes")
    print(f"{len(killed)} runs killed and resumed: {sum(killed)} holes")
    return 1 if any(damaged + killed) else 0


def said(hole: str | None) -> bool:
    """Tell whether there was a hole, and print it at once: a long campaign may be stopped."""
    if hole:
        print(hole, flush=True)
    return bool(hole)


def print_table(campaign: Campaign) -> None:
    """Print how often each command met each verdict with each kind of file."""
    rows: Iterable[tuple[tuple[str, str], Counter[str]]] = sorted(campaign.table.items())
    total = sum((row for _, row in rows), Counter())
    print(f"{'command':<14} {'file':<48}", *(f"{v:>9}" for v in VERDICTS))
    for (name, kind), row in [*rows, (("all", ""), total)]:
        print(f"{name:<14} {kind[-48:]:<48}", *(f"{row[v]:>9}" for v in VERDICTS))


if __name__ == "__main__":
    sys.exit(main())
