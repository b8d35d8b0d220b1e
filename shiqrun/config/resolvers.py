"""`conf/*.yaml` uses these OmegaConf resolvers: `${slug:}`, `${inside:}`, `${suggested:}` and `${choices:}`."""

from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from shiqrun.config.locate import locate
from shiqrun.errors import InputError
from shiqrun.util.quoting import slug


def inside(folder: str | None, name: str, otherwise: str) -> str:
    """Return `folder/name`, or `otherwise` where there is no folder."""
    return str(Path(folder) / name) if folder else otherwise


def suggested(group: str, key: str, otherwise: Any, *, _root_: DictConfig) -> Any:
    """Return the value that the chosen data set or model suggests for a setting of another node.

    A class that has better values for its use than the general ones lists them in its class attribute `suggested`, as
    `suggested = {"trainer.learning_rate": 2e-3}`. What the command line or an experiment sets wins over it.

    Args:
        group: the node whose `_target_` is asked, "data" or "model".
        key: the dotted name of the setting.
        otherwise: the value where the class suggests none.
    """
    node = _root_.get(group) or {}
    try:
        chosen = locate(f"{group}._target_", node["_target_"]) if "_target_" in node else None
    except InputError:  # `validate.check` reports it, with all that is wrong with the node
        return otherwise
    return getattr(chosen, "suggested", {}).get(key, otherwise)


def choices(*groups: str) -> str:
    """Return a line of help for each config group: its name and its choices, those of the user's folders too."""
    hydra = GlobalHydra.instance()
    if not hydra.is_initialized():
        return ", ".join(groups)
    return "\n".join(f"{group}: {', '.join(hydra.config_loader().get_group_options(group))}" for group in groups)


# registered at import: workers of Hydra's launchers only import this
for _resolver in (slug, inside, suggested, choices):
    OmegaConf.register_new_resolver(_resolver.__name__, _resolver, replace=True)
