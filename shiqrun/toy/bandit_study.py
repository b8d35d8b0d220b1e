"""This study reproduces Fig. 1 of the ShiQ paper (arXiv 2505.11081): regret of each loss on a bandit with logged data.

Regret is of the KL-regularised objective, against optimiser steps. A batch has few distinct rows (an arm, a pair of
arms, a group of four), so each row is scored once and weighted by how often it was drawn. Every seed draws its own
batches, and uncentred and centred rewards see the same draws. With one action in a trajectory, ShiQ, /ms and /tk are
the same loss, and so are /init and `direct`.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations_with_replacement, product
from math import factorial, inf, prod
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor

from shiqrun.console import track
from shiqrun.errors import InputError
from shiqrun.toy import study_methods, tabular_problems
from shiqrun.toy.findings import Crosstab, Findings, Record, seed_records
from shiqrun.toy.learner import Learner, StudyMethod, TableRows, table_rows
from shiqrun.toy.plotting import merge_equal_curves, plot_band, shared_legend
from shiqrun.types import Positive

GROUP = 4  # completions in a group, whose mean reward is DRO's baseline
SMALL_REGRET = 0.01  # reward units; a method is timed until its regret is below
LEVELS = ("as they are", "minus data mean", "minus reference mean")
Count = Annotated[int, Ge(1)]


def study(
    first_seed: int,
    *,
    seeds: Annotated[int, Ge(2)],
    rewards: list[float],
    behaviours: list[list[float]],
    beta: Positive,
    batch: Annotated[int, Ge(GROUP)],
    steps: Count,
    learning_rate: Positive,
    value_ratio: Positive,
    points: Annotated[int, Ge(1)],
) -> Findings:
    """Measure the regret of every method against optimiser steps, for each behaviour policy and centring of rewards.

    Args:
        first_seed: the first seed.
        seeds: number of seeds.
        rewards: reward of each arm.
        behaviours: probabilities of the arms under each behaviour policy.
        beta: KL temperature, reward units per nat.
        batch: completions in an optimiser step.
        steps: number of optimiser steps.
        learning_rate: learning rate of Adam.
        value_ratio: DRO-V's learning rate of the value, relative to that of the policy.
        points: number of evaluations, evenly spaced, besides the one before the first step.

    Raises:
        InputError: a behaviour is no distribution over the arms.
    """
    _check(behaviours, rewards)
    all_seeds = range(first_seed, first_seed + seeds)
    problem = tabular_problems.bandit(rewards)
    settings = [Setting(tuple(behaviour), level) for behaviour in behaviours for level in LEVELS]
    tables, at = len(settings) * seeds, {round(steps * k / points) for k in range(points + 1)}
    records: list[Record] = []
    for method in track(_methods(beta), "bandit"):
        learner = Learner(
            method, problem.reference, tables=tables, learning_rate=learning_rate, value_ratio=value_ratio
        )
        rows, counts = draw_batches(method, settings, all_seeds, rewards, batch=batch, steps=steps)
        for step in _steps(learner, rows, counts, at):
            regret = problem.regret(learner.logp(), beta).view(len(settings), seeds)
            for setting, values in zip(settings, regret.tolist(), strict=True):
                shared = {"behaviour": setting.name, "rewards": setting.level, "method": method.name, "step": step}
                records += seed_records(all_seeds, values, "regret", **shared)
    return Findings("bandit", records, _tables(records, steps), lambda figure: _draw(figure, records))


def _check(behaviours: Sequence[Sequence[float]], rewards: Sequence[float]) -> None:
    for behaviour in behaviours:
        if len(behaviour) != len(rewards) or min(behaviour) <= 0 or abs(sum(behaviour) - 1) > 1e-9:
            raise InputError(
                f"study.behaviours: met {behaviour}, expected {len(rewards)} positive numbers that sum to 1"
            )


def _steps(learner: Learner, rows: TableRows, counts: Tensor, at: Collection[int]) -> Iterator[int]:
    """Train the learner, and yield each step in `at` after its update; step 0 is before the first update."""
    rows = replace(rows, batch=replace(rows.batch, reference=learner.reference_scores(rows)))
    for step in range(len(counts) + 1):
        if step:
            learner.update(replace(rows, times=counts[step - 1]))
        if step in at:
            yield step


@dataclass(frozen=True)
class Setting:
    """A setting combines a behaviour policy with the mean that is subtracted from rewards, if any."""

    behaviour: tuple[float, ...]
    level: str

    @property
    def name(self) -> str:
        """Return the behaviour policy's probabilities of the arms, as text."""
        return "/".join(f"{p:g}" for p in self.behaviour)

    def rewards(self, rewards: Sequence[float]) -> list[float]:
        """Return the reward of each arm that the methods see."""
        weights = {
            "as they are": [0.0] * len(rewards),
            "minus data mean": self.behaviour,
            "minus reference mean": [1 / len(rewards)] * len(rewards),
        }
        mean = sum(p * r for p, r in zip(weights[self.level], rewards, strict=True))
        return [r - mean for r in rewards]


def _methods(beta: Positive) -> list[StudyMethod]:
    labels = replace(study_methods.dpo(beta), name="DPO Bradley-Terry", rewards="labels")
    return [
        study_methods.shiq(beta),
        study_methods.shiq_ms(beta),
        study_methods.shiq_tk(beta),
        study_methods.shiq_init(beta),
        study_methods.direct(beta),
        study_methods.soft_q(beta),
        study_methods.copg(beta),
        replace(study_methods.dpo(beta), name="DPO 0/1"),
        labels,
        study_methods.dro(beta),
        study_methods.dro_group_mean(beta),
        study_methods.dro_v(beta),
    ]


