"""Who is compared with whom: pairs and means of the completions of one prompt, and what is shown of them."""

from dataclasses import replace
from random import Random

import pytest
import torch
from torch.testing import assert_close

from shiqrun import losses
from shiqrun.losses.pairs import group_means, pair_rows, regularised_returns, returns
from tests.losses.naive import LOSSES, decided, pairs, ragged
from tests.losses.rows import BETA, rows_of


def drawn(seed):
    """(batch, levels, groups): short rows with few different returns, so that ties of every kind occur."""
    draw = Random(seed)
    lengths = [draw.choice([0, 1, 2, 2]) for _ in range(9)]
    groups = [draw.randrange(4) for _ in lengths]
    batch, _, _ = ragged(lengths=lengths, width=2, seed=seed, groups=groups)
    levels = [float(draw.randrange(3)) for _ in lengths]
    for b, (length, level) in enumerate(zip(lengths, levels, strict=True)):
        if length:
            batch.rewards[b, length - 1] = level - batch.rewards[b, : length - 1].sum()
    return batch, levels, [g if length else None for g, length in zip(groups, lengths, strict=True)]


@pytest.mark.parametrize("seed", range(20))
def test_all_pairs_are_the_unordered_pairs_of_a_group_with_the_larger_return_first(seed):
    batch, levels, groups = drawn(seed)
    first, second = (x.tolist() for x in pair_rows(batch, "all"))
    expected = {(i, j) for j in range(9) for i in range(j) if groups[i] == groups[j] is not None}
    assert {tuple(sorted(pair)) for pair in zip(first, second, strict=True)} == expected
    assert len(first) == len(expected)
    assert all(levels[i] >= levels[j] for i, j in zip(first, second, strict=True))


@pytest.mark.parametrize("seed", range(20))
def test_best_and_worst_are_one_pair_of_every_group_of_two_or_more(seed):
    batch, levels, groups = drawn(seed)
    first, second = (x.tolist() for x in pair_rows(batch, "best_worst"))
    compared = {groups[i]: (i, j) for i, j in zip(first, second, strict=True)}
    assert len(compared) == len(first)
    assert set(compared) == {g for g in groups if g is not None and groups.count(g) > 1}
    for group, (i, j) in compared.items():
        members = [levels[b] for b in range(9) if groups[b] == group]
        assert groups[j] == group
        assert i != j
        assert (levels[i], levels[j]) == (max(members), min(members))


def test_the_drawn_groups_have_ties_at_the_top_at_the_bottom_and_throughout():
    seen = set()
    for _, levels, groups in map(drawn, range(20)):
        for group in set(groups) - {None}:
            members = [level for level, g in zip(levels, groups, strict=True) if g == group]
            if len(members) > 1:
                seen.add((members.count(max(members)) > 1, members.count(min(members)) > 1, len(set(members)) == 1))
    assert {(True, True, True), (True, False, False), (False, True, False)} <= seen


def test_returns_and_regularised_returns_sum_over_actions():
    batch, policy, reference = ragged()
    rows = rows_of(batch, policy, reference)
    assert_close(returns(batch), torch.tensor([row.total_reward() for row in rows], dtype=torch.float64))
    expected = torch.stack([torch.as_tensor(row.return_to_go(0), dtype=torch.float64) for row in rows])
    assert_close(regularised_returns(batch, policy, reference, BETA), expected)


def test_the_mean_of_a_group_leaves_rows_without_actions_out():
    batch, _, _ = ragged(lengths=(1, 0, 2, 1, 0), width=2, groups=(5, 5, 8, 5, 6))
    x = torch.tensor([1.0, 100.0, 7.0, 3.0, 9.0], dtype=torch.float64)
    assert group_means(x, batch)[torch.tensor([0, 2, 3])].tolist() == [2.0, 7.0, 2.0]


