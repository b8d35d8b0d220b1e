"""`shiqrun eval` evaluates a policy: by scored completions, by episodes, or exactly where the optimum is known."""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, MinLen
from omegaconf import DictConfig, OmegaConf

from shiqrun.config import run_directory as rundir
from shiqrun.config.choices import build_data, build_reward
from shiqrun.config.of_run import beta_of_run, data_node, with_evaluation_of_run
from shiqrun.config.validate import COMMON_NODES, ENDPOINT_NODE, Schema, build, settings, target
from shiqrun.errors import InputError
from shiqrun.util.quoting import quote_for_shell

if TYPE_CHECKING:
    from shiqrun.data.source import ExactEvaluation
    from shiqrun.evaluation.evaluator import PolicyEvaluator
    from shiqrun.evaluation.subject import Subject
    from shiqrun.rewards.reward import Reward
    from shiqrun.sampling.endpoint import Endpoint
    from shiqrun.settings import AnswerSettings

SCHEMA = Schema(
    root="shiqrun.commands.eval.Root",
    nodes={**COMMON_NODES, **ENDPOINT_NODE, "eval": "shiqrun.settings.AnswerSettings"},
    groups=[*COMMON_NODES],
)
READABLE = ("completions.md", "episodes.md")
"""The files of an evaluation that are written for reading."""
MODEL = "model"
"""`eval.policy=model` evaluates a model; other names are scripted policies of the data set's environment."""


@dataclass(frozen=True, kw_only=True)
class Root:
    """`Root` holds the keys of `conf/eval.yaml` that are no groups."""

    run: Annotated[str, MinLen(1)] | None
    checkpoint: Literal["policy", "last", "best"]
    reference: Annotated[str, MinLen(1)] | None
    seed: Annotated[int, Ge(0)]
    run_dir: Annotated[str, MinLen(1)]
    resume: str | None = None
    dry_run: bool
    reward: Any = None


def run(config: DictConfig, run_dir: Path) -> None:
    """Evaluate a policy into `run_dir`, or only print what would be evaluated."""
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    from shiqrun.settings import AnswerSettings

    disable_progress_bar()
    set_verbosity_error()
    if config.run:
        config = with_evaluation_of_run(config, rundir.load(Path(config.run)))
    asked = settings(config.eval, AnswerSettings)
    if asked.policy == MODEL:
        _evaluate_model(config, run_dir, asked)
    else:
        _evaluate_script(config, run_dir, asked)


def _evaluate_model(config: DictConfig, run_dir: Path, asked: "AnswerSettings") -> None:
    """Evaluate the policy of a run, or of a directory or the Hub."""
    from shiqrun.console import waiting
    from shiqrun.evaluation.build import build_evaluator
    from shiqrun.sampling.endpoint import EndpointSettings, endpoint_of

    began = time.perf_counter()
    with waiting("loading the policy and its reference"):
        reward = build_reward(config.reward) if config.get("reward") else None
        subject = _of_run(config) if config.run else _of_path(config)
    beta = asked.beta or (subject.beta if reward is None or subject.pays(reward) else None)
    endpoint = endpoint_of(settings(config.endpoint, EndpointSettings), subject.tokenizer)
    exact = _exact(subject, asked, reward or endpoint, beta) if subject.source.evaluated_exactly else None
    evaluator = None
    if exact is None:
        evaluator = build_evaluator(
            subject.source,
            subject.data,
            subject.tokenizer,
            asked,
            name=subject.name,
            split=asked.split,
            reward=reward,
            beta=beta,
            tokens=asked.batch_tokens,
            context=subject.context,
            training_prompts=subject.training_prompts,
            endpoint=endpoint,
        )
    if config.dry_run:
        _print_dry_run(evaluator.description() if evaluator else "evaluated exactly, nothing is sampled")
        return
    with waiting("evaluating exactly"):
        metrics = exact.evaluate(subject.policy.model) if exact else {}
    if evaluator is not None:
        metrics = _sample_and_measure(evaluator, subject, config, run_dir)
    about = {"exact": exact is not None, "beta": beta, **subject.about()}
    about |= {f"reward/{key}": value for key, value in (reward.about() if reward else {}).items()}
    _write_metrics(run_dir, metrics, about, asked, seconds=time.perf_counter() - began, title=subject.title)


