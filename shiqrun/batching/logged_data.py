"""From a data set to the batches of a run: split, encode, count what was dropped, hand out steps."""

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt, Lt
from lightning.pytorch import LightningDataModule
from transformers import PreTrainedTokenizerBase

from shiqrun.batching.encode import TrainOn, encode
from shiqrun.batching.prefetch import Ahead
from shiqrun.batching.rows import Batches, Rows, Steps
from shiqrun.batching.selection import compared, distinct
from shiqrun.data.chats import prompt_name
from shiqrun.data.source import Source
from shiqrun.errors import InputError
from shiqrun.types import Example, Trajectories

log = logging.getLogger("shiqrun")
Split = Literal["train", "val"]
SPLITS: tuple[Split, Split] = ("train", "val")
Offset = Literal["none", "mean", "group_mean"] | float
SEEN = "validation, but the prompt is in the training split too"


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """What every data set understands beside its own keys (`conf/data/*.yaml`).

    Attributes:
        limit: examples read at most from a split, None for all.
        max_length: tokens; longer trajectories are dropped. None: the model's context.
        val_fraction: share of the prompts held out where the data set has no validation split.
        completions: "all", or "best": of each example only the completion with the largest return (for `algo=sft`).
        train_on: "assistant", or "response" (every token after the prompt; for `algo=sft`).
        distinct: of completions that are equal, token by token and with their prompt, only the first is kept.
    """

    limit: Annotated[int, Gt(0)] | None
    max_length: Annotated[int, Gt(1)] | None
    val_fraction: Annotated[float, Ge(0), Lt(1)]
    completions: Literal["all", "best"]
    train_on: TrainOn
    distinct: bool = False


@dataclass(frozen=True)
class Encoded:
    """Both splits in tokens, and what was left out of each, by reason.

    Attributes:
        prompts: `prompt_name` of every prompt of the training split, by its messages whatever the rows' `prompt_id`
            says, also of rows that were dropped: every method and reward model of one data set knows the same.
    """

    train: Rows
    val: Rows
    dropped: Counter[str]
    fingerprint: str
    prompts: frozenset[str] = frozenset()


