"""data=bfcl: what it makes of the samples, judged once more by the package's own checker, and what it reads back."""

import ast
import inspect
import uuid
from collections import Counter
from importlib.resources import files
from itertools import pairwise
from pathlib import Path

import pytest
from omegaconf import OmegaConf

pytest.importorskip("bfcl_eval", reason="bfcl-eval is not installed: pip install --no-deps bfcl-eval==2025.6.8")

from bfcl_eval.eval_checker.multi_turn_eval import multi_turn_utils
from bfcl_eval.eval_checker.multi_turn_eval.multi_turn_checker import (
    multi_turn_checker,
    response_checker,
    state_checker,
)

from shiqrun.batching.logged_data import DataSettings, load
from shiqrun.data.bfcl import Bfcl
from tests.support.helpers import tokenizer, user

CONF = Path(str(files("shiqrun.conf"))) / "data/bfcl.yaml"
KINDS = {"wrong_argument", "dropped", "repeated", "reordered", "extra", "malformed"}
FEW = (0, 4, 45, 46, 99, 133, 148, 163, 167, 180)  # every backend, all turns without reference; 4, 99: test


def bfcl(*, only=FEW, **options):
    """The data set of `conf/data/bfcl.yaml` without functions in its prompts, and of its samples only these."""
    usual = OmegaConf.load(CONF)
    usual = {name: usual[name] for name in inspect.signature(Bfcl).parameters}
    source = Bfcl(**(usual | {"functions": "none", "per_sample": 4, "corrupt": 0.7} | options))
    source.samples = [s for s in source.samples if only is None or s.index in only]
    return source


def train(source):
    return {e.prompt_id: e for e in source.load("train")}


@pytest.fixture(scope="module")
def samples():
    return {s.id: s for s in bfcl().samples}


@pytest.fixture(scope="module")
def made():
    return train(bfcl())


@pytest.fixture(scope="module")
def prefixed():
    return train(bfcl(rewards="official_prefix"))


def turns_of(completion, rewards):
    """[(texts, reward)] of each user turn: the messages that end before the next user's, and what they earn."""
    spoken, turns = iter(rewards), [([], [])]
    for message in completion:
        if message["role"] == "user":
            turns.append(([], []))
        elif message["role"] == "assistant":
            turns[-1][0].append(message["content"])
            turns[-1][1].append(next(spoken))
    assert next(spoken, None) is None
    return turns


def parsed(text):
    """Calls as text, by Python's own parser; None for prose."""
    try:
        node = ast.parse(text, mode="eval").body
    except SyntaxError:
        return None
    return [ast.unparse(call) for call in node.elts] if isinstance(node, ast.List) else None


def steps_of(texts):
    return [calls for calls in map(parsed, texts) if calls]


def calls_of(texts):
    return [call for calls in steps_of(texts) for call in calls]


def officially(sample, turns):
    """The official verdict on the first turns of a dialogue."""
    entry = sample.row | {"ground_truth": None}
    with own_name() as name:
        truth = sample.truth[: len(turns)]
        return multi_turn_checker(turns, truth, entry, "multi_turn_base", name)["valid"]


def turn_by_turn(sample, turns):
    """0 or 1 for each turn by the official state and response checks, whatever the others are; masked turns 0."""
    paid, said = [], []
    with own_name() as name:
        for n, (steps, truth) in enumerate(zip(turns, sample.truth, strict=True)):
            mine = expected = None
            for calls in steps:
                results, mine = run(sample, calls, name)
                said += results
            _, mine = run(sample, [], name) if mine is None else (None, mine)
            results, expected = run(sample, truth, f"{name}_truth")
            fits = state_checker(mine, expected)["valid"] and response_checker(said, results, n)["valid"]
            paid.append(float(fits and bool(steps) and bool(truth)))
    return paid


def run(sample, calls, name):
    row = sample.row
    return multi_turn_utils.execute_multi_turn_func_call(
        calls, row["initial_config"], row["involved_classes"], name, row["id"], is_evaL_run=True
    )


class own_name:
    """A name for the package's globals, cleared afterwards."""

    def __enter__(self):
        self.name = f"t{uuid.uuid4().hex}"
        return self.name

    def __exit__(self, *_):
        for key in [key for key in vars(multi_turn_utils) if key.startswith(self.name)]:
            delattr(multi_turn_utils, key)


def test_the_first_trajectory_is_the_reference_answer_and_earns_every_counted_turn(made, samples):
    for name, example in made.items():
        turns = turns_of(example.completions[0], example.rewards[0])
        assert [calls_of(texts) for texts, _ in turns] == [
            [ast.unparse(ast.parse(call)) for call in calls] for calls in samples[name].truth
        ]
        assert [paid[-1] for _, paid in turns] == [float(bool(calls)) for calls in samples[name].truth]
        assert example.messages == [user(samples[name].questions[0])]


def test_a_turns_reward_stands_at_its_last_message_and_users_speak_in_order(made, samples):
    for name, example in made.items():
        for completion, rewards in zip(example.completions, example.rewards, strict=True):
            turns = turns_of(completion, rewards)
            assert not any(any(paid[:-1]) for _, paid in turns)
            said = [m["content"] for m in completion if m["role"] == "user"]
            assert said == samples[name].questions[1:]
            assert completion[-1]["role"] == "assistant"


def test_rewards_are_those_of_the_official_checker_on_every_prefix(prefixed, samples):
    seen = Counter()
    for name, example in prefixed.items():
        for completion, rewards in zip(example.completions, example.rewards, strict=True):
            turns = turns_of(completion, rewards)
            played = [steps_of(texts) for texts, _ in turns]
            for n, (_, paid) in enumerate(turns):
                masked = not samples[name].truth[n]
                assert paid[-1] == (0 if masked else officially(samples[name], played[: n + 1]))
                seen[paid[-1]] += 1
    assert min(seen[0], seen[1]) > 10  # both verdicts are met


