"""bfcl: function calling over several turns (BFCL-V3 multi-turn), every turn judged by the real backends.

prompt    [functions,] what the user says first
turn      messages of calls, `[f(a=1), g()]`, each answered by its results; a message that is no call ends the turn
reward    1 for a turn after which the backends' state and the results are those of the reference answer
logged    reference answers and copies of them with mistakes, or any file of dialogues

160 samples are trained on; `split` says which of the 200 are evaluated, the 40 others unless it says otherwise.
"""

import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge

from shiqrun.bfcl.corruptions import Together, corrupted, said
from shiqrun.bfcl.episode import Episode, Rewards, Rules
from shiqrun.bfcl.harness import Harness
from shiqrun.bfcl.samples import RELEASE, Sample, installed_data, load_samples, release
from shiqrun.bfcl.shown import Functions
from shiqrun.data.chats import as_messages
from shiqrun.data.files import read_rows
from shiqrun.errors import InputError
from shiqrun.types import Example, Message, UnitInterval

log = logging.getLogger("shiqrun")


class Bfcl:
    """Samples of BFCL multi-turn and logged trajectories of them.

    Args:
        path: `.jsonl[.gz]` or Parquet file of dialogues with `id` and `messages`, scored here where a row has no
            `rewards`; None makes trajectories from the reference answers.
        samples: directory with the data files of `bfcl-eval`, None for those of the installed package.
        split: which samples are evaluated: test (the 40), train (the 160) or all.
        rewards, max_steps, functions, result_chars: see `Rules`.
        together: calls of a message in made trajectories: one, or all of a turn.
        per_sample: made trajectories of a sample; the first is the reference answer.
        corrupt: share of the turns of the others that get a mistake.
        data_seed: decides which turns, which mistakes, and where.

    Raises:
        InputError: `bfcl-eval` is not installed.
    """

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
        together: Together,
        per_sample: Annotated[int, Ge(1)],
        corrupt: UnitInterval,
        data_seed: Annotated[int, Ge(0)],
    ) -> None:
        folder = installed_data()  # the backends come with it, wherever the samples are from
        if release() != RELEASE:
            log.warning("bfcl-eval %s is installed, figures of BFCL-V3 are of release %s", release(), RELEASE)
        self.samples = load_samples(Path(samples) if samples else folder)
        self.rules = Rules(rewards, max_steps, functions, result_chars)
        self.splits: tuple[str, ...] = ("train", "val")
        self.dropped: Counter[str] = Counter()
        self.split, self.path = split, path
        self._made = (together, per_sample, corrupt, data_seed)
        self._kept: dict[str, list[Example]] = {}

    def evaluated(self) -> list[Sample]:
        """The samples that a policy is evaluated on."""
        return [s for s in self.samples if self.split == "all" or s.is_test == (self.split == "test")]

    def load(self, split: str) -> Iterator[Example]:
        """One example a sample: of "train" the 160, of "val" those evaluated that are no training samples.

        Raises:
            InputError: a row of `path` that is no dialogue of its sample.
        """
        if split not in self._kept:
            chosen = [s for s in self.samples if not s.is_test]
            if split == "val":
                chosen = [s for s in self.evaluated() if s.is_test]
            with Harness() as harness:
                self._kept[split] = [*(self._logged(chosen, harness) if self.path else self._play(chosen, harness))]
        yield from self._kept[split]

    def _play(self, chosen: Sequence[Sample], harness: Harness) -> Iterator[Example]:
        for sample in chosen:
            played = [self._episode(sample, messages, harness) for messages in self._dialogues(sample)]
            yield _example(sample, [(e.messages[e.prompt :], e.message_rewards()) for e in played], played[0])

    def _dialogues(self, sample: Sample) -> Iterator[list[str]]:
        """What the policy says, turn after turn."""
        together, per_sample, share, seed = self._made
        rng = np.random.default_rng([seed, sample.index])
        yield [text for calls in sample.truth for text in said(calls, together)]
        for _ in range(per_sample - 1):
            texts: list[str] = []
            for n, calls in enumerate(sample.truth):
                others = [call for m, turn in enumerate(sample.truth) if m != n for call in turn]
                wrong = rng.random() < share
                texts += corrupted(calls, others, together, rng)[0] if wrong else said(calls, together)
            yield texts

    def _episode(self, sample: Sample, texts: Sequence[str], harness: Harness) -> Episode:
        """The sample played with these messages."""
        episode = Episode(sample, harness, self.rules)
        for text in texts:
            if not episode.done:
                episode.say(text)
        episode.close()
        return episode

    def _logged(self, chosen: Sequence[Sample], harness: Harness) -> Iterator[Example]:
        """The dialogues of `path` that belong to these samples, those of one sample together."""
        known, wanted = {s.id for s in self.samples}, {s.id: s for s in chosen}
        found: dict[str, list[tuple[list[Message], list[float]]]] = {}
        prompts: dict[str, list[Message]] = {}
        for place, row in read_rows(str(self.path)):
            name = row.get("id")
            if name not in known:
                raise InputError(f"{place}: id {name!r} is no sample; expected one like {self.samples[0].id!r}")
            if name not in wanted:
                continue
            messages = as_messages(row.get("messages"), "user", f"{place}, messages")
            start = next((i for i, m in enumerate(messages) if m["role"] == "assistant"), len(messages))
            if start == len(messages):
                self.dropped["no actions"] += 1
                continue
            if messages[:start] != prompts.setdefault(name, messages[:start]):
                raise InputError(f"{place}: another prompt than that of an earlier row of {name}")
            rewards = row.get("rewards")
            if rewards is None:
                rewards = replayed(wanted[name], messages, place, harness, self.rules).message_rewards()
            spoken = sum(m["role"] == "assistant" for m in messages)
            if len(rewards) != spoken:
                raise InputError(f"{place}: {len(rewards)} rewards for {spoken} assistant messages")
            found.setdefault(name, []).append((messages[start:], [float(r) for r in rewards]))
        for name, dialogues in found.items():
            yield _example(wanted[name], dialogues, prompts[name])