def _sample_and_measure(
    evaluator: "PolicyEvaluator", subject: "Subject", config: DictConfig, run_dir: Path
) -> dict[str, float]:
    """Run the evaluator on a policy, write its completions or episodes, and return the metrics."""
    from shiqrun.evaluation.result_files import write_results

    device = target(config.hardware).device()
    evaluator.begin(subject.reference, device)
    result = evaluator.run(subject.policy.to(device))
    write_results(run_dir, result)
    return result.metrics


def _exact(
    subject: "Subject", asked: "AnswerSettings", given: "Reward | Endpoint | None", beta: float | None
) -> "ExactEvaluation | None":
    """Return the exact evaluation of a problem with a known optimum, under the subject's reference.

    Raises:
        InputError: a reward or an endpoint is given, or there is no reference or no beta.
    """
    data = f"data={subject.name}"
    if given is not None:
        key = "endpoint.base_url" if hasattr(given, "served") else "reward"
        raise InputError(f"{key}: {data} pays its own rewards and is evaluated exactly; leave it out")
    if subject.reference is None:
        raise InputError(f"{data} is evaluated exactly against a reference; give reference=DIR, or run=RUN_DIR")
    if beta is None:
        raise InputError(f"{data} is evaluated exactly at a beta, and none is known here; set eval.beta")
    exact = subject.source.exact(subject.tokenizer, split=asked.split, beta=beta)
    if exact is not None:
        with subject.reference.as_policy() as policy:
            exact.set_reference(policy.model)
    return exact


def _evaluate_script(config: DictConfig, run_dir: Path, asked: "AnswerSettings") -> None:
    """Let a scripted policy of the data set's environment play: a check of everything but the model.

    Raises:
        InputError: a run, a reference or a reward is given, or the environment has no such policy.
    """
    from shiqrun.evaluation.episodes import choose_tasks, evaluate_script, expect_script, tasks_of
    from shiqrun.evaluation.result_files import write_results

    began, name = time.perf_counter(), asked.policy
    node = data_node(config, rundir.load(Path(config.run)), SCHEMA) if config.run else config.data
    source, data = build_data(node)
    expect_script(name, source, f"data={node.name}")
    for key in ("run", "reference", "reward", "endpoint.base_url"):
        if value := OmegaConf.select(config, key):
            value = value if isinstance(value, str) else value.get("name")
            raise InputError(
                f"eval.policy={name} plays no model and earns the environment's rewards; leave out {key}={value}"
            )
    tasks = choose_tasks(tasks_of(source, asked.split, data), asked.max_prompts, data.limit)
    if config.dry_run:
        _print_dry_run(f"{len(tasks)} tasks, played by the scripted policy {name}")
        return
    result = evaluate_script(name, source.environment, tasks)
    write_results(run_dir, result)
    about = {"exact": False, "beta": None, "policy": name, "data": config.data.name, **source.about()}
    title = f"scripted policy {name} on {config.data.name}"
    _write_metrics(run_dir, result.metrics, about, asked, seconds=time.perf_counter() - began, title=title)


def _print_dry_run(what: str) -> None:
    from shiqrun.console import console, say_dry_run

    console.print(what)
    say_dry_run()


def _write_metrics(
    run_dir: Path,
    metrics: dict[str, float],
    about: dict[str, Any],
    asked: "AnswerSettings",
    *,
    seconds: float,
    title: str,
) -> None:
    """Write the metrics to `eval.json` and print their table."""
    from shiqrun.console import console, say_next
    from shiqrun.evaluation.result_files import result_table
    from shiqrun.training.artifacts import provenance, write_json

    found = {f"eval/{name}": value for name, value in metrics.items()}
    known = {name: value if math.isfinite(value) else None for name, value in found.items()}  # JSON has no NaN
    asked_for = {f"settings/{key}": value for key, value in sorted(vars(asked).items())}
    write_json(run_dir / "eval.json", {**known, "seconds": seconds, **about, **asked_for, **provenance()})
    console.print(result_table(found, title=title))
    console.print(run_dir / "eval.json", highlight=False)
    read = [f"read {quote_for_shell(run_dir / name)}" for name in READABLE if (run_dir / name).exists()]
    credit = [f"shiqrun inspect run={quote_for_shell(about['run'])}"] if about.get("run") else []
    say_next(*read, *credit, *(["shiqrun eval --help: other prompts and rewards"] if not read + credit else []))


