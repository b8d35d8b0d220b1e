"""Answers of the weights that a run starts from are kept: the same numbers, and sampled anew where anything differs."""

import copy
from dataclasses import asdict, replace

import pytest
import torch

from shiqrun.evaluation import kept_answers
from shiqrun.evaluation.evaluator import CompletionEvaluator
from shiqrun.evaluation.kept_answers import KeptAnswers
from shiqrun.models.policy import Policy
from shiqrun.models.reference import FrozenReference, same_weights, weights_fingerprint
from shiqrun.rewards.exact_match import ExactMatch
from shiqrun.rewards.reward import Reward
from shiqrun.sampling.prompts import choose_prompts
from shiqrun.util.kept_facts import KeptFacts
from tests.support.completions import sampling
from tests.support.helpers import CHATML, example, llama, tokenizer

TOKENIZER = tokenizer(CHATML)


class Length(Reward):
    """A reward that is not said to be repeatable."""

    def score(self, items, progress=None):
        return [float(len(item.text)) for item in items]


@pytest.fixture(autouse=True)
def keeps_all(monkeypatch):
    monkeypatch.setattr(kept_answers, "WORTH_SECONDS", 0.0)


@pytest.fixture
def model():
    return llama(vocabulary=len(TOKENIZER), max_position_embeddings=256)


def asked(words="how are you"):
    talks = [example("x", prompt=(f"{words} {n}",), prompt_id=f"p{n}") for n in range(5)]
    return [replace(p, answer="fine") for p in choose_prompts(talks, TOKENIZER, number=5, room=None)[0]]


def evaluated(kept, model, *, trained=None, prompts=None, reward=None, tokens=9000, autocast=None, **options):
    """The result of an evaluation of a policy by a run that starts from a model's weights."""
    given = ExactMatch(ignore_case=False) if reward is None else reward
    made = CompletionEvaluator(
        asked() if prompts is None else prompts, TOKENIZER, sampling(**options), tokens=tokens, reward=given, beta=0.5
    )
    made.kept = kept and KeptAnswers(kept, weights_fingerprint(model))
    policy = Policy(copy.deepcopy(trained or model), autocast=autocast)
    made.begin(FrozenReference(Policy(copy.deepcopy(model), autocast=autocast)), torch.device("cpu"))
    return made.run(policy)


def files(kept):
    return sorted(path.name for path in kept.directory.glob("*.json"))


def told(result):
    """Every number and text of a result, and the tokens."""
    both = [*result.samples, *result.reference]
    return result.metrics, result.rows(0), [s.tokens.tolist() for s in both], [asdict(s)["entropy"] for s in both]


def test_a_second_run_has_the_same_numbers_and_samples_nothing(model, tmp_path, monkeypatch):
    kept = KeptFacts(tmp_path / "answers")
    fresh = told(evaluated(None, model))
    assert told(evaluated(kept, model)) == fresh
    assert len(files(kept)) == 2
    monkeypatch.setattr("shiqrun.sampling.sampler.sample_completions", None)  # whoever samples now fails
    assert told(evaluated(kept, model)) == fresh


def test_a_trained_policy_is_always_evaluated(model, tmp_path):
    kept, trained = KeptFacts(tmp_path / "answers"), copy.deepcopy(model)
    with torch.no_grad():
        trained.lm_head.weight[3, 2] += 0.5
    evaluated(kept, model)
    assert not same_weights(Policy(trained), Policy(model))
    assert told(evaluated(kept, model, trained=trained)) == told(evaluated(None, model, trained=trained))
    assert len(files(kept)) == 2


def other_weights(model):
    moved = copy.deepcopy(model)
    with torch.no_grad():
        moved.lm_head.weight[0, 0] += 1e-3
    return moved


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"temperature": 0.5},
        {"top_p": 0.9},
        {"max_new_tokens": 5},
        {"samples_per_prompt": 2},
        {"batch_size": 3},
        {"tokens": 40},
        {"autocast": torch.bfloat16},
        {"reward": ExactMatch(ignore_case=True)},
        {"prompts": asked("who are you")},
        {"prompts": asked()[:4]},
        {"prompts": [replace(p, answer="well") for p in asked()]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_answers_are_sampled_anew_where_anything_differs(model, tmp_path, change):
    kept = KeptFacts(tmp_path / "answers")
    evaluated(kept, model)
    assert told(evaluated(kept, model, **change)) == told(evaluated(None, model, **change))
    assert len(files(kept)) == 4


def test_other_weights_other_code_and_damaged_files_are_noticed(model, tmp_path, monkeypatch):
    kept = KeptFacts(tmp_path / "answers")
    fresh = told(evaluated(kept, model))
    other = other_weights(model)
    assert told(evaluated(kept, other)) == told(evaluated(None, other))
    assert len(files(kept)) == 4
    monkeypatch.setattr(kept_answers, "code_digest", lambda parts: "another")
    evaluated(kept, model)
    assert len(files(kept)) == 6
    for name in files(kept):
        (kept.directory / name).write_text('{"answers": []}')
    assert told(evaluated(kept, model)) == fresh


def test_a_reward_that_may_answer_otherwise_is_asked_every_time(model, tmp_path):
    kept = KeptFacts(tmp_path / "answers")
    evaluated(kept, model, reward=Length())
    assert files(kept) == []


def test_answers_that_took_no_time_are_not_kept(model, tmp_path, monkeypatch):
    monkeypatch.setattr(kept_answers, "WORTH_SECONDS", 60.0)
    kept = KeptFacts(tmp_path / "answers")
    evaluated(kept, model)
    assert files(kept) == []
