"""Hydra's flags that shiqrun refuses, and the run directory that `resume=DIR` names."""

from argparse import Namespace
from pathlib import Path

from shiqrun.errors import InputError
from shiqrun.util.quoting import unquote


def refuse_flags(args: Namespace) -> None:
    """Raise InputError if a flag of Hydra was given that does not work here."""
    for flag in ("config_path", "config_name", "experimental_rerun"):
        if getattr(args, flag) is not None:
            raise InputError(
                f"--{flag.replace('_', '-')}: not allowed here; --config-dir DIR adds a folder of your own YAML"
            )
    if sum(map(bool, (args.run, args.cfg, args.multirun, args.info, args.shell_completion))) > 1:
        raise InputError("only one of --run, --multirun, --cfg, --info and --shell-completion can be given")
    if args.resolve and not (args.cfg or args.help):
        raise InputError("--resolve: only with --cfg or --help")


def folder_to_resume(args: Namespace) -> Path | None:
    """Return the run directory of `resume=DIR`, or None if it was not given.

    Raises:
        InputError: another setting was given too.
    """
    given = [override for override in args.overrides if override.lstrip("+").startswith("resume=")]
    value = unquote(given[-1].partition("=")[2]) if given else "null"
    if value in ("", "null"):
        return None
    others = [override for override in args.overrides if override not in given] + ["--multirun"] * args.multirun
    if others:
        raise InputError(
            f"resume={value}: goes on with the config of that run, so nothing else can be set; leave out "
            f"{', '.join(others)}"
        )
    return Path(value)
