"""`main` runs `shiqrun COMMAND [key=value ...] [flags]`; the module of a command is imported when it is chosen."""

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from shiqrun.util.closed_pipe import CLOSED_PIPE, drop_output, is_output_closed
from shiqrun.util.full_disk import full_disk
from shiqrun.util.nearest import did_you_mean


class Command(NamedTuple):
    """A command names the module that runs it, and says how the words behind it are read.

    Attributes:
        module: the module with its `run(config, run_dir)` and `SCHEMA`.
        summary: one line of help.
        writes: whether the command makes a run directory.
        word: the config group that a bare word after the command chooses from; None if there is no such word.
        plain: the command takes paths and flags, and has no config; its module has `main(words) -> exit code`.
    """

    module: str
    summary: str
    writes: bool
    word: str | None = None
    plain: bool = False


COMMANDS = {
    "train": Command("shiqrun.commands.train", "train a policy on logged data, or on samples too", writes=True),
    "eval": Command("shiqrun.commands.eval", "score a policy's completions, measure its KL", writes=True),
    "score": Command("shiqrun.commands.score", "score the completions of a data set by a reward", writes=True),
    "values": Command("shiqrun.commands.values", "estimate what the reference earns on each prompt", writes=True),
    "pivotal": Command("shiqrun.commands.pivotal", "find tokens at which the chance of success jumps", writes=True),
    "sweep": Command("shiqrun.commands.sweep", "train a grid of settings, one process each", writes=True),
    "compare": Command("shiqrun.commands.compare", "compare methods on one data set and model", writes=True),
    "report": Command("shiqrun.commands.report", "write one HTML page about runs and sweeps", writes=False, plain=True),
    "convert": Command("shiqrun.commands.convert", "turn logs of other tools into rows", writes=False, plain=True),
    "export": Command(
        "shiqrun.commands.export", "write a run's model for transformers, peft or llama.cpp", writes=False, plain=True
    ),
    "push": Command("shiqrun.commands.push", "upload a run's model to the Hugging Face Hub", writes=False, plain=True),
    "inspect": Command("shiqrun.commands.inspect", "print trajectories as the losses see them", writes=False),
    "doctor": Command(
        "shiqrun.commands.doctor", "check what this machine offers, and its sandbox", writes=False, plain=True
    ),
    "toy": Command("shiqrun.commands.toy", "run a tabular study that has an exact optimum", writes=True, word="study"),
}

HELP = """\
Experiments in RL fine-tuning of language models from logged data, at the level of tokens.

usage: shiqrun COMMAND [key=value ...] [flags]

Commands:
{commands}

  shiqrun COMMAND --help       what to choose and to set, with examples
  shiqrun --version            the version and its git commit
  eval "$(shiqrun -sc install=bash)"   completion of commands, groups and keys in this shell

Examples:
  shiqrun train experiment=demo_reference    the embedded problem: a reference for treasure maps, on the CPU
  shiqrun train dry_run=true                 print what would be run, and whether it fits into memory
  shiqrun train -m algo.lam=0.9,1 seed=0,1   four runs, one after the other
  shiqrun train experiment=demo model.path=outputs/demo/reference/policy algo=dro   # another loss, after `make demo`
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; return its exit code: 0, 1 for a failure, 2 for unusable input, 130 for an interrupt."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        commands = "\n".join(f"  {name:<9} {command.summary}" for name, command in COMMANDS.items())
        print(HELP.format(commands=commands), end="")
        return 0
    if words[0] == "--version":
        from shiqrun.util.code_version import describe

        print(describe())
        return 0
    if words[0] in ("-sc", "--shell-completion"):
        return _complete(words[1:])
    if words[0] not in COMMANDS:
        print(f"shiqrun: error: {_unknown(words[0])}", file=sys.stderr)
        return 2
    try:
        Path.cwd()
    except FileNotFoundError:
        print("shiqrun: error: the working directory was deleted; cd to one that exists", file=sys.stderr)
        return 2
    try:
        code = _launch(words[0], words[1:])
        sys.stdout.flush()
        return code
    except Exception as error:
        if is_output_closed(error):
            drop_output()
            return CLOSED_PIPE
        if (line := full_disk(error)) is None:
            raise
        print(f"shiqrun: failed: {line}", file=sys.stderr)
        return 1


ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin starve each other where cores are shared
    # bfloat16 products on a CPU compile a kernel for every length that batches have, and keep 1024 of them, twice
    "LRU_CACHE_CAPACITY": "16",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16",
}
"""Variables that are set before torch is imported, unless the user has set them; see docs/performance.md."""


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
    """Print the choices at the cursor of COMP_LINE. Hydra gets the line without the command, which it does not know."""
    if not any(word.startswith("query=") for word in words):
        return _launch("train", ["-sc", *words])
    line = os.environ.get("COMP_LINE", "")
    line = line[: int(os.environ.get("COMP_POINT", len(line)))]
    rest = line.split(maxsplit=2)[1:]
    if not rest or (len(rest) == 1 and not line[-1].isspace()):
        print(" ".join(name for name in COMMANDS if name.startswith("".join(rest))))
        return 0
    command, last = COMMANDS.get(rest[0]), "" if line[-1].isspace() else line.split()[-1]
    if command is None or command.plain:
        return 0  # the shell completes the names of files
    from shiqrun.config.completion import choices, paths

    if command.word and len(line.split()) == 2 + bool(last) and "=" not in last:
        print(*(name for name in choices(command.word) if name.startswith(last)))
        return 0
    print(*paths(last))
    typed = "".join(rest[1:])
    if command.word and "=" not in typed.split()[0]:
        typed = f"{command.word}={typed}"
    os.environ["COMP_LINE"] = f"shiqrun {typed}"
    return _launch(rest[0], ["-sc", *words])