def test_independent_rewards_judge_every_turn_for_itself(made, prefixed, samples):
    recovered = 0
    for name, example in made.items():
        pairs = zip(example.completions, example.rewards, prefixed[name].rewards, strict=True)
        for completion, rewards, until_wrong in pairs:
            turns = turns_of(completion, rewards)
            played = [steps_of(texts) for texts, _ in turns]
            assert [paid[-1] for _, paid in turns] == turn_by_turn(samples[name], played)
            recovered += sum(rewards) > sum(until_wrong)
    assert recovered > 0  # a wrong read that costs one turn only


def test_turns_without_reference_answer_earn_nothing(made):
    for index, masked in ((167, 1), (180, 2)):
        example = made[f"multi_turn_base_{index}"]
        best = [paid[-1] for _, paid in turns_of(example.completions[0], example.rewards[0])]
        assert best.count(0) == masked


def plain(examples):
    return [(e.prompt_id, e.completions, e.rewards) for e in examples.values()]


def test_the_same_seed_makes_the_same_dialogues_and_another_seed_others(made):
    assert plain(train(bfcl())) == plain(made)
    others = train(bfcl(data_seed=1))
    same = [others[name].completions[0] == made[name].completions[0] for name in made]
    assert all(same)
    assert not any(others[name].completions[1:] == made[name].completions[1:] for name in made)


def kind_of(found, right, others):
    """Which mistake makes these messages of a turn's right calls, None where there is none; `others`: other turns'."""
    if found[-1] != "Done.":
        assert parsed(found[-1]) is None
        return "malformed"
    calls, truth = calls_of(found), [ast.unparse(ast.parse(call)) for call in right]
    more, less = Counter(calls) - Counter(truth), Counter(truth) - Counter(calls)
    match len(calls) - len(truth):
        case -1:
            return "dropped"
        case 1:
            if any(a == b for a, b in pairwise(calls)):
                return "repeated"
            assert set(more) <= set(others)
            return "extra"
        case 0 if not more and calls != truth:
            return "reordered"
        case 0 if sum(more.values()) == sum(less.values()) == 1:
            (one,), (other,) = more, less
            assert one.split("(")[0] == other.split("(")[0]  # the same function
            return "wrong_argument"
    assert calls == truth, (calls, truth)
    return None


def test_every_kind_of_mistake_occurs_and_at_most_one_in_a_turn(samples):
    source = bfcl(only=range(0, 40), per_sample=3, corrupt=1.0)
    known = {s.id: s for s in source.samples}
    kinds = Counter()
    for name, example in train(source).items():
        for completion, rewards in zip(example.completions[1:], example.rewards[1:], strict=True):
            turns = turns_of(completion, rewards)
            truth = known[name].truth
            for n, (texts, _) in enumerate(turns):
                others = [ast.unparse(ast.parse(call)) for m, turn in enumerate(truth) if m != n for call in turn]
                kinds[kind_of(texts, truth[n], others)] += 1
    assert set(kinds) - {None} == KINDS
    assert kinds[None] < 0.1 * kinds.total()  # two equal calls change places


def test_corrupt_is_the_share_of_turns_with_a_mistake():
    clean = train(bfcl(corrupt=0.0, per_sample=2))
    assert all(e.completions[0] == e.completions[1] for e in clean.values())


def test_all_calls_of_a_turn_can_stand_in_one_message(samples):
    for name, example in train(bfcl(together="turn", per_sample=1)).items():
        turns = turns_of(example.completions[0], example.rewards[0])
        assert [len(texts) for texts, _ in turns] == [1 + bool(calls) for calls in samples[name].truth]


@pytest.mark.parametrize(("split", "count", "validation"), [("test", 40, 40), ("train", 160, 0), ("all", 200, 40)])
def test_a_split_says_what_is_evaluated_and_the_160_are_trained_on(split, count, validation):
    source = bfcl(only=None, split=split, per_sample=1)
    evaluated = source.evaluated()
    assert len(evaluated) == count
    tests = {s.id for s in source.samples if s.index % 5 == 4}
    assert {s.id for s in evaluated} & tests == (tests if validation else set())
    if split == "test":
        assert {e.prompt_id for e in source.load("val")} == tests
        assert len(train(source)) == 160
        assert not tests & train(source).keys()


def settings(**options):
    usual = {"max_length": None, "val_fraction": 0.1, "completions": "all", "train_on": "assistant"}
    return DataSettings(**(usual | {"limit": None} | options))


def test_limit_takes_so_many_samples_of_each_split():
    encoded = load(bfcl(), tokenizer(), settings(limit=1), context=None)
    assert (encoded.train.prompts, encoded.val.prompts) == (1, 1)
    assert len(encoded.train) == 4


def test_encoded_dialogues_return_what_the_checker_paid(made):
    encoded = load(bfcl(), tokenizer(), settings(), context=None)
    expected = [sum(rewards) for example in made.values() for rewards in example.rewards]
    assert encoded.train.returns.tolist() == expected


def test_paid_at_the_end_a_trajectory_has_its_return_at_its_last_message():
    by_turn, at_end = (train(source).values() for source in (bfcl(), bfcl(paid="final")))
    by_turn = [*by_turn]
    assert any(sum(rewards[:-1]) for example in by_turn for rewards in example.rewards)
    for one, other in zip(by_turn, at_end, strict=True):
        assert other.completions == one.completions
        assert [rewards[-1] for rewards in other.rewards] == [sum(rewards) for rewards in one.rewards]
        assert not any(any(rewards[:-1]) for rewards in other.rewards)