def held_out(prompt_id: str, fraction: float) -> bool:
    """Whether a prompt belongs to validation: by a hash of the prompt alone, so that it never changes sides."""
    digest = hashlib.blake2b(prompt_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2**64


def examples_of(source: Source, split: Split, settings: DataSettings) -> Iterator[Example]:
    """The examples of a split, at most `limit`; "val" is the source's own or a held-out share of its prompts."""
    own = split in source.splits
    given: Iterable[Example] = source.load(split if own else "train")
    left = settings.limit
    for example in given:
        hashed = "val" not in source.splits
        if hashed and held_out(example.prompt_id, settings.val_fraction) != (split == "val"):
            continue
        if left is not None:
            if left == 0:
                return
            left -= 1
        yield example if settings.completions == "all" else _best(example)


def _best(example: Example) -> Example:
    """The example with its best completion alone, the first of those with the largest return.

    One without completions, a problem that nobody solved, stays as it is.
    """
    if not example.completions:
        return example
    if example.rewards is None:
        raise InputError(
            f"{example.source}: no rewards to choose by; data.completions=best needs them (for pairs data.pair_rewards)"
        )
    totals = [sum(r) if isinstance(r, Sequence) else r for r in example.rewards]
    best = totals.index(max(totals))
    return replace(example, completions=[example.completions[best]], rewards=[example.rewards[best]])


def both_splits(source: Source, settings: DataSettings, dropped: Counter[str]) -> Iterator[tuple[Split, Example]]:
    """What `examples_of` gives of "train" and of "val", in the order of the file where both come from the same.

    What the loader leaves out is counted in `dropped`.
    """
    if "val" in source.splits:
        for own in SPLITS:
            yield from ((own, example) for example in examples_of(source, own, settings))
            dropped.update(source.dropped)
        return
    sides = SPLITS if settings.val_fraction else SPLITS[:1]
    taken: Counter[str] = Counter()
    for example in source.load("train"):
        if settings.limit is not None and all(taken[side] == settings.limit for side in sides):
            break
        split: Split = "val" if held_out(example.prompt_id, settings.val_fraction) else "train"
        if settings.limit is None or taken[split] < settings.limit:
            taken[split] += 1
            yield split, example if settings.completions == "all" else _best(example)
    dropped.update(source.dropped)


def unseen(examples: Iterable[Example], trained: Set[str], dropped: Counter[str]) -> Iterator[Example]:
    """The examples whose prompt is not among the names in `trained`; what is left out is counted by completion."""
    for example in examples:
        if prompt_name(example.messages) in trained:
            dropped[SEEN] += len(example.completions)
        else:
            yield example


def _named(examples: Iterable[Example], names: list[str]) -> Iterator[Example]:
    """The examples; the name of each one's prompt is appended to `names`."""
    for example in examples:
        names.append(prompt_name(example.messages))
        yield example


def load(
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    settings: DataSettings,
    *,
    context: int | None,
    compared_by: str | None = None,
    together: bool = False,
    progress: Callable[[Iterable[Example], str], Iterable[Example]] = lambda x, _: x,
) -> Encoded:
    """Reads and encodes both splits; no prompt of the validation split is trained on.

    Args:
        source: the data set.
        tokenizer: with a chat template.
        settings: see `DataSettings`.
        context: tokens the model can read; the default of `max_length`.
        compared_by: name of the method, if it compares completions of one prompt: rows of a prompt then stay together,
            and a row alone with its prompt is dropped.
        together: they stay together for any method, so that their prompt is read once.
        progress: wraps an iterable of examples, to show how far it is.

    Raises:
        InputError: no row is left of the training split; the message counts the reasons.
    """
    limit = settings.max_length or context
    if settings.max_length and context and settings.max_length > context:
        raise InputError(f"data.max_length={settings.max_length} is more than the model's context of {context} tokens")
    dropped: Counter[str] = Counter()
    pad = next(i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if i is not None)
    own_template = source.chat_template
    encoder = partial(encode, max_length=limit, train_on=settings.train_on, stable=own_template)
    splits, names, prompts = [], list[str](), frozenset[str]()
    for split in SPLITS:
        examples = progress(examples_of(source, split, settings), f"encoding {split}")
        new = _named(examples, names) if split == "train" else unseen(examples, prompts, dropped)
        encoded = list(encoder(new, tokenizer, dropped))
        kept = compared(distinct(encoded, dropped) if settings.distinct else encoded, dropped, compared_by)
        splits.append(Rows(kept, pad, together=together or bool(compared_by), compared=bool(compared_by)))
        prompts = frozenset(names)  # the training split's; the other names none
        if split in source.splits:  # a held-out split reads the same rows again
            dropped.update(source.dropped)
    train, val = splits
    if not len(train):
        why = [f"{n} {reason}" for reason, n in dropped.most_common()]
        why += [f"all {len(val)} are held out for validation (data.val_fraction)"] if len(val) else []
        reasons = ", ".join(why) or "the data set is empty"
        advice = "raise data.max_length" if any("max_length" in reason for reason in dropped) else "look at the data"
        raise InputError(f"no training trajectory is left: {reasons}; {advice}")
    return Encoded(train, val, dropped, fingerprint(train, val), prompts)


def fingerprint(*splits: Rows) -> str:
    """A hash of every token, action, reward and group: equal data give equal batches."""
    digest = hashlib.blake2b(digest_size=16)
    for rows in splits:
        for t in rows.trajectories:
            for part in (t.input_ids, t.action_index, t.rewards):
                digest.update(b"|" if part is None else part.tobytes() + b",")
        digest.update(rows.group.tobytes())
    return digest.hexdigest()


def set_offset(encoded: Encoded, how: Offset) -> float:
    """Sets what is taken from the reward of every trajectory's last action; returns its mean over training rows.

    "mean" is the training split's mean return, "group_mean" the mean over the completions of the row's prompt, a
    number is itself. pi* does not change with a constant per prompt; ShiQ's finite-data solution does.
    """
    center = encoded.train.returns.mean() if how == "mean" else 0.0 if isinstance(how, str) else how
    for rows in (encoded.train, encoded.val):
        rows.offset = offsets(rows, how, center)
    return float(encoded.train.offset.mean())


def offsets(rows: Rows, how: Offset, center: float) -> np.ndarray:
    """`[rows]` float32, what is taken from each last reward: `center`, or with "group_mean" the group's mean return."""
    if how != "group_mean" or not len(rows):
        return np.full(len(rows), center, np.float32)
    sums = np.bincount(rows.group, rows.returns.astype(np.float64))
    return (sums / np.bincount(rows.group))[rows.group].astype(np.float32)


class LoggedData(LightningDataModule):
    """The batches of a run; the training loader starts at the step where training stands.

    Args:
        encoded: what `load` made.
        batch_size: trajectories of an optimiser step, over all ranks.
        micro_batch_tokens: tokens of one forward pass.
        seed: of the order of rows.
    """

    def __init__(self, encoded: Encoded, *, batch_size: int, micro_batch_tokens: int, seed: int) -> None:
        super().__init__()
        self.encoded, self.batch_size, self.tokens, self.seed = encoded, batch_size, micro_batch_tokens, seed
        self._ahead: Ahead | None = None

    def _ranks(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def train_dataloader(self) -> Ahead:
        """Optimiser steps from the trainer's global step on, without end, made in a thread while others run."""
        self._close()
        rank, world = self._ranks()
        self.steps = Steps(
            self.encoded.train,
            batch_size=self.batch_size,
            micro_batch_tokens=self.tokens,
            seed=self.seed,
            start=self.trainer.global_step if self.trainer else 0,
            rank=rank,
            world=world,
        )
        self._ahead = Ahead(self.steps, self.trainer.strategy.root_device if self.trainer else torch.device("cpu"))
        return self._ahead

    def transfer_batch_to_device(
        self, batch: list[Trajectories], device: torch.device, dataloader_idx: int
    ) -> list[Trajectories]:
        """The batches of a step on the device; the copy of what is pinned goes on while the step begins."""
        return batch if device.type == "cpu" else [micro.to(device) for micro in batch]

    def teardown(self, stage: str) -> None:
        """The thread ends with the loop."""
        self._close()

    def on_exception(self, exception: BaseException) -> None:
        """And with an error or a signal."""
        self._close()

    def _close(self) -> None:
        if self._ahead is not None:
            self._ahead.close()

    def validation(self) -> Batches:
        """This rank's share of the validation split."""
        rank, world = self._ranks()
        return Batches(self.encoded.val, tokens=self.tokens, rank=rank, world=world)

    def passes(self, step: int) -> float:
        """Over the logged training trajectories, after so many optimiser steps."""
        return step / self.encoded.train.steps_per_epoch(self.batch_size)

    def sources(self, step: int, micro_batch: int) -> list[str]:
        """Where the rows of a micro-batch of this rank came from, for messages."""
        cut = self.steps.rows_of(step)
        return [self.encoded.train.trajectories[i].source for i in (cut[micro_batch] if cut else [])]
