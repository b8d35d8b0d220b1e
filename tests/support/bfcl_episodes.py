"""Samples of BFCL, small policies, and actors that are right and wrong on purpose."""

from functools import lru_cache

import numpy as np
import torch

from shiqrun.environments.bfcl.corruptions import corrupt_turn, turn_messages
from shiqrun.environments.bfcl.dialogue import Rules
from shiqrun.environments.bfcl.environment import BfclEnvironment
from shiqrun.environments.bfcl.samples import installed_data, load_samples
from shiqrun.evaluation.episodes import EpisodeEvaluator, evaluate_script, play_tasks
from shiqrun.models.policy import Policy
from shiqrun.sampling.play import begin_episodes, play
from shiqrun.types import Example
from tests.support.completions import sampling
from tests.support.helpers import CHATML, llama, tokenizer

TOKENIZER = tokenizer(CHATML)
PROSE = "I do not know."


@lru_cache
def dialogues():
    """All 200."""
    return load_samples(installed_data())


def short(count=3):
    """Those of three turns with the fewest letters, from both sides of the split."""
    three = [d for d in dialogues() if len(d.questions) == 3 and all(d.truth)]
    return sorted(three, key=lambda d: sum(map(len, d.questions)))[:count]


BASIC = {"rewards": "independent", "max_steps": 20, "functions": "none", "result_chars": None, "arguments": "said"}


def rules(**options):
    return Rules(**(BASIC | options))


def policy(seed=0, **options):
    """Of two layers, in float64."""
    sizes = {"vocabulary": len(TOKENIZER), "max_position_embeddings": 4096} | options
    return Policy(llama(seed=seed, **sizes).double())


def tasks(asked):
    """Samples as an environment begins episodes of them."""
    return [Example([], [], None, prompt_id=d.id, source=d.source) for d in asked]


def world(play_by=None):
    """The environment of all samples."""
    return BfclEnvironment(dialogues(), play_by or rules())


def evaluator(asked, *, reference=None, context=4096, beta=None, rank=0, world_size=1, play_by=None, **options):
    """An evaluator that has begun."""
    made = EpisodeEvaluator(
        lambda: world(play_by), tasks(asked), TOKENIZER, sampling(**options), tokens=100_000, context=context, beta=beta
    )
    made.begin(reference, torch.device("cpu"), rank, world_size)
    return made


def official(p):
    """The official checker's verdict on a finished episode."""
    return bool(p.info.metrics["official_score"])


def right(p):
    """Our own verdict on a finished episode."""
    return official(p) == bool(p.info.metrics["official_agreement"])


def paid(p):
    """Rewards of the counted turns of a finished episode."""
    return [r for r, counted in zip(p.info.record["turn_rewards"], p.info.record["counted"], strict=True) if counted]


def agreed(played):
    """The episodes, each of which the official checker judges as we do."""
    assert {p.info.metrics["official_agreement"] for p in played} == {1.0}
    assert [sum(p.rewards) for p in played] == [sum(p.info.record["turn_rewards"]) for p in played]
    return played


def spoken(actor, asked, play_by=None, each=1):
    """The finished episodes of an actor without a policy."""
    return agreed(play_tasks(actor, lambda: world(play_by), tasks(asked), each, list))


def reference_answers(asked, play_by=None):
    """The samples played by their own reference answers."""
    return evaluate_script("ground_truth", lambda: world(play_by), tasks(asked))


def playing(actor, asked, play_by=None):
    """What an actor has played, open to be looked into."""
    with world(play_by) as environment:
        made = begin_episodes(environment, tasks(asked), 1)
        play(made, actor)
        assert [p.episode.dialogue.official() for p in made] == [p.episode.dialogue.right for p in made]
        return made


class Lines:
    """Says for each sample what `lines` gives for it, one after the other."""

    def __init__(self, lines):
        self.lines, self.left = lines, {}

    def act(self, running):
        for r in running:
            r.say(next(self.left.setdefault(id(r), iter(self.lines(r.episode.dialogue.sample)))))


def first_turns(number):
    """The reference answer of so many turns, then prose."""
    return lambda d: [
        t for n, calls in enumerate(d.truth) for t in (turn_messages(calls, "one") if n < number else [PROSE])
    ]


def with_mistakes(seed):
    """The reference answer with a mistake in about every third turn."""

    def lines(d):
        rng = np.random.default_rng([seed, d.index])
        for n, calls in enumerate(d.truth):
            others = [call for m, turn in enumerate(d.truth) if m != n for call in turn]
            yield from (
                corrupt_turn(calls, others, "one", rng)[0] if rng.random() < 1 / 3 else turn_messages(calls, "one")
            )

    return lines
