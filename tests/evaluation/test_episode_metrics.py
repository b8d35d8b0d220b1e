"""Metrics of episodes against numbers worked out by hand.

Quantiles of Student's t at .975: 12.706205, 4.302653 with 1, 2 degrees of freedom.
"""

import math

import pytest

pytest.importorskip("bfcl_eval", reason="data=bfcl needs bfcl-eval, which the README says how to install")

from shiqrun.environments.environment import EpisodeInfo
from shiqrun.evaluation.episode_metrics import episode_metrics
from shiqrun.evaluation.episodes import EpisodeResult
from tests.support.bfcl_episodes import PROSE, Lines, dialogues, first_turns, spoken
from tests.support.completions import sample

T1, T2 = 12.706205, 4.302653


def played(name, rewards, *, classes=("A",), test=True, official=None, ratio=None, ended="", why=None, **more):
    """An episode of BFCL with one message of two tokens."""
    right, why = all(rewards), why or ["" if r else "state" for r in rewards]
    official, per_turn = right if official is None else official, sum(rewards) / len(rewards)
    side, refused = "test" if test else "train", more.get("refused", [])
    metrics = {"reward_per_turn": per_turn, "official_score": official, "official_agreement": official == right}
    metrics |= {f"reward_per_turn/{part}": per_turn for part in classes}
    info = EpisodeInfo(
        metrics=metrics,
        part_metrics={f"reward_per_turn/{side}": per_turn, f"official_score/{side}": official},
        shares={"turns/empty": (why.count("no call"), len(why))},
        totals={"calls/refused": len(refused), "calls/stopped": more.get("stopped", 0)},
    )
    said = [sample(name, length=more.get("length", 2), ended=not ended, kl=ratio, entropy=more.get("entropy"))]
    return EpisodeResult(name, [], 0, rewards, ended, info, said, ratio)


def of(episodes, **options):
    return episode_metrics(episodes, **({"beta": None, "on_policy": True} | options))


def test_means_are_over_samples_with_the_interval_of_students_t():
    found = of([played("a", [1.0, 1.0]), played("b", [1.0, 0.0, 0.0, 0.0]), played("c", [0.0, 0.0, 0.0, 1.0, 1.0])])
    assert found["episodes"] == 3
    assert found["reward"] == pytest.approx(5 / 3)  # of 2, 1, 2
    assert found["reward_ci95"] == pytest.approx(T2 * math.sqrt(1 / 3) / math.sqrt(3), rel=1e-6)
    assert found["reward_per_turn"] == pytest.approx(0.55)  # of 1, 1/4, 2/5
    deviation = math.sqrt((0.45**2 + 0.3**2 + 0.15**2) / 2)
    assert found["reward_per_turn_ci95"] == pytest.approx(T2 * deviation / math.sqrt(3), rel=1e-6)
    assert found["official_score"] == pytest.approx(1 / 3)
    assert found["official_agreement"] == 1


def test_several_episodes_of_a_sample_count_once():
    found = of([played("a", [1.0, 1.0]), played("a", [0.0, 1.0]), played("b", [0.0, 0.0]), played("b", [0.0, 0.0])])
    assert (found["episodes"], found["reward"], found["official_score"]) == (4, 0.75, 0.25)  # of 1.5, 0; of .5, 0
    assert found["reward_ci95"] == pytest.approx(T1 * 0.75, rel=1e-6)  # deviation .75 sqrt 2, over sqrt 2


def test_a_class_has_the_samples_in_which_it_takes_part_and_a_side_its_own():
    found = of(
        [
            played("a", [1.0], classes=("A", "B"), test=True),
            played("b", [0.0, 1.0], classes=("B",), test=False),
            played("c", [0.0], classes=("C",), test=False),
        ]
    )
    by_class = {k.removeprefix("reward_per_turn/"): v for k, v in found.items() if k.startswith("reward_per_turn/")}
    assert {k: v for k, v in by_class.items() if "ci95" not in k} == {
        "A": 1.0, "B": 0.75, "C": 0.0, "test": 1.0, "train": 0.25,
    }  # fmt: skip
    assert by_class["B_ci95"] == pytest.approx(T1 * 0.25, rel=1e-6)
    assert math.isnan(by_class["A_ci95"])
    assert (found["official_score/test"], found["official_score/train"]) == (1.0, 0.0)
    assert not any("/train" in k or "/test" in k for k in of([played("a", [1.0]), played("b", [1.0])]))


