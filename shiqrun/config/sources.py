"""Hydra reads YAML from these sources: the project's own `conf/`, and before it the user's `--config-dir` and `./conf`.

Both sources add two rules to Hydra's: a choice that says no `name` of its own is named like its file, and a file whose
name starts with an underscore is a base for other files (by `defaults`), which nobody can choose.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar

from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.core_plugins.importlib_resources_config_source import ImportlibResourcesConfigSource
from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig

from shiqrun.errors import InputError

CONFIG_MODULE = "shiqrun.conf"


class ProjectYaml(ImportlibResourcesConfigSource):
    """This source reads the YAML of the package `shiqrun.conf`, each file once a process unless it changes."""

    _parsed: ClassVar[dict[tuple[str, int, int], ConfigResult]] = {}

    @staticmethod
    def scheme() -> str:
        """Return the word before `://` in Hydra's search path."""
        return "shiqrun"

    def load_config(self, config_path: str) -> ConfigResult:
        """Load a YAML file of the config; a choice without a `name` is named like its file."""
        return _with_name(super().load_config(config_path), config_path)

    def _read_config(self, res: Any) -> ConfigResult:
        """Parse a YAML file, or copy what it held when it was parsed; a sweep reads every file once a job."""
        if not isinstance(res, Path):  # a package in a zip file
            return super()._read_config(res)
        state = res.stat()
        key = (str(res), state.st_mtime_ns, state.st_size)
        if key not in self._parsed:
            self._parsed[key] = super()._read_config(res)
        return copy.deepcopy(self._parsed[key])

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """List the choices of a config group, or the groups."""
        return _without_bases(super().list(config_path, results_filter))


class UserYaml(FileConfigSource):
    """This source reads the YAML in a folder of the user's."""

    @staticmethod
    def scheme() -> str:
        """Return the word before `://` in Hydra's search path."""
        return "user"

    def load_config(self, config_path: str) -> ConfigResult:
        """Load a YAML file of the config; a choice without a `name` is named like its file."""
        return _with_name(super().load_config(config_path), config_path)

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """List the choices of a config group, or the groups."""
        return _without_bases(super().list(config_path, results_filter))


def _with_name(result: ConfigResult, config_path: str) -> ConfigResult:
    """Name a choice like its file, unless it has a name or fills other nodes than its group's (`@package`)."""
    group, _, choice = config_path.removesuffix(".yaml").rpartition("/")
    is_choice = group and group.partition("/")[0] != "hydra" and not choice.startswith("_")
    fills_its_own_node = result.header.get("package") is None
    if is_choice and fills_its_own_node and isinstance(result.config, DictConfig) and "name" not in result.config:
        result.config["name"] = choice
    return result


def _without_bases(names: Sequence[str]) -> list[str]:
    return [name for name in names if not name.startswith("_")]


class SearchPath(SearchPathPlugin):
    """A search path puts the user's folders before the project's YAML; Hydra makes it, hence the class variable."""

    folders: ClassVar[Sequence[Path]] = ()

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Replace the project's entry by one that `ProjectYaml` reads, and add the user's folders before it."""
        for element in search_path.get_path():
            if element.path == f"pkg://{CONFIG_MODULE}":
                element.path = f"{ProjectYaml.scheme()}://{CONFIG_MODULE}"
        for folder in self.folders:
            before_ours = SearchPathQuery(provider="main")
            search_path.prepend("user", f"{UserYaml.scheme()}://{folder}", anchor=before_ours)


for _plugin in (ProjectYaml, UserYaml, SearchPath):
    Plugins.instance().register(_plugin)


@contextmanager
def user_folders(command: str, config_dir: str | None) -> Iterator[None]:
    """Have Hydra find YAML, inside the context, in `config_dir`, then in `./conf`, then in the project.

    Raises:
        InputError: `config_dir` is no directory, or a folder holds a config of the command's own name.
    """
    if config_dir is not None and not Path(config_dir).is_dir():
        raise InputError(f"--config-dir {config_dir}: no such directory")
    ours = Path(str(files(CONFIG_MODULE)))
    asked = [Path(folder).resolve() for folder in (config_dir, "conf") if folder is not None]
    folders = [folder for folder in asked if folder.is_dir() and not (ours.exists() and folder.samefile(ours))]
    for folder in folders:
        if (folder / f"{command}.yaml").exists():
            raise InputError(
                f"{folder / command}.yaml would replace the whole config of `shiqrun {command}`; put your settings "
                f"into {folder}/experiment/NAME.yaml (first line `# @package _global_`) and give experiment=NAME"
            )
    SearchPath.folders = folders
    try:
        yield
    finally:
        SearchPath.folders = ()
        GlobalHydra.instance().clear()
