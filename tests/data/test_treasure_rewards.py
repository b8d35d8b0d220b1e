"""Where a trajectory's return is written, `data.rewards`: what no sum can show, what ShiQ sees, and what stays."""

import inspect
import math
import re
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from experiments.treasure import RICHER, USUAL, differences_table
from shiqrun import losses
from shiqrun.batching.encode import encode
from shiqrun.batching.rows import Rows
from shiqrun.data.treasure import Treasure
from shiqrun.data.treasure_optimum import ExactTreasure
from shiqrun.models.tiny import Tiny
from shiqrun.types import ActionScores
from tests.support.command_line import metrics, train
from tests.support.helpers import dense_scores, llama

CONF = Path(__file__).parents[2] / "conf" / "data" / "treasure.yaml"
BETA = 0.5
BINARY = {"step_cost": 0.125, "treasure_reward": 1.0, "goal_reward": 2.0}
"""Sums of these are exact in float32: equal returns are a tie, in whatever order they were earned."""
WAY = {"N": (-1, 0), "E": (0, 1), "S": (1, 0), "W": (0, -1)}


def treasure(where, **changes):
    settings = {k: v for k, v in OmegaConf.load(CONF).items() if k in inspect.signature(Treasure).parameters}
    return Treasure(**{**settings, **BINARY, "maps": 12, "illegal": 0.2, **changes, "rewards": where})


def tokenizer_of(source):
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_layers": 1, "num_heads": 1, "initializer_range": 0.1}
    return Tiny(**shape, max_position_embeddings=64, vocab_size=300).tokenizer(source, [])


def batch_of(source):
    """All training trajectories as one batch, rewards in float64; rows are in the order of `load`."""
    made = tokenizer_of(source)
    given = [*encode(source.load("train"), made, Counter(), max_length=None, stable=source.chat_template)]
    assert len(given) == sum(len(e.completions) for e in source.load("train"))
    batch = Rows(given, pad=0, together=True).collate(range(len(given)))
    return replace(batch, rewards=batch.rewards.double())


def scores(batch, vocabulary, seed):
    """A small transformer's numbers at the actions, float64, leaves of the graph; its value head is made up."""
    with torch.no_grad():
        logit, log_partition = (x.double() for x in dense_scores(llama(vocabulary, seed=seed), batch))
    return ActionScores(*(x.clone().requires_grad_() for x in (logit, log_partition, logit.sin())))


def stepped(loss, source):
    """(loss, units, gradient of the loss by the policy's logits, log-partitions and values), all rows one step."""
    batch = batch_of(source)
    policy, reference = (scores(batch, len(source.vocabulary), seed) for seed in (0, 1))
    terms = loss(batch, policy, reference, beta=BETA)
    leaves = (policy.logit, policy.log_partition, policy.value)
    gradient = torch.autograd.grad(terms.total, leaves, allow_unused=True, materialize_grads=True)
    return terms.total.item(), terms.count.item(), torch.stack(gradient)


@pytest.mark.parametrize(
    "loss",
    [
        losses.copg,
        partial(losses.copg, pairing="best_worst"),
        losses.dpo,
        losses.dro,
        partial(losses.dro, baseline="group_mean"),
        losses.dro_v,
    ],
    ids=["copg", "copg best_worst", "dpo", "dro", "dro group_mean", "dro_v"],
)
def test_a_method_of_sums_takes_the_same_step_wherever_the_return_is_written(loss):
    one, other = (stepped(loss, treasure(where)) for where in ("turns", "last"))
    assert other[:2] == pytest.approx(one[:2])
    torch.testing.assert_close(other[2], one[2])
    assert one[2].norm() > 0


@pytest.mark.parametrize("name", ["shiq", "shiq_tk", "shiq_ms"])
def test_shiq_sees_where_the_return_is_written(name):
    """Where policy and reference are equal, residuals are rewards alone, so that the loss is a sum by hand."""
    totals, sources = {}, {where: treasure(where) for where in ("turns", "last")}
    for where, source in sources.items():
        batch = batch_of(source)
        same = scores(batch, len(source.vocabulary), 0)
        totals[where] = getattr(losses, name)(batch, same, same, beta=BETA).total.item()
    earned = [r for example in sources["turns"].load("train") for r in example.rewards]
    by_turn = sum((r[t] if name == "shiq_ms" else sum(r[t:])) ** 2 for r in earned for t in range(len(r)))
    at_end = sum(sum(r) ** 2 * (1 if name == "shiq_ms" else len(r)) for r in earned)
    assert totals == pytest.approx({"turns": by_turn, "last": at_end})
    assert abs(by_turn - at_end) > 0.1 * at_end


@pytest.mark.parametrize("where", ["turns", "last"])
def test_tk_is_shiq_divided_by_trajectories_where_a_turn_is_one_token(where):
    every, actions, by_action = stepped(losses.shiq, treasure(where))
    first, trajectories, by_turn = stepped(losses.shiq_tk, treasure(where))
    assert first == pytest.approx(every)
    torch.testing.assert_close(by_turn, by_action)
    assert trajectories == 48 < actions


