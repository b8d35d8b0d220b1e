"""Samples of BFCL, small policies, and voices that are right and wrong on purpose."""

from functools import lru_cache

import numpy as np
import torch

from shiqrun.environments.bfcl.corruptions import corrupted, said
from shiqrun.environments.bfcl.episode import Episode, Rules
from shiqrun.environments.bfcl.harness import Harness
from shiqrun.environments.bfcl.samples import installed_data, load_samples
from shiqrun.evaluation.episodes import EpisodeEvaluator, played_by
from shiqrun.models.policy import Policy
from shiqrun.sampling.play import Playing, play
from tests.evaluation.made import sampling
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


def evaluator(asked, *, reference=None, context=4096, beta=None, rank=0, world=1, play_by=None, **options):
    """An evaluator that has begun."""
    made = EpisodeEvaluator(
        asked, play_by or rules(), TOKENIZER, sampling(**options), tokens=100_000, context=context, beta=beta
    )
    made.begin(reference, torch.device("cpu"), rank, world)
    return made


def agreed(played):
    """The episodes, each of which the official checker judges as we do."""
    assert [p.official for p in played] == [p.right for p in played]
    return played


def spoken(voice, asked, play_by=None, each=1):
    """The finished episodes of a voice without a policy."""
    return agreed(played_by(voice, asked, play_by or rules(), each, lambda samples: [*samples]))


def playing(voice, asked, play_by=None):
    """What a voice has played, open to be looked into."""
    with Harness() as harness:
        made = [Playing(Episode(d, harness, play_by or rules()), 0) for d in asked]
        play(made, voice)
        assert [p.episode.official() for p in made] == [p.episode.right for p in made]
        return made


class Lines:
    """Says for each sample what `lines` gives for it, one after the other."""

    def __init__(self, lines):
        self.lines, self.left = lines, {}

    def speak(self, playing):
        for p in playing:
            p.episode.say(next(self.left.setdefault(id(p), iter(self.lines(p.episode.sample)))))


def first_turns(number):
    """The reference answer of so many turns, then prose."""
    return lambda d: [t for n, calls in enumerate(d.truth) for t in (said(calls, "one") if n < number else [PROSE])]


def with_mistakes(seed):
    """The reference answer with a mistake in about every third turn."""

    def lines(d):
        rng = np.random.default_rng([seed, d.index])
        for n, calls in enumerate(d.truth):
            others = [call for m, turn in enumerate(d.truth) if m != n for call in turn]
            yield from corrupted(calls, others, "one", rng)[0] if rng.random() < 1 / 3 else said(calls, "one")

    return lines
