"""The data set `bfcl` holds tasks of BFCL-V3 multi-turn: calling functions over several turns, on real backends.

prompt    [functions,] the user's first turn; a chat template that shows tools gets the functions so
turn      messages with calls, `[f(a=1), g()]` or in the form of the template, each answered by its results; a message
          without a call ends the turn
reward    1 for a turn after which the backends' state and the results are those of the reference answer
logged    reference answers and copies of them with mistakes, or any file of dialogues

A policy is trained on 160 samples; `data.split` says which of the 200 it is evaluated on, by default the 40 others.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from annotated_types import Ge

from shiqrun.data.bfcl_replay import differences, replay
from shiqrun.data.bfcl_template import TemplateCalls, template_calls
from shiqrun.data.chats import as_messages, tools_of, with_tools
from shiqrun.data.drops import drop
from shiqrun.data.files import read_rows
from shiqrun.data.source import Source
from shiqrun.environments.bfcl.corruptions import Together, corrupt_turn, turn_messages
from shiqrun.environments.bfcl.dialogue import Arguments, Dialogue, Rewards, Rules, opening_messages
from shiqrun.environments.bfcl.environment import BfclEnvironment
from shiqrun.environments.bfcl.filling import without_arguments
from shiqrun.environments.bfcl.harness import Harness
from shiqrun.environments.bfcl.rendering import Functions, Shown
from shiqrun.environments.bfcl.samples import RELEASE, BfclSample, installed_data, load_samples, release
from shiqrun.environments.bfcl.tool_calls import schemas
from shiqrun.errors import InputError
from shiqrun.types import Example, Message, UnitInterval

log = logging.getLogger("shiqrun")


class Bfcl(Source):
    """A `Bfcl` data set yields the samples of BFCL-V3 multi-turn, each with logged trajectories.

    Args:
        path: `.jsonl[.gz]` or Parquet file of dialogues with `id` and `messages`, which are replayed here and rewarded
            by the checker; None makes trajectories from the reference answers.
        samples: directory with the data files of `bfcl-eval`, None for those of the installed package.
        split: which samples a policy is evaluated on: test (40), train (160) or all.
        rewards, max_steps, functions, result_chars, arguments: see `Rules`.
        together: calls of a message in trajectories that are made here: one, or all of a turn.
        per_sample: trajectories made of a sample; the first is the reference answer.
        corrupt: share of the turns of the other trajectories that get a mistake.
        paid: when a logged trajectory's rewards are paid: each with its turn, or their sum with the last message.
        data_seed: decides which turns, which mistakes, and where in the turn.

    Raises:
        InputError: `bfcl-eval` is not installed.
    """

    suggested: ClassVar[Mapping[str, int]] = {"eval.max_prompts": 200}  # all samples that `split` names

    def __init__(
        self,
        *,
        path: str | None,
        samples: str | None,
        split: Literal["test", "train", "all"],
        rewards: Rewards,
        max_steps: Annotated[int, Ge(1)],
        functions: Functions,
        result_chars: Annotated[int, Ge(1)] | None,
        arguments: Arguments,
        together: Together,
        per_sample: Annotated[int, Ge(1)],
        corrupt: UnitInterval,
        data_seed: Annotated[int, Ge(0)],
        paid: Literal["turn", "final"] = "turn",
    ) -> None:
        folder = installed_data()  # the backends come with it, wherever the samples are from
        if release() != RELEASE:
            log.warning("bfcl-eval %s is installed, figures of BFCL-V3 are of release %s", release(), RELEASE)
        self.samples = load_samples(Path(samples) if samples else folder)
        self.functions = functions
        shown: Shown = "signatures" if functions == "auto" or functions == "tools" else functions
        self.rules = Rules(rewards, max_steps, shown, result_chars, arguments)
        self.splits: tuple[str, ...] = ("train", "val")
        self.split, self.path, self.paid = split, path, paid
        self._made = (together, per_sample, corrupt, data_seed)
        self._said = set[str]()
        self._played: dict[str, list[Example]] = {}
        self._read: dict[str, tuple[list[Example], Counter[str]]] = {}

    def evaluated(self) -> list[BfclSample]:
        """Return the samples that a policy is evaluated on, as `data.split` names them."""
        return [s for s in self.samples if self.split == "all" or s.is_test == (self.split == "test")]

    def use_template(self, tokenizer: Any, *, own: bool, specials: Sequence[str]) -> None:
        """Let a chat template show the functions as tools, as `data.functions` has it; see `Source`.

        Raises:
            InputError: `data.functions=tools`, and the template cannot.
        """
        if self.functions not in ("auto", "tools"):
            return
        found: TemplateCalls | str = "the model has no chat template of its own"
        if own:
            found = template_calls(tokenizer, specials)
        if self.functions == "auto" and self.path is not None:
            found = "data.path shows them as it does"
        if isinstance(found, str) and self.functions == "tools":
            raise InputError(f"data.functions=tools: {found}; use data.functions=signatures, or another model")
        how = f"in the system message ({found})" if isinstance(found, str) else "as tools, by the model's chat template"
        if how not in self._said:
            log.info(f"data=bfcl: the functions are shown {how}; data.functions={self.functions}")
            self._said.add(how)
        calls = None if isinstance(found, str) else found
        if calls != self.rules.calls:
            self.rules = replace(self.rules, calls=calls)
            self._played, self._read = {}, {}

    def environment(self) -> BfclEnvironment:
        """Return the environment that plays the samples of `split`."""
        return BfclEnvironment(self.samples, self.rules)

    def tasks(self, split: str) -> Iterator[Example]:
        """Yield the samples that `data.split` names, without trajectories.

        Raises:
            InputError: another split than "val" is asked for, or `data.split` names no sample.
        """
        if split != "val":
            raise InputError(f"eval.split={split}: data=bfcl plays the samples of data.split; leave eval.split out")
        samples = self.evaluated()
        if not samples:
            raise InputError(f"data.split={self.split}: there are no samples on this side of data.samples")
        for s in samples:
            yield Example(opening_messages(s, self.rules), [], None, prompt_id=s.id, source=s.source)

    def expect_training(self) -> None:
        """Check that a run is evaluated on test samples while it trains."""
        if self.split != "test":
            raise InputError(
                f"data.split={self.split}: a run is evaluated on the test samples while it trains; leave it out, and "
                f"ask `shiqrun eval run=RUN_DIR data.split={self.split}` afterwards"
            )

    def about(self) -> dict[str, Any]:
        """Return the entry of `eval.json` that says which samples a policy was evaluated on."""
        return {"data/split": self.split}

    def load(self, split: str) -> Iterator[Example]:
        """Yield one example per sample: the 160 training samples for "train", the evaluated test samples for "val".

        Raises:
            InputError: a row of `path` is no dialogue of its sample.
        """
        chosen = [s for s in self.samples if not s.is_test]
        if split == "val":
            chosen = [s for s in self.evaluated() if s.is_test]
        for example in self._file(split, chosen) if self.path else self._made_here(split, chosen):
            yield paid_at_the_end(example) if self.paid == "final" else example

    def _made_here(self, split: str, chosen: Sequence[BfclSample]) -> Iterator[Example]:
        """Yield the examples whose trajectories are made of the reference answers; each is played once."""
        played = self._played.setdefault(split, [])
        with Harness() as harness:
            for n, sample in enumerate(chosen):
                if n == len(played):
                    played.append(self._play(sample, harness))
                yield played[n]

    def _file(self, split: str, chosen: Sequence[BfclSample]) -> list[Example]:
        """Return the examples of a split from the file at `path`, which is read once per split."""
        if split not in self._read:
            self.dropped.clear()
            with Harness() as harness:
                self._read[split] = [*self._logged(chosen, harness)], self.dropped.copy()
        examples, dropped = self._read[split]
        self.dropped.clear()
        self.dropped.update(dropped)
        return examples

    def _play(self, sample: BfclSample, harness: Harness) -> Example:
        """Return the example of a sample whose logged trajectories are made here and played against the backends."""
        played = [self._episode(sample, messages, harness) for messages in self._dialogues(sample)]
        dialogues = [(e.messages[e.prompt :], e.message_rewards()) for e in played]
        return _example(sample, dialogues, played[0].messages[: played[0].prompt], sample.source)

    def _dialogues(self, sample: BfclSample) -> Iterator[list[str]]:
        """Yield the policy's messages of each logged trajectory."""
        together, per_sample, share, seed = self._made
        rng, truth = np.random.default_rng([seed, sample.index]), sample.truth
        if self.rules.arguments == "reference":
            truth = [[without_arguments(call) for call in calls] for calls in truth]
        yield [text for calls in truth for text in turn_messages(calls, together)]
        for _ in range(per_sample - 1):
            texts: list[str] = []
            for n, calls in enumerate(truth):
                others = [call for m, turn in enumerate(truth) if m != n for call in turn]
                wrong = rng.random() < share
                texts += corrupt_turn(calls, others, together, rng)[0] if wrong else turn_messages(calls, together)
            yield texts

    def _episode(self, sample: BfclSample, texts: Sequence[str], harness: Harness) -> Dialogue:
        """Return a sample's episode after the policy has said these messages."""
        episode = Dialogue(sample, harness, self.rules)
        for text in texts:
            if not episode.done:
                episode.say(self.rules.message(sample, text))
        episode.close()
        return episode

    def _logged(self, chosen: Sequence[BfclSample], harness: Harness) -> Iterator[Example]:
        """Yield the dialogues of `path` that belong to these samples, those of one sample together."""
        known, wanted = {s.id for s in self.samples}, {s.id: s for s in chosen}
        found: dict[str, list[tuple[list[Message], list[float]]]] = {}
        prompts: dict[str, tuple[list[Message], str]] = {}
        odd: dict[str, str] = {}
        for place, row in read_rows(str(self.path)):
            name = row.get("id")
            if name not in known:
                raise InputError(f"{place}: id {name!r} is no sample; expected one like {self.samples[0].id!r}")
            if name not in wanted:
                continue
            messages = as_messages(row.get("messages"), "user", f"{place}, messages")
            start = next((i for i, m in enumerate(messages) if m["role"] == "assistant"), len(messages))
            if start == len(messages):
                drop(self.dropped, "no actions", place, messages)
                continue
            asked = messages[:start]
            if self.rules.calls is not None and not tools_of(asked):
                asked = with_tools(asked, schemas(wanted[name].documents))
            prompt, first = prompts.setdefault(name, (asked, place))
            if asked != prompt:
                raise InputError(f"{place}: another prompt than that of {first}, which is of {name} too")
            episode = replay(wanted[name], messages, place, harness, self.rules)
            for kind in differences(row, messages, episode, place):
                odd.setdefault(kind, place)
            found.setdefault(name, []).append((messages[start:], episode.message_rewards()))
        for kind, place in odd.items():
            log.warning(f"{kind}, first in {place}")
        for name, dialogues in found.items():
            prompt, first = prompts[name]
            yield _example(wanted[name], dialogues, prompt, first)


def paid_at_the_end(example: Example) -> Example:
    """Return an example with rewards of messages as one whose trajectories are paid at their last message."""
    paid = (np.asarray(rewards) for rewards in example.rewards or ())
    return replace(example, rewards=[[0.0] * (len(rewards) - 1) + [float(rewards.sum())] for rewards in paid])


def _example(
    sample: BfclSample, dialogues: Sequence[tuple[list[Message], list[float]]], prompt: list[Message], source: str
) -> Example:
    return Example(
        messages=prompt,
        completions=[messages for messages, _ in dialogues],
        rewards=[rewards for _, rewards in dialogues],
        prompt_id=sample.id,
        source=source,
    )
