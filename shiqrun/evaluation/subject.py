"""A `Subject` is what an evaluation evaluates, a policy with reference and data; `trained_policy` loads a run's."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from transformers import PreTrainedTokenizerBase

from shiqrun.batching.logged_data import DataSettings
from shiqrun.batching.prompt_identity import rendered_prompt_keys
from shiqrun.console import track
from shiqrun.data.chats import prompt_name
from shiqrun.data.source import Source
from shiqrun.errors import InputError
from shiqrun.evaluation.checkpoint_files import read_checkpoint
from shiqrun.evaluation.sharded_files import make_whole
from shiqrun.models.adapter import merge_adapter
from shiqrun.models.policy import ModelSettings, Policy, prepare
from shiqrun.models.precision import build_model
from shiqrun.models.pretrained import Pretrained
from shiqrun.models.reference import FrozenReference, Live, weights_fingerprint
from shiqrun.models.saved_files import check_saved_files
from shiqrun.rewards.reward import Reward
from shiqrun.rewards.units import compare_units, of_examples
from shiqrun.settings import STAMP
from shiqrun.types import Example
from shiqrun.util.summary import read_summary


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A subject is a policy with the data set that it is evaluated on and the reference that it is compared with.

    Attributes:
        title: of the table of results.
        name: of the data set.
        source: the data set.
        data: settings of the data set.
        training: yields the examples that the policy was trained on, as far as they are known.
        tokenizer: of the policy.
        policy: on the CPU.
        reference: the model that the KL is measured against, or None.
        context: tokens that the policy can read, where known.
        beta: KL temperature that the policy was trained with, where known, reward units per nat.
        learned_from: name and data set that the policy was trained on, whose rewards have the unit of beta.
        rewarded_by: fingerprint of the reward that a run trained with too, or that its user takes for one of that unit.
        where: what `eval.json` says of the policy's origin.
    """

    title: str
    name: str
    source: Source
    data: DataSettings
    training: Callable[[], Iterable[Example]]
    tokenizer: PreTrainedTokenizerBase
    policy: Policy
    reference: Live | None
    context: int | None
    beta: float | None
    learned_from: tuple[str, Source]
    where: dict[str, Any]
    rewarded_by: str | None = None

    def pays(self, reward: Reward) -> bool:
        """Return whether the policy's beta has the unit of a reward, as far as that is known."""
        if self.rewarded_by is not None:
            return self.rewarded_by == reward.fingerprint()
        name, source = self.learned_from
        return compare_units(of_examples(name, source, self.training()), reward) == "same"

    def training_prompts(self) -> frozenset[str]:
        """Return the names of the prompts that the policy was trained on by text and by tokens, as far as known."""
        by_text = {prompt_name(e.messages): e.messages for e in track(self.training(), "reading training prompts")}
        return frozenset(by_text) | frozenset(rendered_prompt_keys(by_text.values(), self.tokenizer))

    def about(self) -> dict[str, Any]:
        """Return what `eval.json` says of the policy and of the data."""
        return {
            **self.where,
            **self.source.about(),
            "fingerprint/policy": weights_fingerprint(merge_adapter(self.policy.model)),
        }


@dataclass(frozen=True)
class Trained:
    """`Trained` holds the models of a run: its tokenizer, its policy, and the model that it started from."""

    tokenizer: PreTrainedTokenizerBase
    policy: Policy
    reference: FrozenReference


def trained_policy(
    folder: Path,
    choice: Any,
    model: ModelSettings,
    *,
    checkpoint: Literal["policy", "last", "best"],
    seed: int,
    autocast: torch.dtype | None,
    weights: torch.dtype,
    examples: Callable[[], Iterable[Example]],
    source: Source,
) -> Trained:
    """Load the policy of a run directory and its reference, both in eval mode on the CPU.

    Args:
        folder: the run directory.
        choice: the run's model choice, built from its `conf/model/*.yaml`.
        model: settings of the model.
        checkpoint: policy (the model that the run saved at its end), or its last or best checkpoint.
        seed: of the run.
        autocast: dtype of matrix products; None for that of the weights.
        weights: dtype of the weights that the run trained.
        examples: yields the run's training examples, for a tokenizer that is trained on them.
        source: the run's data set.

    Raises:
        InputError: there is no such checkpoint, or its files or the weights at the run's `model.path` have changed
            since.
    """
    saved = Pretrained(path=str(folder / "policy"), trust_remote_code=bool(getattr(choice, "trust_remote_code", False)))
    finished = (folder / "policy" / "config.json").is_file()
    tokenizer = saved.tokenizer(source, ()) if finished else choice.tokenizer(source, examples())
    autocast = autocast or (None if weights == torch.float32 else weights)
    start = build_model(choice, tokenizer, seed, weights)
    now = weights_fingerprint(start)
    _expect_same_start(folder, read_summary(folder).get("fingerprint/model"), now)
    reference = FrozenReference(Policy(start, autocast=autocast))
    if checkpoint == "policy":
        if not finished:
            _refuse_without_policy(folder)
        weights = torch.float32 if model.lora_r else weights  # see `merge_adapter`
        policy = Policy(build_model(saved, tokenizer, seed, weights), autocast=autocast)
    else:
        policy = Policy(prepare(start, model), autocast=autocast)
        saved_state = read_checkpoint(folder / "checkpoints" / f"{checkpoint}.ckpt")
        _expect_same_start(folder, saved_state[STAMP]["model"], now)
        policy.load_state_dict(_weights(saved_state))
    return Trained(tokenizer, policy.eval(), reference)


def _refuse_without_policy(folder: Path) -> NoReturn:
    """Raise InputError for a run directory that has no saved policy; name the reason."""
    check_saved_files(str(folder / "policy"), "run's policy")
    what = "the run is not finished; checkpoint=last takes what there is"
    if (folder / "reward_model").is_dir():
        what = "the run made a reward model, which answers nothing; give a run that trained a policy"
    raise InputError(f"run={folder}: no policy/ in it; {what}")


def _expect_same_start(folder: Path, before: str | None, now: str) -> None:
    if before not in (None, now):
        raise InputError(
            f"run={folder}: the model that it started from (its reference) has changed since: fingerprint {before} "
            f"then, {now} now; put the former weights back at its model.path"
        )


def _weights(checkpoint: dict[str, Any]) -> dict[str, Any]:
    prefix = "policy.model."  # the checkpoint also holds the value function
    weights = checkpoint["state_dict"]
    return {k.removeprefix("policy."): make_whole(v) for k, v in weights.items() if k.startswith(prefix)}
