"""`shiqrun train` turns a checked config into a plan of objects and runs the training."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, Le, MinLen
from omegaconf import DictConfig, OmegaConf

from shiqrun.config.choices import build_data, build_reward, build_trackers
from shiqrun.config.run_directory import default_cache_dir
from shiqrun.config.validate import Schema, build, settings, target
from shiqrun.config.without_environment import environment_variables, without_environment
from shiqrun.errors import InputError
from shiqrun.util.quoting import portable
from shiqrun.util.summary import is_finished

if TYPE_CHECKING:
    from shiqrun.training.plan import Plan

SCHEMA = Schema(
    root="shiqrun.commands.train.Root",
    nodes={
        "algo": "shiqrun.settings.AlgoSettings",
        "data": "shiqrun.batching.logged_data.DataSettings",
        "model": "shiqrun.models.policy.ModelSettings",
        "hardware": None,
        "logger": "shiqrun.settings.LoggerSettings",
        "trainer": "shiqrun.settings.TrainerSettings",
        "eval": "shiqrun.settings.EvalSettings",
        "values": "shiqrun.estimates.prompt_values.ValueSettings",
        "rollout": None,
    },
    groups=("algo", "data", "model", "hardware", "logger", "rollout"),
)
RANKS = True
"""Several processes may train one policy."""


@dataclass(frozen=True, kw_only=True)
class Root:
    """`Root` holds the keys of `conf/train.yaml` that are no groups."""

    seed: Annotated[int, Ge(0), Le(2**32 - 1)]  # the largest that NumPy takes
    run_dir: Annotated[str, MinLen(1)]
    resume: Annotated[str, MinLen(1)] | None
    dry_run: bool
    cache_dir: str | None


def run(config: DictConfig, run_dir: Path) -> None:
    """Train the policy in `run_dir`, or only print what would be done."""
    from shiqrun.console import console, say_dry_run, waiting
    from shiqrun.util.few_collections import few_collections
    from shiqrun.util.quick_imports import without_pictures

    with waiting("starting: Lightning and transformers are loaded"), few_collections(), without_pictures():
        from shiqrun.tracking import close
        from shiqrun.training import run as training
        from shiqrun.training.prepare import prepare_run

    if is_finished(run_dir):
        console.print(f"{run_dir} is finished; see its summary.json")
        return
    loaded = prepare_run(plan(config, run_dir), keeps_rows=not config.dry_run)
    if config.dry_run:
        training.rehearse(loaded)
        say_dry_run()
        return
    try:
        training.execute(loaded, resume=config.resume is not None)
    except BaseException:
        close(exit_code=1)
        raise
    close()


def plan(config: DictConfig, run_dir: Path) -> "Plan":
    """Return the plan of a training run: the objects that the config names."""
    from shiqrun.estimates.prompt_values import ValueSettings
    from shiqrun.models.policy import ModelSettings
    from shiqrun.settings import AlgoSettings, EvalSettings, TrainerSettings
    from shiqrun.training.plan import Plan
    from shiqrun.training.step.eight_bit import library

    loss, algo = build(config.algo, AlgoSettings)
    source, data = build_data(config.data)
    choice, model = build(config.model, ModelSettings)
    shared = without_environment(config)  # what leaves this process: model cards, trackers
    shown: Any = OmegaConf.to_container(shared, resolve=not environment_variables(config))
    hardware, trackers = target(config.hardware), build_trackers(config.logger)
    if hardware.accelerator == "gpu" or hardware.device().type == "cuda":
        _expect_gpu(config.hardware)
    trainer = settings(config.trainer, TrainerSettings)
    if trainer.optimizer == "adamw_8bit" and hardware.strategy != "fsdp":  # which `training.checks` refuses
        library()  # before anything is loaded
    return Plan(
        names={
            "algo": config.algo.name,
            "data": config.data.name,
            "base": portable(shown["model"].get("path") or "random weights"),
        },
        seed=config.seed,
        source=source,
        data=data,
        choice=choice,
        model=model,
        loss=loss,
        algo=algo,
        trainer=trainer,
        eval=settings(config.eval, EvalSettings),
        values=settings(config["values"], ValueSettings),
        reward=build_reward(config.eval.reward) if config.eval.reward else None,
        reward_again=partial(build_reward, config.eval.reward),
        rollout=None if config.rollout.name == "none" else target(config.rollout),
        hardware=hardware,
        cache_dir=Path(config.cache_dir) if config.cache_dir else default_cache_dir(),
        run_dir=run_dir,
        trackers=lambda: [tracker.open(run_dir, shown) for tracker in trackers],
        shown={
            f"{group}.{k}": portable(v)
            for group in ("algo", "trainer")
            for k, v in shown[group].items()
            if k[0] != "_" and k != "grid"
        },
    )


def with_method(plan: "Plan", config: DictConfig) -> "Plan":
    """Return the plan with the method of another config that differs from the plan's in its `algo` node alone."""
    from shiqrun.settings import AlgoSettings

    loss, algo = build(config.algo, AlgoSettings)
    return replace(plan, names={**plan.names, "algo": config.algo.name}, loss=loss, algo=algo)


def _expect_gpu(node: DictConfig) -> None:
    import torch

    if not torch.cuda.is_available():
        raise InputError(f"hardware.accelerator={node.accelerator}, but torch sees no GPU here; use hardware=cpu")
    if node.devices > torch.cuda.device_count():
        raise InputError(f"hardware.devices={node.devices}, but this machine has {torch.cuda.device_count()}")
