"""`load` splits and encodes a data set of logged trajectories; `LoggedData` deals them to optimiser steps."""

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Lt
from lightning.pytorch import LightningDataModule
from transformers import PreTrainedTokenizerBase

from shiqrun.batching.encode import TrainOn, encode
from shiqrun.batching.prefetch import Prefetcher
from shiqrun.batching.rows import Rows
from shiqrun.batching.selection import drop_repeated, drop_uncompared
from shiqrun.batching.steps import Batches, Steps
from shiqrun.data.chats import prompt_name
from shiqrun.data.source import Source
from shiqrun.errors import InputError
from shiqrun.types import Example, Trajectories

log = logging.getLogger("shiqrun")
Split = Literal["train", "val"]
SPLITS: tuple[Split, Split] = ("train", "val")
SEEN = "validation, but the prompt is in the training split too"


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """A `DataSettings` holds what every `conf/data/*.yaml` sets beside its own keys: limits, split and filters.

    Attributes:
        limit: the most examples to read, None for all: the first of the file, of which `val_fraction` is held out. A
            data set with a validation split of its own is read up to the limit in each split.
        max_length: the most tokens of a trajectory; longer ones are dropped. None: the model's context.
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
class EncodedData:
    """An `EncodedData` holds both splits of a data set as token ids, and how many rows were dropped, by reason.

    Attributes:
        train: rows of the training split.
        val: rows of the validation split.
        dropped: number of completions left out, by reason.
        fingerprint: hash of both splits.
        prompts: `prompt_name` of every prompt of the training split, by its messages whatever the rows' `prompt_id`
            says, also of rows that were dropped: every method and reward model of one data set knows the same.
    """

    train: Rows
    val: Rows
    dropped: Counter[str]
    fingerprint: str
    prompts: frozenset[str] = frozenset()


def is_held_out(prompt_id: str, fraction: float) -> bool:
    """Return whether a prompt is held out for validation, by a hash of its id alone: it never changes sides."""
    digest = hashlib.blake2b(prompt_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2**64


def examples_of(source: Source, split: Split, settings: DataSettings) -> Iterator[Example]:
    """Yield the examples of a split among the first `limit`; "val" is the source's own or a share of the prompts."""
    hashed = "val" not in source.splits
    for example in islice(source.load(split if split in source.splits else "train"), settings.limit):
        if hashed and is_held_out(example.prompt_id, settings.val_fraction) != (split == "val"):
            continue
        yield example if settings.completions == "all" else _best(example)


def _best(example: Example) -> Example:
    """Return the example with its best completion alone, the first of those with the largest return.

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
    """Yield the examples of both splits with the name of their split, in file order where both come from one file.

    Examples that the loader leaves out are counted in `dropped`.
    """
    if "val" in source.splits:
        for own in SPLITS:
            yield from ((own, example) for example in examples_of(source, own, settings))
            dropped.update(source.dropped)
        return
    for example in islice(source.load("train"), settings.limit):
        split: Split = "val" if is_held_out(example.prompt_id, settings.val_fraction) else "train"
        yield split, example if settings.completions == "all" else _best(example)
    dropped.update(source.dropped)


def drop_trained_prompts(examples: Iterable[Example], trained: Set[str], dropped: Counter[str]) -> Iterator[Example]:
    """Yield the validation examples whose prompt is not trained on; count the completions of the others as dropped."""
    for example in examples:
        if prompt_name(example.messages) in trained:
            dropped[SEEN] += len(example.completions)
        else:
            yield example


def _record_names(examples: Iterable[Example], names: list[str]) -> Iterator[Example]:
    """Yield the examples, and append the name of each one's prompt to `names`."""
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
    source_name: str = "logged",
    progress: Callable[[Iterable[Example], str], Iterable[Example]] = lambda x, _: x,
) -> EncodedData:
    """Return both splits of a data set, read and encoded; no prompt of the validation split is trained on.

    Args:
        source: the data set.
        tokenizer: with a chat template.
        settings: see `DataSettings`.
        context: tokens that the model can read; the default of `max_length`.
        compared_by: name of the method if it compares completions of one prompt: rows of a prompt then stay together,
            and a row that is alone with its prompt is dropped.
        together: rows of a prompt stay together for any method, so that the prompt is read once.
        source_name: `Rows.source` of the training split; that of the validation split is "val".
        progress: wraps an iterable of examples, to show how far it is.

    Raises:
        InputError: no row is left of the training split; the message counts the reasons.
    """
    limit = settings.max_length or context
    if settings.max_length and context and settings.max_length > context:
        raise InputError(f"data.max_length={settings.max_length} is more than the model's context of {context} tokens")
    dropped: Counter[str] = Counter()
    pad = next(i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if i is not None)
    encoder = partial(encode, max_length=limit, train_on=settings.train_on, stable=source.chat_template)
    grouping = partial(Rows, pad=pad, together=together or bool(compared_by), compared=bool(compared_by))
    splits, names, prompts = [], list[str](), frozenset[str]()
    for split in SPLITS:
        examples = progress(examples_of(source, split, settings), f"encoding {split}")
        new = _record_names(examples, names) if split == "train" else drop_trained_prompts(examples, prompts, dropped)
        encoded = list(encoder(new, tokenizer, dropped))
        kept = drop_uncompared(drop_repeated(encoded, dropped) if settings.distinct else encoded, dropped, compared_by)
        splits.append(grouping(kept, source="val" if split == "val" else source_name))
        prompts = frozenset(names)  # of the training split; the validation split records none
        if split in source.splits:  # a held-out split reads the same rows again
            dropped.update(source.dropped)
    train, val = splits
    _expect_training_rows(train, val, dropped)
    return EncodedData(train, val, dropped, fingerprint(train, val), prompts)


