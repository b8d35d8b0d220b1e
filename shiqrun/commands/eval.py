"""`shiqrun eval`: a policy's answers to fixed prompts, scored, and their distance from the reference's."""

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, MinLen
from omegaconf import DictConfig, OmegaConf

from shiqrun.config import run_directory as rundir
from shiqrun.config.of_run import data_beside, evaluation_beside
from shiqrun.config.validate import WITHOUT_TRAINING, Schema, build, settings, target
from shiqrun.errors import InputError

if TYPE_CHECKING:
    from shiqrun.evaluation.episodes import EpisodeEvaluator
    from shiqrun.evaluation.evaluator import CompletionEvaluator
    from shiqrun.evaluation.exact_treasure import ExactTreasure
    from shiqrun.evaluation.subject import Subject
    from shiqrun.rewards.reward import Reward
    from shiqrun.settings import AnswerSettings

log = logging.getLogger("shiqrun")
SCHEMA = Schema(
    root="shiqrun.commands.eval.Root",
    nodes={**WITHOUT_TRAINING, "eval": "shiqrun.settings.AnswerSettings"},
)


@dataclass(frozen=True, kw_only=True)
class Root:
    """Keys of `conf/eval.yaml` that are no groups."""

    run: Annotated[str, MinLen(1)] | None
    checkpoint: Literal["policy", "last", "best"]
    reference: Annotated[str, MinLen(1)] | None
    seed: Annotated[int, Ge(0)]
    run_dir: Annotated[str, MinLen(1)]
    resume: str | None = None
    dry_run: bool
    reward: Any = None


def run(config: DictConfig, run_dir: Path) -> None:
    """Evaluates into `run_dir`, or only says what it would evaluate."""
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    from shiqrun.config.reference_answers import played_by_reference, write_result
    from shiqrun.console import console
    from shiqrun.data.bfcl import Bfcl
    from shiqrun.rewards.labels import in_one_unit
    from shiqrun.settings import AnswerSettings

    disable_progress_bar()
    set_verbosity_error()
    began = time.perf_counter()
    if config.run:
        config = evaluation_beside(config, rundir.load(Path(config.run)))
    asked = settings(config.eval, AnswerSettings)
    if asked.policy == "ground_truth":
        played_by_reference(config, run_dir, asked)
        return
    reward = target(config.reward) if config.get("reward") else None
    subject = _of_run(config) if config.run else _of_path(config)
    beta = asked.beta or (subject.beta if reward is None or in_one_unit(subject.source, reward) else None)
    exact = _exact(subject, asked, reward, beta)
    evaluator = None if exact else _evaluator(subject, asked, reward, beta)
    if config.dry_run:
        console.print(OmegaConf.to_yaml(config, resolve=True), highlight=False, markup=False, soft_wrap=True)
        console.print(evaluator.described() if evaluator else "evaluated exactly, nothing is sampled")
        return
    metrics = exact.evaluate(subject.policy.model) if exact else {}
    if evaluator is not None:
        metrics = _answered(evaluator, subject, config, run_dir)
    about = {"exact": exact is not None, "beta": beta, **subject.about()}
    if isinstance(subject.source, Bfcl):
        about["data/split"] = subject.source.split
    about |= {f"reward/{key}": value for key, value in (reward.about() if reward else {}).items()}
    write_result(run_dir, metrics, about, asked, seconds=time.perf_counter() - began, title=subject.title)


def _answered(
    evaluator: "CompletionEvaluator | EpisodeEvaluator", subject: "Subject", config: DictConfig, run_dir: Path
) -> dict[str, float]:
    """Metrics; the completions are written."""
    from shiqrun.evaluation.answer_files import write_answers

    device = target(config.hardware).device()
    evaluator.begin(subject.reference, device)
    evaluation = evaluator.run(subject.policy.to(device))
    write_answers(run_dir, evaluation)
    return evaluation.metrics


def _exact(
    subject: "Subject", asked: "AnswerSettings", reward: "Reward | None", beta: float | None
) -> "ExactTreasure | None":
    """What knows the result without sampling, where the data set has an optimum that can be enumerated."""
    from shiqrun.data.treasure import Treasure
    from shiqrun.evaluation.exact_treasure import ExactTreasure

    if not isinstance(subject.source, Treasure):
        return None
    if reward is not None:
        raise InputError("reward: data=treasure pays its own rewards and is evaluated exactly; leave it out")
    if subject.reference is None:
        raise InputError("data=treasure is evaluated exactly against a reference; give reference=DIR, or run=RUN_DIR")
    if beta is None:
        raise InputError("data=treasure is evaluated exactly at a beta, and none is known here; set eval.beta")
    exact = ExactTreasure(subject.source, subject.tokenizer, split=asked.split, beta=beta)
    with subject.reference.acting() as policy:
        exact.set_reference(policy.model)
    return exact


