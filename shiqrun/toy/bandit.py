"""Fig. 1 of the ShiQ paper (arXiv 2505.11081): a bandit with logged data, regret of the regularised objective.

A batch has few distinct rows (an arm, a pair of arms, a group of four), so each is scored once and counts as often as
it was drawn. Every seed draws its own batches; rewards as they are and centred see the same draws. With one action a
trajectory ShiQ, /ms and /tk are one loss, and so are /init and `direct`.
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
from shiqrun.toy import methods, problems
from shiqrun.toy.findings import Crosstab, Findings, Record, each_seed
from shiqrun.toy.learner import Learner, Method, Rows, rows_of
from shiqrun.toy.plotting import band, legend, merged
from shiqrun.types import Positive

GROUP = 4  # completions of a prompt whose mean is DRO's baseline
GOOD = 0.01  # regret at which a method counts as arrived, reward units
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
    """Regret of every method against optimiser steps, for each behaviour, with rewards as they are and centred twice.

    Args:
        first_seed: the first of the seeds.
        seeds: how many.
        rewards: of the arms, reward units.
        behaviours: probabilities of the arms under each distribution that acted.
        beta: KL temperature, reward units per nat.
        batch: completions of an optimiser step.
        steps: optimiser steps.
        learning_rate: of Adam.
        value_ratio: DRO-V's learning rate of the value, relative to the policy's.
        points: evaluations, evenly spaced, besides the one before the first step.

    Raises:
        InputError: a behaviour is no distribution over the arms.
    """
    _check(behaviours, rewards)
    all_seeds = range(first_seed, first_seed + seeds)
    problem = problems.bandit(rewards)
    settings = [Setting(tuple(behaviour), level) for behaviour in behaviours for level in LEVELS]
    tables, at = len(settings) * seeds, {round(steps * k / points) for k in range(points + 1)}
    records: list[Record] = []
    for method in track(_methods(beta), "bandit"):
        learner = Learner(
            method, problem.reference, tables=tables, learning_rate=learning_rate, value_ratio=value_ratio
        )
        rows, counts = draws(method, settings, all_seeds, rewards, batch=batch, steps=steps)
        for step in _steps(learner, rows, counts, at):
            regret = problem.regret(learner.logp(), beta).view(len(settings), seeds)
            for setting, values in zip(settings, regret.tolist(), strict=True):
                shared = {"behaviour": setting.name, "rewards": setting.level, "method": method.name, "step": step}
                records += each_seed(all_seeds, values, "regret", **shared)
    return Findings("bandit", records, _tables(records, steps), lambda figure: _draw(figure, records))


def _check(behaviours: Sequence[Sequence[float]], rewards: Sequence[float]) -> None:
    for behaviour in behaviours:
        if len(behaviour) != len(rewards) or min(behaviour) <= 0 or abs(sum(behaviour) - 1) > 1e-9:
            raise InputError(
                f"study.behaviours: met {behaviour}, expected {len(rewards)} positive numbers that sum to 1"
            )


def _steps(learner: Learner, rows: Rows, counts: Tensor, at: Collection[int]) -> Iterator[int]:
    """Trains, and yields each step of `at` when it is done; 0 is before the first."""
    rows = replace(rows, batch=replace(rows.batch, reference=learner.reference_scores(rows)))
    for step in range(len(counts) + 1):
        if step:
            learner.update(replace(rows, times=counts[step - 1]))
        if step in at:
            yield step


@dataclass(frozen=True)
class Setting:
    """A behaviour, and what is subtracted from its rewards: nothing, or their mean under it or under the reference."""

    behaviour: tuple[float, ...]
    level: str

    @property
    def name(self) -> str:
        """The probabilities of the arms."""
        return "/".join(f"{p:g}" for p in self.behaviour)

    def rewards(self, rewards: Sequence[float]) -> list[float]:
        """What the methods see, a number an arm."""
        weights = {
            "as they are": [0.0] * len(rewards),
            "minus data mean": self.behaviour,
            "minus reference mean": [1 / len(rewards)] * len(rewards),
        }
        mean = sum(p * r for p, r in zip(weights[self.level], rewards, strict=True))
        return [r - mean for r in rewards]


def _methods(beta: Positive) -> list[Method]:
    labels = replace(methods.dpo(beta), name="DPO Bradley-Terry", rewards="labels")
    return [
        methods.shiq(beta),
        methods.shiq_ms(beta),
        methods.shiq_tk(beta),
        methods.shiq_init(beta),
        methods.direct(beta),
        methods.soft_q(beta),
        methods.copg(beta),
        replace(methods.dpo(beta), name="DPO 0/1"),
        labels,
        methods.dro(beta),
        methods.dro_group_mean(beta),
        methods.dro_v(beta),
    ]


def draws(
    method: Method,
    settings: Sequence[Setting],
    seeds: Sequence[int],
    rewards: Sequence[float],
    *,
    batch: int,
    steps: int,
) -> tuple[Rows, Tensor]:
    """(every distinct row of every setting and seed, how often each is in each step's batch `[steps, B]`)."""
    entities = _entities(method, len(rewards))
    size, tables = len(entities[0]), len(settings) * len(seeds)
    action = torch.tensor(entities)
    seen = torch.tensor([setting.rewards(rewards) for setting in settings for _ in seeds], dtype=torch.float64)
    earned = seen[:, action]  # [tables, entities, size]
    if method.rewards == "labels":
        earned = torch.tensor([1.0, 0.0], dtype=torch.float64).expand_as(earned)
    shape = (tables, *action.shape)
    rows = rows_of(
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


def _entities(method: Method, arms: int) -> list[tuple[int, ...]]:
    """What a batch is drawn from: arms, pairs of arms (winner first where they are labelled), or groups of them."""
    if method.rewards == "labels":
        return list(product(range(arms), repeat=2))
    size = {"single": 1, "pair": 2, "group": GROUP}[method.rows]
    return list(combinations_with_replacement(range(arms), size))


def _chances(
    method: Method, entities: Sequence[tuple[int, ...]], behaviour: Sequence[float], rewards: Sequence[float]
) -> np.ndarray:
    """Probability of each; the winner of a labelled pair is drawn by Bradley and Terry, sigmoid(r - r')."""
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
    arrived: dict[tuple[str, str, int], int] = {}
    for r in named:
        if r["regret"] < GOOD:
            arrived.setdefault((r["method"], r["data"], r["seed"]), r["step"])
    when = [{**r, "steps": arrived.get((r["method"], r["data"], r["seed"]), inf)} for r in last]
    return [
        Crosstab(f"regret after {steps:,} steps, reward units", "method", "data", "regret", last, digits=4),
        Crosstab(
            f"steps until regret < {GOOD:g}; never: some seed not within {steps:,}",
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
        for number, (name, curve) in enumerate(merged(curves).items()):
            band(axes, steps, curve, number, name)
        axes.set_yscale("log")
        axes.set_ylim(bottom=1e-5)
        axes.set_title(f"rewards {level}", fontsize=9)
    for axes in panels[-1]:
        axes.set_xlabel("optimiser steps")
    for axes, behaviour in zip(panels[:, 0], behaviours, strict=True):
        axes.set_ylabel(f"behaviour {behaviour}\nregret, reward units")
    legend(figure, panels.flat[0], 5)
