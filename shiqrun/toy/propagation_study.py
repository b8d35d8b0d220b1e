"""This study counts updates until the first token of a sequence has a gradient, if only the last token is rewarded.

Each seed has one logged sequence, random reference logits and a random reward; the policy starts at the reference.
One-step residuals carry the reward back by one token an update; residuals of whole suffixes reach every token at once.
"""

from typing import Annotated, Any

import torch
from annotated_types import Ge

from shiqrun.toy import study_methods
from shiqrun.toy.findings import Crosstab, Findings, Record, seed_records
from shiqrun.toy.learner import Learner, StudyMethod, table_rows
from shiqrun.toy.plotting import COLOURS
from shiqrun.types import Positive


def study(
    first_seed: int,
    *,
    seeds: Annotated[int, Ge(2)],
    lengths: list[Annotated[int, Ge(2)]],
    actions: Annotated[int, Ge(2)],
    beta: Positive,
    learning_rate: Positive,
) -> Findings:
    """Find the first update in which the first token's logits have a gradient, for every length and method.

    Args:
        first_seed: the first seed.
        seeds: number of seeds.
        lengths: lengths of the sequences in tokens.
        actions: size of the vocabulary.
        beta: KL temperature, reward units per nat.
        learning_rate: learning rate of Adam.
    """
    all_seeds = range(first_seed, first_seed + seeds)
    records: list[Record] = []
    for length in lengths:
        for method in _methods(beta):
            gradients = first_token_gradients(method, length, actions, all_seeds, learning_rate)
            updates = (gradients == 0).sum(0) + 1
            shared = {"tokens": length, "method": method.name}
            found = seed_records(all_seeds, updates.tolist(), "updates", **shared)
            records += [{**r, "gradient": g} for r, g in zip(found, gradients.max(0).values.tolist(), strict=True)]
    named = [{**r, "length": f"{r['tokens']} tokens"} for r in records]
    table = Crosstab("updates until the first token has a gradient", "method", "length", "updates", named, digits=0)
    return Findings("propagation", records, [table], lambda figure: _draw(figure, records))


def _methods(beta: Positive) -> list[StudyMethod]:
    return [
        study_methods.shiq(beta),
        study_methods.shiq(beta, lam=0.9),
        study_methods.shiq_tk(beta),
        study_methods.shiq_ms(beta),
    ]


def first_token_gradients(
    method: StudyMethod, length: int, actions: int, seeds: range, learning_rate: Positive
) -> torch.Tensor:
    """Return the norm of the gradient at the first token's logits in each update, `[updates, seeds]`.

    Updates end when all seeds have a gradient there, or after 2 * length.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    reference = torch.stack([torch.randn(length, actions, dtype=torch.float64, generator=g) for g in generators])
    rewards = torch.zeros(len(seeds), length, dtype=torch.float64)
    rewards[:, -1] = torch.cat([torch.randn(1, dtype=torch.float64, generator=g) for g in generators])
    action = torch.cat([torch.randint(actions, (1, length), generator=g) for g in generators])
    table = torch.arange(len(seeds))
    state = torch.arange(length).expand_as(action)
    rows = table_rows(table, state, action, rewards, torch.ones_like(action, dtype=torch.bool), table)
    learner = Learner(method, reference, tables=len(seeds), learning_rate=learning_rate)
    norms: list[torch.Tensor] = []
    while len(norms) < 2 * length and (not norms or (norms[-1] == 0).any()):
        learner.update(rows)
        assert learner.logits.grad is not None
        norms.append(learner.logits.grad[:, 0].norm(dim=-1).clone())
    return torch.stack(norms)


def _draw(figure: Any, records: list[Record]) -> None:
    figure.set_size_inches(5, 3.8)
    axes = figure.subplots()
    for number, name in enumerate(dict.fromkeys(r["method"] for r in records)):
        mine = [r for r in records if r["method"] == name]
        cells = Crosstab("", "tokens", "method", "updates", mine).cells()
        lengths, means = [row for row, _ in cells], [mean for mean, _ in cells.values()]
        style = {"marker": "osD^"[number % 4], "ms": 9 - 2 * number, "linestyle": ("-", "--", ":", "-")[number % 4]}
        axes.plot(lengths, means, color=COLOURS[number], label=name, **style)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    ticks = sorted({r["tokens"] for r in records})
    axes.set_xticks(ticks, [str(t) for t in ticks])
    axes.set_yticks([1, *ticks], [str(t) for t in (1, *ticks)])
    axes.set_xlabel("tokens of the sequence")
    axes.set_ylabel("updates until the first token has a gradient")
    axes.legend()