def _of_run(config: DictConfig) -> "Subject":
    """Load the policy of a run, its starting model as reference, and its data unless others are given."""
    from shiqrun.batching.logged_data import examples_of
    from shiqrun.evaluation.subject import Subject, trained_policy
    from shiqrun.models.policy import ModelSettings

    folder = Path(config.run)
    former = rundir.load(folder)
    node = data_node(config, former, SCHEMA)
    if config.reference is not None:
        raise InputError(f"run={folder} brings its own reference; leave out reference={config.reference}")
    own, own_settings = build_data(former.data)
    choice, model = build(former.model, ModelSettings)
    trained = trained_policy(
        folder,
        choice,
        model,
        checkpoint=config.checkpoint,
        seed=former.seed,
        autocast=target(config.hardware).autocast(),
        weights=target(former.hardware).dtype,
        examples=lambda: examples_of(own, "train", own_settings),
        source=own,
    )
    source, data = build_data(node)
    shared = OmegaConf.select(former, "rollout._target_") or former.algo.get("same_unit")
    trained_by = former.eval.get("reward") if shared else None
    return Subject(
        title=f"{former.algo.name} on {former.data.name}, {folder}",
        name=node.name,
        source=source,
        data=data,
        training=lambda: examples_of(own, "train", own_settings),
        tokenizer=trained.tokenizer,
        policy=trained.policy,
        reference=trained.reference,
        context=choice.context(),
        beta=beta_of_run(former),
        learned_from=(former.data.name, own),
        rewarded_by=None if trained_by is None else build_reward(trained_by).fingerprint(),
        where={"run": str(folder), "checkpoint": config.checkpoint, "algo": former.algo.name, "data": node.name},
    )


def _of_path(config: DictConfig) -> "Subject":
    """Load a policy that no run of ours made, and the reference that it is compared with."""
    from shiqrun.batching.logged_data import examples_of
    from shiqrun.evaluation.subject import Subject
    from shiqrun.models.policy import ModelSettings, Policy
    from shiqrun.models.precision import build_model
    from shiqrun.models.pretrained import Pretrained
    from shiqrun.models.reference import FrozenReference

    source, data = build_data(config.data)
    choice, _ = build(config.model, ModelSettings)
    tokenizer = choice.tokenizer(source, examples_of(source, "train", data))
    hardware, reference = target(config.hardware), None
    if config.reference is not None:
        other = Pretrained(path=config.reference, trust_remote_code=bool(config.model.get("trust_remote_code")))
        try:
            vocabulary = other.tokenizer(source, ()).get_vocab()
            started = build_model(other, tokenizer, config.seed, hardware.dtype)
        except InputError as error:
            raise InputError(str(error).replace("model.path", "reference")) from error
        if vocabulary != tokenizer.get_vocab():
            raise InputError(f"reference={config.reference}: another vocabulary than the policy's; no KL between them")
        reference = FrozenReference(Policy(started, autocast=hardware.autocast()))
    return Subject(
        title=f"{config.model.get('path') or 'random weights'} on {config.data.name}",
        name=config.data.name,
        source=source,
        data=data,
        training=lambda: examples_of(source, "train", data),
        tokenizer=tokenizer,
        policy=Policy(build_model(choice, tokenizer, config.seed, hardware.dtype), autocast=hardware.autocast()),
        reference=reference,
        context=choice.context(),
        beta=None,
        learned_from=(config.data.name, source),
        where={"model": config.model.get("path"), "reference": config.reference, "data": config.data.name},
    )