def draw_batches(
    method: StudyMethod,
    settings: Sequence[Setting],
    seeds: Sequence[int],
    rewards: Sequence[float],
    *,
    batch: int,
    steps: int,
) -> tuple[TableRows, Tensor]:
    """Draw all batches: every distinct row of each setting and seed, and how often each step draws it, `[steps, B]`."""
    entities = _entities(method, len(rewards))
    size, tables = len(entities[0]), len(settings) * len(seeds)
    action = torch.tensor(entities)
    seen = torch.tensor([setting.rewards(rewards) for setting in settings for _ in seeds], dtype=torch.float64)
    earned = seen[:, action]  # [tables, entities, size]
    if method.rewards == "labels":
        earned = torch.tensor([1.0, 0.0], dtype=torch.float64).expand_as(earned)
    shape = (tables, *action.shape)
    rows = table_rows(
        torch.arange(tables)[:, None, None].expand(shape).reshape(-1),
        torch.zeros(prod(shape), 1, dtype=torch.int64),
        action.expand(shape).reshape(-1, 1),
        earned.reshape(-1, 1),
        torch.ones(prod(shape), 1, dtype=torch.bool),
        torch.arange(tables * len(entities)).repeat_interleave(size),
    )
    chances = [_chances(method, entities, setting.behaviour, rewards) for setting in settings]
    counts = np.stack([_counts(p, s, batch // size, steps) for p in chances for s in seeds], 1)
    return rows, torch.from_numpy(counts).to(torch.float64).flatten(1).repeat_interleave(size, 1)


def _entities(method: StudyMethod, arms: int) -> list[tuple[int, ...]]:
    """Return the units that a batch is drawn from: arms, pairs (winner first where labelled), or groups of arms."""
    if method.rewards == "labels":
        return list(product(range(arms), repeat=2))
    size = {"single": 1, "pair": 2, "group": GROUP}[method.rows]
    return list(combinations_with_replacement(range(arms), size))


def _chances(
    method: StudyMethod, entities: Sequence[tuple[int, ...]], behaviour: Sequence[float], rewards: Sequence[float]
) -> np.ndarray:
    """Return the probability of drawing each unit; sigmoid(r - r') (Bradley-Terry) draws a labelled pair's winner."""
    p = np.array([prod(behaviour[arm] for arm in entity) for entity in entities])
    if method.rewards == "labels":
        margin = np.array([rewards[winner] - rewards[loser] for winner, loser in entities])
        return p * 2 / (1 + np.exp(-margin))
    orders = [factorial(len(entity)) / prod(factorial(entity.count(arm)) for arm in set(entity)) for entity in entities]
    return p * np.array(orders)


def _counts(chances: np.ndarray, seed: int, number: int, steps: int) -> np.ndarray:
    return np.random.default_rng(seed).multinomial(number, chances / chances.sum(), size=steps)


def _tables(records: Sequence[Record], steps: int) -> list[Crosstab]:
    named = [{**r, "data": f"{r['behaviour']}\n{r['rewards']}"} for r in records]
    last = [r for r in named if r["step"] == steps]
    first_step: dict[tuple[str, str, int], int] = {}
    for r in named:
        if r["regret"] < SMALL_REGRET:
            first_step.setdefault((r["method"], r["data"], r["seed"]), r["step"])
    when = [{**r, "steps": first_step.get((r["method"], r["data"], r["seed"]), inf)} for r in last]
    return [
        Crosstab(f"regret after {steps:,} steps, reward units", "method", "data", "regret", last, digits=4),
        Crosstab(
            f"steps until regret < {SMALL_REGRET:g}; never: some seed needs more than {steps:,}",
            "method",
            "data",
            "steps",
            when,
            digits=0,
        ),
    ]


def _draw(figure: Any, records: Sequence[Record]) -> None:
    behaviours = list(dict.fromkeys(r["behaviour"] for r in records))
    figure.set_size_inches(11, 3.2 * len(behaviours) + 0.8)
    panels = figure.subplots(len(behaviours), len(LEVELS), sharex=True, sharey=True, squeeze=False)
    for axes, (behaviour, level) in zip(panels.flat, product(behaviours, LEVELS), strict=True):
        mine = [r for r in records if (r["behaviour"], r["rewards"]) == (behaviour, level)]
        steps = sorted({r["step"] for r in mine})
        numbers: dict[str, list[float]] = {}
        for r in mine:
            numbers.setdefault(r["method"], []).append(r["regret"])
        curves = {name: np.array(values).reshape(len(steps), -1).T for name, values in numbers.items()}
        for number, (name, curve) in enumerate(merge_equal_curves(curves).items()):
            plot_band(axes, steps, curve, number, name)
        axes.set_yscale("log")
        axes.set_ylim(bottom=1e-5)
        axes.set_title(f"rewards {level}", fontsize=9)
    for axes in panels[-1]:
        axes.set_xlabel("optimiser steps")
    for axes, behaviour in zip(panels[:, 0], behaviours, strict=True):
        axes.set_ylabel(f"behaviour {behaviour}\nregret, reward units")
    shared_legend(figure, panels.flat[0], 5)