# ------------------------------------------------------------------ the optimum stays
def solve(prompt, vocabulary, horizon, draw):
    """words said -> (logits of a random reference `[V]`, r + v* of every word `[V]`, earned before), one small map."""
    numbers = [int(n) for n in re.findall(r"[rc](\d)", prompt)]
    start, goal, item = zip(numbers[::2], numbers[1::2], strict=True)
    table = {}

    def value(words, place, found, earned):
        base, quality = torch.randn(len(vocabulary), generator=draw, dtype=torch.float64), []
        for word in vocabulary:
            if word not in WAY:
                quality.append(0.0)
                continue
            new = tuple(min(max(place[i] + WAY[word][i], 0), 1) for i in (0, 1))
            r = -0.125 + (new == item and not found) + 2.0 * (new == goal)
            over = new == goal or len(words) + 1 == horizon
            later = 0.0 if over else value((*words, word), new, found or new == item, earned + r)
            quality.append(r + later)
        table[words] = base, torch.tensor(quality, dtype=torch.float64), earned
        return BETA * (base.log_softmax(-1) + table[words][1] / BETA).logsumexp(-1).item()

    value((), start, False, 0.0)
    return table


def optimal_scores(source, horizon, *, shifted):
    """(policy, reference) at the optimum, logits l_ref + (r + v*) / beta; `shifted` adds what was earned before."""
    draw, rows = torch.Generator().manual_seed(0), []
    for example in source.load("train"):
        table = solve(example.prompt_id, source.vocabulary, horizon, draw)
        for completion in example.completions:
            said = tuple(m["content"] for m in completion if m["role"] == "assistant")
            numbers = []
            for t, word in enumerate(said):
                base, quality, earned = table[said[:t]]
                best, a = base + (quality + shifted * earned) / BETA, source.vocabulary.index(word)
                numbers.append([best[a], best.logsumexp(-1), base[a], base.logsumexp(-1)])
            rows.append(torch.tensor(numbers + [[0.0] * 4] * (horizon - len(said)), dtype=torch.float64))
    logit, partition, base_logit, base_partition = torch.stack(rows).unbind(-1)
    return ActionScores(logit, partition), ActionScores(base_logit, base_partition)


@pytest.mark.parametrize("loss", [losses.shiq, losses.shiq_tk, losses.shiq_ms])
def test_the_optimal_policy_has_no_residual_either_way(loss):
    """Written last, the values hold what was earned before: a shift of a state's logits, which moves no probability."""
    sources = {where: treasure(where, size=2, horizon=2, maps=8, val_maps=6) for where in ("turns", "last")}
    policies = {}
    for where, source in sources.items():
        batch = batch_of(source)
        policies[where], reference = optimal_scores(source, 2, shifted=where == "last")
        assert loss(batch, policies[where], reference, beta=BETA).total.item() == pytest.approx(0, abs=1e-20)
        other, _ = optimal_scores(source, 2, shifted=where != "last")
        assert loss(batch, other, reference, beta=BETA).total > 1
    torch.testing.assert_close(policies["turns"].logp, policies["last"].logp)


def test_exact_figures_do_not_depend_on_where_the_return_is_written():
    found = []
    for where in ("turns", "last"):
        source = treasure(where)
        exact = ExactTreasure(source.maps("val").first(4), tokenizer_of(source), beta=BETA)
        exact.set_reference(llama(len(source.vocabulary), seed=1))
        found.append(exact.evaluate(llama(len(source.vocabulary), seed=0)))
    assert found[0] == found[1]
    assert found[0]["regret"] > 0


# ------------------------------------------------------------------ the command and the study
def test_the_command_line_gives_it_to_shiq_and_changes_nothing_for_copg(workplace):
    pay = [f"data.{name}={value}" for name, value in BINARY.items()]
    first = {}
    for algo in ("shiq", "copg"):
        for where in ("turns", "last"):
            words = (f"algo={algo}", f"data.rewards={where}", *pay, "trainer.max_steps=1", "eval.every=0")
            assert train(*words, f"run_dir={algo}_{where}") == 0
            first[algo, where] = metrics(workplace / f"{algo}_{where}")[-1]
    assert first["copg", "last"]["train/loss"] == pytest.approx(first["copg", "turns"]["train/loss"])
    assert first["shiq", "last"]["train/loss"] != pytest.approx(first["shiq", "turns"]["train/loss"], rel=0.05)
    assert first["shiq", "last"]["train/reward"] == pytest.approx(first["shiq", "turns"]["train/reward"])


def test_a_place_that_does_not_exist_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert train("data.rewards=first", "trainer.max_steps=1", "run_dir=refused") == 2
    assert "data.rewards" in capsys.readouterr().err


def test_arms_are_compared_on_the_problems_and_seeds_that_both_have():
    def ran(**by_seed):
        return {int(s[1:]): {"first": first, "val/regret": end} for s, (first, end) in by_seed.items()}

    found = {
        ("shiq", USUAL): ran(s0=(0.5, 0.2), s1=(0.6, 0.3), s2=(0.9, 0.9)),
        ("copg", USUAL): ran(s0=(0.6, 0.5), s1=(0.9, 0.8), s3=(0.1, 0.1)),
        ("copg", RICHER): ran(s2=(0.1, 0.1)),
    }
    table = differences_table(found)
    cells = [[*column.cells] for column in table.columns]
    half = 12.706205 / math.sqrt(2)  # Student's t with one degree of freedom; differences .1, .3 and .3, .5
    deviation = math.sqrt(0.02)
    assert cells == [
        ["copg - shiq"],
        [USUAL],
        ["2"],
        [f"0.200 ± {half * deviation:.3f}"],
        [f"0.400 ± {half * deviation:.3f}"],
        ["0.300 0.500"],
    ]