def test_disagreement_would_show():
    found = of([played("a", [1.0]), played("b", [1.0], official=False), played("c", [0.0])])
    assert found["official_agreement"] == pytest.approx(2 / 3)
    assert found["official_score"] == pytest.approx(1 / 3)


def test_the_regularised_return_is_return_minus_beta_kl():
    made = [played("a", [1.0, 1.0], ratio=2.0), played("b", [1.0, 0.0], ratio=4.0)]
    found = of(made, beta=0.5)
    assert (found["kl"], found["regularised_return"]) == (3.0, 0.0)  # of 1, -1
    assert found["regularised_return_ci95"] == pytest.approx(T1, rel=1e-6)
    off = of(made, beta=0.5, on_policy=False)
    assert off["logratio_sum"] == 3.0
    assert not {"kl", "regularised_return"} & set(off)
    assert not {"kl", "regularised_return", "logratio_sum"} & set(of([*made, played("c", [1.0])], beta=0.5))


def test_counts_say_how_messages_and_episodes_ended():
    found = of(
        [
            played("a", [0.0, 1.0], why=["no call", ""], refused=["f(x)", "os.g()"], length=3, entropy=1.0),
            played("b", [0.0], ended="too many steps", why=["too many steps"], stopped=2, length=1, entropy=5.0),
            played("c", [0.0], ended="no room", why=["no room"], length=2, entropy=2.0),
            played("d", [1.0], length=2, entropy=2.0),
        ]
    )
    assert found["turns/empty"] == pytest.approx(1 / 5)
    assert (found["episodes/too_many_steps"], found["episodes/no_room"]) == (0.25, 0.25)
    assert (found["calls/refused"], found["calls/stopped"]) == (2, 2)
    assert (found["completions/mean_length"], found["completions/clipped_ratio"]) == (2, 0.5)
    assert found["entropy"] == pytest.approx((3 * 1 + 1 * 5 + 2 * 2 + 2 * 2) / 8)


def test_a_script_that_knows_the_first_turns_earns_just_these_on_the_real_backends():
    """Of every sample its first `index % 3` turns are answered, then a hostile call and prose."""
    asked = [d for d in dialogues()[:60] if all(d.truth) and len(d.questions) > 2]
    known = {d.id: d.index % 3 for d in asked}

    def lines(d):
        said = first_turns(known[d.id])(d)
        return [*said[:-1], "[__import__('os').getcwd(), g(x=1)]", PROSE]

    found = of(spoken(Lines(lines), asked), on_policy=False)
    share = {d.id: known[d.id] / len(d.questions) for d in asked}
    assert found["reward"] == pytest.approx(sum(known.values()) / len(asked))
    assert found["reward_per_turn"] == pytest.approx(sum(share.values()) / len(asked))
    for name in {c for d in asked for c in d.classes}:
        mine = [share[d.id] for d in asked if name in d.classes]
        assert found[f"reward_per_turn/{name}"] == pytest.approx(sum(mine) / len(mine))
    for side, test in (("test", True), ("train", False)):
        mine = [share[d.id] for d in asked if d.is_test == test]
        assert found[f"reward_per_turn/{side}"] == pytest.approx(sum(mine) / len(mine))
    turns = sum(len(d.questions) for d in asked)
    assert found["turns/empty"] == pytest.approx((turns - sum(known.values())) / turns)
    assert found["calls/refused"] == 2 * len(asked)
    assert (found["official_score"], found["official_agreement"]) == (0, 1)
