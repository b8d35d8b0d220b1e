"""`shiqrun COMMAND [key=value ...] [flags]`: names the commands and imports nothing else until one is chosen."""

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple

from shiqrun import __version__
from shiqrun.config.suggest import did_you_mean


class Command(NamedTuple):
    """A command.

    Attributes:
        module: where its `run` and `SCHEMA` are.
        summary: one line of help.
        writes: whether it makes a run directory.
        word: the config group that a bare word after the command chooses from, where there is one.
        plain: it takes paths and flags instead of a config; its module has `main(words) -> exit code`.
    """

    module: str
    summary: str
    writes: bool
    word: str | None = None
    plain: bool = False


COMMANDS = {
    "train": Command("shiqrun.commands.train", "train a policy from logged data", writes=True),
    "eval": Command("shiqrun.commands.eval", "sample from a policy, score, measure its KL", writes=True),
    "score": Command("shiqrun.commands.score", "label the completions of a data set with a reward", writes=True),
    "values": Command("shiqrun.commands.values", "what the reference earns on every prompt", writes=True),
    "pivotal": Command("shiqrun.commands.pivotal", "where the chance of success jumps, by token", writes=True),
    "sweep": Command("shiqrun.commands.sweep", "train a grid of settings, a process each", writes=True),
    "report": Command("shiqrun.commands.report", "one HTML page of runs and sweeps", writes=False, plain=True),
    "inspect": Command("shiqrun.commands.inspect", "show the trajectories as the losses see them", writes=False),
    "doctor": Command("shiqrun.commands.doctor", "what this machine offers, its sandbox", writes=False, plain=True),
    "toy": Command("shiqrun.commands.toy", "run a tabular study against its exact optimum", writes=True, word="study"),
}

HELP = """\
Experiments in RL fine-tuning of language models from logged data, at the level of tokens.

usage: shiqrun COMMAND [key=value ...] [flags]

Commands:
{commands}

  shiqrun COMMAND --help       what to choose and to set, with examples
  shiqrun --version            the version
  eval "$(shiqrun -sc install=bash)"   completion of commands, groups and keys in this shell

Examples:
  shiqrun train                                the embedded problem: ShiQ on treasure maps, on the CPU
  shiqrun train algo=shiq_ms algo.beta=0.5     another loss, another beta
  shiqrun train dry_run=true                   what would be run, and whether it fits
  shiqrun train -m algo.beta=0.1,0.5 seed=0,1  four runs, one after the other
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0, 1 failed after training began, 2 input that cannot work, 130 interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        commands = "\n".join(f"  {name:<9} {command.summary}" for name, command in COMMANDS.items())
        print(HELP.format(commands=commands), end="")
        return 0
    if words[0] == "--version":
        print(f"shiqrun {__version__}")
        return 0
    if words[0] in ("-sc", "--shell-completion"):
        return _complete(words[1:])
    if words[0] not in COMMANDS:
        print(f"shiqrun: error: {_unknown(words[0])}", file=sys.stderr)
        return 2
    return _launch(words[0], words[1:])


ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin starve each other where cores are shared
    # bfloat16 products on a CPU compile a kernel for every length that batches have, and keep 1024 of them, twice
    "LRU_CACHE_CAPACITY": "16",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16",
}
"""What is set before torch is imported, where the environment does not say otherwise; docs/performance.md."""


def _launch(name: str, words: Sequence[str]) -> int:
    for variable, value in ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    command = COMMANDS[name]
    if command.plain:
        return int(import_module(command.module).main(words))
    from shiqrun.config.launch import launch  # Hydra, and with a run torch: only for a command

    if command.word and words and words[0][:1] != "-" and "=" not in words[0]:
        words = [f"{command.word}={words[0]}", *words[1:]]
    return launch(name, words, module=command.module, writes=command.writes)


def _unknown(word: str) -> str:
    if "=" in word:
        return f"{word!r} stands where the command belongs; did you mean shiqrun train {word}?"
    return f"no command {word!r}{did_you_mean(word, COMMANDS)} (commands: {', '.join(COMMANDS)}; see shiqrun --help)"


def _complete(words: Sequence[str]) -> int:
    """Prints the choices at the cursor of COMP_LINE. Hydra knows no commands, so it sees the line without ours."""
    if not any(word.startswith("query=") for word in words):
        return _launch("train", ["-sc", *words])
    line = os.environ.get("COMP_LINE", "")
    line = line[: int(os.environ.get("COMP_POINT", len(line)))]
    rest = line.split(maxsplit=2)[1:]
    if not rest or (len(rest) == 1 and not line[-1].isspace()):
        print(" ".join(name for name in COMMANDS if name.startswith("".join(rest))))
    elif rest[0] in COMMANDS:
        os.environ["COMP_LINE"] = "shiqrun " + "".join(rest[1:])
        return _launch(rest[0], ["-sc", *words])
    return 0