def replayed(sample: Sample, messages: Sequence[Message], place: str, harness: Harness, rules: Rules) -> Episode:
    """An episode in which the policy says what the dialogue's assistant says.

    A dialogue that stops early, be it in the middle of a call, leaves the turns that it does not finish wrong.

    Raises:
        InputError: its user says something else than the sample's, or not when a turn has ended.
    """
    episode = Episode(sample, harness, rules)
    start = next(i for i, m in enumerate(messages) if m["role"] == "assistant")
    first = messages[start - 1]["content"] if start else None
    if first != sample.questions[0]:
        raise InputError(f"{place}, message {start - 1}: not what the user of {sample.id} says first")
    for n, message in enumerate(messages[start:], start):
        if message["role"] == "assistant":
            if episode.done:
                raise InputError(
                    f"{place}, message {n}: {sample.id} is over before it ({episode.ended or 'all turns'})"
                )
            episode.say(spoken_text(message))
        elif message["role"] == "user" and episode.messages[-1] != {"role": "user", "content": message["content"]}:
            expected = "no turn has ended" if episode.messages[-1]["role"] != "user" else "other words are expected"
            raise InputError(f"{place}, message {n}: not what the user of {sample.id} says here: {expected}")
    if not episode.done:
        episode.give_up("the dialogue ends here")
    episode.close()
    return episode


def spoken_text(message: Message) -> str:
    """What a message says as the gate reads it: its tool calls in the format of calls, else its content."""
    if not message.get("tool_calls"):
        return str(message["content"])
    calls = []
    for call in message["tool_calls"]:
        function = call.get("function", call)
        given: Any = function.get("arguments") or {}
        arguments = json.loads(given) if isinstance(given, str) else given
        calls.append(f"{function['name']}({', '.join(f'{name}={value!r}' for name, value in arguments.items())})")
    return f"[{', '.join(calls)}]"


def _example(
    sample: Sample, dialogues: Sequence[tuple[list[Message], list[float]]], prompt: Episode | list[Message]
) -> Example:
    return Example(
        messages=prompt.messages[: prompt.prompt] if isinstance(prompt, Episode) else prompt,
        completions=[messages for messages, _ in dialogues],
        rewards=[rewards for _, rewards in dialogues],
        prompt_id=sample.id,
        source=sample.source,
    )