@pytest.mark.parametrize("name", ["dpo", "reward_model"])
@pytest.mark.parametrize("scale", [2.0**-14, 1.0, 2.0**14])  # of two, so that rounding is the same
def test_equal_rewards_in_another_order_tie_whatever_float32_makes_of_their_sum(name, scale):
    rewards = [-0.1, 0.9, -0.1, 0.4, -0.1, 1.3, -0.1, -0.2]
    turned = [rewards[k:] + rewards[:k] for k in range(8)]
    lower = [0.0] * 7 + [sum(rewards) - 5e-4]
    batch, policy, reference = ragged(lengths=(8,) * 9, width=8, groups=(2,) * 9)
    batch = replace(batch, rewards=scale * torch.tensor([*turned, lower]))
    assert len(returns(batch)[:8].unique()) > 1
    terms = LOSSES[name][0](batch, policy, reference)
    assert int(terms.count) == 8
    assert [int(x) for x in terms.metrics["ties"]] == [28, 36]


def test_a_preference_shows_implicit_rewards_their_margin_and_accuracy_and_log_probabilities():
    batch, policy, reference = ragged()
    rows = rows_of(batch, policy, reference)
    shown = losses.dpo(batch, policy, reference, beta=BETA).metrics
    found = decided(rows)
    won, lost = ([BETA * pair[side].total_ratio().item() for pair in found] for side in (0, 1))
    assert any(a > b for a, b in zip(won, lost, strict=True))
    assert any(a < b for a, b in zip(won, lost, strict=True))
    expected = {
        "rewards/chosen": won,
        "rewards/rejected": lost,
        "rewards/margins": [a - b for a, b in zip(won, lost, strict=True)],
        "rewards/accuracies": [float(a > b) for a, b in zip(won, lost, strict=True)],
        "logps/chosen": [sum((a.l[t] - a.v[t]).item() for t in a.actions) for a, _ in found],
        "logps/rejected": [sum((b.l[t] - b.v[t]).item() for t in b.actions) for _, b in found],
    }
    assert_shown(shown, expected | {"ties": [1.0] * (len(pairs(rows)) - len(found)) + [0.0] * len(found)})


def test_a_reward_model_shows_accuracy_margin_and_the_mean_score_of_every_trajectory():
    batch, policy, reference = ragged()
    rows = rows_of(batch, policy, reference)
    found = decided(rows)
    margins = [(a.value[-1] - b.value[-1]).item() for a, b in found]
    expected = {
        "accuracy": [float(margin > 0) for margin in margins],
        "margin": margins,
        "mean_reward": [row.value[-1].item() for row in rows if row.r],
        "ties": [1.0] * (len(pairs(rows)) - len(found)) + [0.0] * len(found),
    }
    assert 0 < sum(expected["accuracy"]) < len(found)
    assert_shown(losses.reward_model(batch, policy, None).metrics, expected)


@pytest.mark.parametrize("baseline", ["none", "group_mean"])
def test_dro_shows_its_residuals_a_trajectory_each(baseline):
    batch, policy, reference = ragged()
    rows = [row for row in rows_of(batch, policy, reference) if row.r]
    levels = {id(row): row.return_to_go(0).item() for row in rows}
    residuals = []
    for row in rows:
        members = [levels[id(other)] for other in rows if other.group == row.group]
        residuals.append(levels[id(row)] - (sum(members) / len(members) if baseline == "group_mean" else 0))
    shown = losses.dro(batch, policy, reference, beta=BETA, baseline=baseline).metrics
    assert_shown(shown, {"residual_mean": residuals, "residual_abs": [abs(x) for x in residuals]})


def test_copg_shows_its_residuals_a_pair_each():
    batch, policy, reference = ragged()
    found = pairs(rows_of(batch, policy, reference))
    gaps = [(a.return_to_go(0) - b.return_to_go(0)).item() for a, b in found]
    shown = dict(losses.copg(batch, policy, reference, beta=BETA).metrics)
    mean, size = shown.pop("residual_mean"), len(gaps)
    assert int(mean[1]) == size
    assert abs(float(mean[0])) <= sum(map(abs, gaps))  # signs go by which of a pair has the larger return
    assert_shown(shown, {"residual_abs": [abs(g) for g in gaps]})


def assert_shown(shown, expected):
    """Metrics are the sum and the number of these, without gradient."""
    assert set(shown) == set(expected)
    for name, entries in expected.items():
        assert_close(float(shown[name][0]), float(sum(entries)))
        assert int(shown[name][1]) == len(entries)
        assert not shown[name][0].requires_grad