def _expect_training_rows(train: Rows, val: Rows, dropped: Counter[str]) -> None:
    """Check that a trajectory is left to train on.

    Raises:
        InputError: none is; the message counts the reasons.
    """
    if len(train):
        return
    why = [f"{n} {reason}" for reason, n in dropped.most_common()]
    why += [f"all {len(val)} are held out for validation (data.val_fraction)"] if len(val) else []
    reasons = ", ".join(why) or "the data set is empty"
    advice = "raise data.max_length" if any("max_length" in reason for reason in dropped) else "look at the data"
    raise InputError(f"no training trajectory is left: {reasons}; {advice}")


def fingerprint(*splits: Rows) -> str:
    """Return a hash of every token, action, reward and group: equal data give equal batches."""
    digest = hashlib.blake2b(digest_size=16)
    for rows in splits:
        for t in rows.trajectories:
            for part in (t.input_ids, t.action_index, t.rewards):
                digest.update(b"|" if part is None else part.tobytes() + b",")
        digest.update(rows.group.tobytes())
    return digest.hexdigest()


class LoggedData(LightningDataModule):
    """A `LoggedData` gives Lightning the batches of logged trajectories, from the step that training has reached on.

    Args:
        encoded: both splits, annotated.
        batch_size: trajectories of an optimiser step, over all ranks.
        micro_batch_tokens: tokens of one forward pass.
        seed: of the order of rows.
    """

    def __init__(self, encoded: EncodedData, *, batch_size: int, micro_batch_tokens: int, seed: int) -> None:
        super().__init__()
        self.encoded, self.batch_size, self.tokens, self.seed = encoded, batch_size, micro_batch_tokens, seed
        self._ahead: Prefetcher | None = None

    def _ranks(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def train_dataloader(self) -> Prefetcher:
        """Return the batches of all optimiser steps from the trainer's global step on, collated ahead in a thread."""
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
        self._ahead = Prefetcher(self.steps, self.trainer.strategy.root_device if self.trainer else torch.device("cpu"))
        return self._ahead

    def transfer_batch_to_device(
        self, batch: list[Trajectories], device: torch.device, dataloader_idx: int
    ) -> list[Trajectories]:
        """Move the micro-batches of a step to the device; pinned memory is copied while the step begins."""
        return batch if device.type == "cpu" else [micro.to(device) for micro in batch]

    def teardown(self, stage: str) -> None:
        """End the collating thread with the training loop."""
        self._close()

    def on_exception(self, exception: BaseException) -> None:
        """End the collating thread at an error or a signal."""
        self._close()

    def _close(self) -> None:
        if self._ahead is not None:
            self._ahead.close()

    def validation(self) -> Batches:
        """Return the batches of this rank's share of the validation split."""
        rank, world = self._ranks()
        return Batches(self.encoded.val, tokens=self.tokens, rank=rank, world=world)

    def passes(self, step: int) -> float:
        """Return how many passes over the training trajectories `step` optimiser steps are."""
        return step / self.encoded.train.steps_per_epoch(self.batch_size)

    def sources(self, step: int, micro_batch: int) -> list[str]:
        """Return where the rows of a micro-batch of this rank came from, for messages."""
        cut = self.steps.rows_of(step)
        return [self.encoded.train.trajectories[i].source for i in (cut[micro_batch] if cut else [])]