def _evaluator(
    subject: "Subject", asked: "AnswerSettings", reward: "Reward | None", beta: float | None
) -> "CompletionEvaluator | EpisodeEvaluator":
    """What samples and scores, or plays."""
    from shiqrun.config.reference_answers import refuse_beside_episodes
    from shiqrun.data.bfcl import Bfcl
    from shiqrun.evaluation.episodes import EpisodeEvaluator, chosen_dialogues
    from shiqrun.evaluation.evaluator import CompletionEvaluator

    if isinstance(subject.source, Bfcl):
        refuse_beside_episodes(reward, asked)
        return EpisodeEvaluator(
            chosen_dialogues(subject.source.evaluated(), asked.max_prompts, subject.data.limit),
            subject.source.rules,
            subject.tokenizer,
            asked,
            tokens=asked.batch_tokens,
            context=subject.context,
            beta=beta,
        )
    prompts = subject.prompts(asked, reward)
    if reward is not None:
        if asked.split == "val":
            reward.refuse_seen([p.messages for p in prompts])
        else:
            log.warning("eval.split=train: a reward model of this data was trained on these prompts")
        reward.fingerprint()  # loads it: what is wrong with it is said before anything is sampled
    return CompletionEvaluator(prompts, subject.tokenizer, asked, tokens=asked.batch_tokens, reward=reward, beta=beta)


def _of_run(config: DictConfig) -> "Subject":
    """The policy of a run, its starting model as reference, its data unless others are given."""
    from shiqrun.batching.logged_data import DataSettings
    from shiqrun.evaluation.subject import Subject, trained_policy
    from shiqrun.models.policy import ModelSettings

    folder = Path(config.run)
    former = rundir.load(folder)
    data_node = data_beside(config, former, SCHEMA)
    if config.reference is not None:
        raise InputError(f"run={folder} brings its own reference; leave out reference={config.reference}")
    own, own_settings = build(former.data, DataSettings)
    choice, model = build(former.model, ModelSettings)
    trained = trained_policy(
        folder,
        choice,
        model,
        checkpoint=config.checkpoint,
        seed=former.seed,
        autocast=target(config.hardware).autocast(),
        examples=lambda: examples(own, own_settings),
        source=own,
    )
    source, data = build(data_node, DataSettings)
    return Subject(
        title=f"{former.algo.name} on {former.data.name}, {folder}",
        source=source,
        data=data,
        training=lambda: examples(own, own_settings),
        tokenizer=trained.tokenizer,
        policy=trained.policy,
        reference=trained.reference,
        context=choice.context(),
        beta=former.algo.get("beta"),
        where={"run": str(folder), "checkpoint": config.checkpoint, "algo": former.algo.name, "data": data_node.name},
    )


def examples(source: Any, data: Any) -> Any:
    """The training examples, for a tokenizer that is made from them."""
    from shiqrun.batching.logged_data import examples_of

    return examples_of(source, "train", data)


def _of_path(config: DictConfig) -> "Subject":
    """A policy that no run of ours made, and what it is compared with."""
    from shiqrun.batching.logged_data import DataSettings
    from shiqrun.evaluation.subject import Subject
    from shiqrun.models.policy import ModelSettings, Policy
    from shiqrun.models.pretrained import Pretrained
    from shiqrun.models.reference import Frozen

    source, data = build(config.data, DataSettings)
    choice, _ = build(config.model, ModelSettings)
    tokenizer, autocast = choice.tokenizer(source, examples(source, data)), target(config.hardware).autocast()
    reference = None
    if config.reference is not None:
        other = Pretrained(path=config.reference, trust_remote_code=bool(config.model.get("trust_remote_code")))
        try:
            vocabulary, started = other.tokenizer(source, ()).get_vocab(), other.build(tokenizer, config.seed)
        except InputError as error:
            raise InputError(str(error).replace("model.path", "reference")) from error
        if vocabulary != tokenizer.get_vocab():
            raise InputError(f"reference={config.reference}: another vocabulary than the policy's; no KL between them")
        reference = Frozen(Policy(started, autocast=autocast))
    return Subject(
        title=f"{config.model.get('path') or 'random weights'} on {config.data.name}",
        source=source,
        data=data,
        training=lambda: examples(source, data),
        tokenizer=tokenizer,
        policy=Policy(choice.build(tokenizer, config.seed), autocast=autocast),
        reference=reference,
        context=choice.context(),
        beta=None,
        where={"model": config.model.get("path"), "reference": config.reference, "data": config.data.name},
    )
