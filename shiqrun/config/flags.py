"""Hydra's flags that shiqrun refuses, and the words that `resume=DIR` takes."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

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


PLACES = tuple(f"hardware.{key}" for key in ("devices", "num_nodes", "strategy", "accelerator"))
"""Keys that say where a run goes on, and by how many processes; they change its numbers by rounding alone."""


def words_of_resume(args: Namespace) -> tuple[Path, list[str]] | None:
    """Return the run directory of `resume=DIR` and the settings of `PLACES` beside it, or None if it was not given.

    Raises:
        InputError: another setting was given too.
    """
    given = [override for override in args.overrides if override.lstrip("+").startswith("resume=")]
    value = unquote(given[-1].partition("=")[2]) if given else "null"
    if value in ("", "null"):
        return None
    places = [override for override in args.overrides if override.partition("=")[0] in PLACES]
    others = [override for override in args.overrides if override not in (*given, *places)]
    others += ["--multirun"] * args.multirun
    if others:
        raise InputError(
            f"resume={value}: goes on with the config of that run, so nothing else can be set but {', '.join(PLACES)}; "
            f"leave out {', '.join(others)}"
        )
    return Path(value), places


def with_places(config: DictConfig, words: Sequence[str]) -> DictConfig:
    """Return a saved config with some of its `PLACES` set anew.

    Raises:
        InputError: the config has no such key.
    """
    changed = config.copy()
    for key in (word.partition("=")[0] for word in words):
        if OmegaConf.select(config, key) is None:
            raise InputError(f"{key}: the run that goes on has no such setting; leave it out")
    changed.merge_with_dotlist(list(words))
    return changed
