"""The losses once more, as double loops over the papers' formulas; and random ragged batches to run them on."""

from dataclasses import replace
from functools import partial
from math import exp, log

import torch

from shiqrun import losses
from shiqrun.types import ActionScores, Trajectories
from tests.losses.group_naive import GROUP_GRADIENTS
from tests.losses.rows import BETA, Z

LENGTHS = (4, 1, 0, 7, 2, 3, 5, 2, 1, 6, 3, 0)
GROUPS = (4, 7, 7, 4, 1, 7, 4, 1, 9, 4, 1, 3)
LEVELS = {4: (1.0, 0.5, 0.5, -1.0), 7: (0.25, 0.25), 1: (-0.5, 2.0, 0.0), 9: (0.75,)}
"""Three, four, two and one completions of a prompt, with one row and one group without actions; what each group's
completions return: a tie in the middle of group 4, which leaves its best and worst alone, and one that is all of 7."""


def sft(rows):
    return sum((row.v[t] - row.l[t] for row in rows for t in row.actions), 0.0), _actions(rows)


def shiq(rows, lam=1.0):
    """lam = 1 from the definition of the path residual, the rest from sums of step residuals."""
    total = 0.0
    for row in rows:
        for t in row.actions:
            if lam == 1:
                delta = row.return_to_go(t) - BETA * row.shift(t)
            else:
                delta = sum(lam ** (k - t) * row.step(k) for k in row.actions if k >= t)
            total = total + delta**2
    return total, _actions(rows)


def by_trajectory(naive):
    """The loss whose unit is the trajectory: a row's squares are averaged, rows are counted."""

    def loss(rows):
        means = [total / count for total, count in (naive([row]) for row in rows if row.r)]
        return sum(means, 0.0), len(means)

    return loss


def shiq_init(rows):
    squares = ((row.return_to_go(t) - BETA * row.v[t]) ** 2 for row in rows for t in row.actions)
    return sum(squares, 0.0), _actions(rows)


def shiq_ms(rows):
    return sum((row.step(t) ** 2 for row in rows for t in row.actions), 0.0), _actions(rows)


def shiq_tk(rows):
    total = 0.0
    for row in rows:
        for t in row.actions:
            if t == 0 or row.index[t] != row.index[t - 1] + 1:
                total = total + (row.return_to_go(t) - BETA * row.shift(t)) ** 2
    return total, sum(1 for row in rows if row.r)


def faded(square, units="action", fade=0.8, fade_from="first"):
    """The loss whose squares `square(row, t)` are weighted by the powers of fade, and divided by their weights."""

    def loss(rows):
        total, count = 0.0, 0.0
        for row in rows:
            weights, squares = [], []
            for t in row.actions:
                if t == 0 or (fade_from == "turn" and row.index[t] != row.index[t - 1] + 1):
                    weight = 1.0
                weights.append(weight)
                squares.append(weight * square(row, t))
                weight = weight * fade
            whole = sum(weights) if units == "action" else 1.0 * bool(row.r)
            total = total + sum(squares, 0.0) * (whole / sum(weights) if row.r else 0.0)
            count += whole
        return total, count

    return loss


SQUARES = {
    "shiq": lambda row, t: (row.return_to_go(t) - BETA * row.shift(t)) ** 2,
    "shiq_init": lambda row, t: (row.return_to_go(t) - BETA * row.v[t]) ** 2,
    "shiq_ms": lambda row, t: row.step(t) ** 2,
}


def tbrm(rows):
    """The paper's form, in nats, times beta^2."""
    nats = [row.v[0] + row.total_ratio() - row.total_reward() / BETA for row in rows if row.r]
    return sum((BETA**2 * x**2 for x in nats), 0.0), _sequences(rows)


def qrpo(rows):
    """The partition function from its definition, the mean of exp(q / beta) over a uniform q."""
    partition = BETA * (exp(1 / BETA) - 1)
    residuals = [row.quantile - BETA * log(partition) - BETA * row.total_ratio() for row in rows if row.r]
    return sum((x**2 for x in residuals), 0.0), _sequences(rows)


def kto(rows, threshold=0.0, desirable_weight=1.0, undesirable_weight=1.0):
    total = 0.0
    for row in rows:
        if row.r:
            reward = BETA * (row.total_ratio() - Z)
            if row.total_reward() > threshold:
                total = total + desirable_weight * (1 - 1 / (1 + torch.exp(-reward)))
            else:
                total = total + undesirable_weight * (1 - 1 / (1 + torch.exp(reward)))
    return total, _sequences(rows)


def direct(rows):
    total = 0.0
    for row in rows:
        for t in row.actions:
            following = row.v[t + 1] if t + 1 in row.actions else 0.0
            total = total + (row.r[t] + BETA * following - BETA * (row.l[t] - (row.l0[t] - row.v0[t]))) ** 2
    return total, _actions(rows)


def soft_q(rows):
    """The value column stands for the soft value of every state."""
    total = 0.0
    for row in rows:
        for t in row.actions:
            following = row.value[t + 1] if t + 1 in row.actions else 0.0
            total = total + (row.r[t] + following - row.l[t]) ** 2
    return total, _actions(rows)


def dro(rows):
    return sum((row.return_to_go(0) ** 2 for row in rows if row.r), 0.0), _sequences(rows)


def dro_group_mean(rows):
    total = 0.0
    for row in rows:
        if row.r:
            others = [other.return_to_go(0) for other in rows if other.r and other.group == row.group]
            total = total + (row.return_to_go(0) - sum(others) / len(others)) ** 2
    return total, _sequences(rows)


def dro_v(rows):
    """Each term holds the other's network still."""
    total = 0.0
    for row in rows:
        if row.r:
            level, value = row.return_to_go(0), row.value[0]
            total = total + (level.detach() - value) ** 2 / 2 + (level - value.detach()) ** 2 / (2 * BETA)
    return total, _sequences(rows)


def oreo(rows, kl_reg=0.01, level="token"):
    """Each square holds the other's network still, and the policy's what comes behind its own action."""
    total = 0.0
    for row in rows:
        begins = [t for t in row.actions if level == "token" or t == 0 or row.index[t] != row.index[t - 1] + 1]
        for t, behind in zip(begins, [*begins, len(row.r)][1:], strict=True):
            earned = sum(row.r[t:])
            own = sum(row.log_ratio(k) for k in range(t, behind))
            later = sum((row.log_ratio(k).detach() for k in range(behind, len(row.r))), 0.0)
            fitted = earned - BETA * (own.detach() + later) - row.value[t]
            pulled = earned - BETA * (own + later) - row.value[t].detach()
            total = total + (fitted**2 + pulled**2) / len(begins)
        if row.r and kl_reg:
            total = total + kl_reg * sum(row.kl) / len(row.r)
    return total, _sequences(rows)


def pairs(rows, pairing="all"):
    """Every compared pair of rows, the first with the return that is not smaller; of equals the earlier is best."""
    found = []
    for group in sorted({row.group for row in rows}):
        members = [row for row in rows if row.group == group and row.r]
        for i in range(len(members)):
            for j in range(i + 1, len(members)):
                swap = members[j].total_reward() > members[i].total_reward()
                found.append((members[j], members[i]) if swap else (members[i], members[j]))
        if pairing == "best_worst" and len(members) > 1:
            ranked = sorted(members, key=lambda row: -row.total_reward())  # a stable sort
            found = [pair for pair in found if pair[0].group != group] + [(ranked[0], ranked[-1])]
    return found


def decided(rows, pairing="all"):
    """The pairs that have a winner."""
    return [(a, b) for a, b in pairs(rows, pairing) if a.total_reward() > b.total_reward()]


def copg(rows, pairing="all"):
    found = pairs(rows, pairing)
    return sum(((a.return_to_go(0) - b.return_to_go(0)) ** 2 for a, b in found), 0.0), len(found)


def dpo(rows, label_smoothing=0.0, pairing="all"):
    total, found = 0.0, decided(rows, pairing)
    for winner, loser in found:
        right = 1 / (1 + torch.exp(-BETA * (winner.total_ratio() - loser.total_ratio())))
        total = total - (1 - label_smoothing) * torch.log(right) - label_smoothing * torch.log(1 - right)
    return total, len(found)


def ipo(rows, pairing="all"):
    found = decided(rows, pairing)
    margins = [winner.total_ratio() - loser.total_ratio() for winner, loser in found]
    return sum(((margin - 1 / (2 * BETA)) ** 2 for margin in margins), 0.0), len(found)


def reward_model(rows, pairing="all"):
    found = decided(rows, pairing)
    return sum((torch.log1p(torch.exp(b.value[-1] - a.value[-1])) for a, b in found), 0.0), len(found)


def called_soft_q(batch, policy, reference):
    """soft_q with the value column as the soft value."""
    return losses.soft_q(batch, policy, reference, beta=BETA, soft_value=policy.value)


def _actions(rows):
    return sum(len(row.r) for row in rows)


def _sequences(rows):
    return sum(1 for row in rows if row.r)


LAMBDAS = (0.0, 0.5, 0.9)
WEIGHTED = {"threshold": 0.25, "desirable_weight": 0.6, "undesirable_weight": 1.5}
LOSSES = {
    "sft": (losses.sft, sft),
    "shiq": (partial(losses.shiq, beta=BETA), shiq),
    "shiq_init": (partial(losses.shiq_init, beta=BETA), shiq_init),
    "shiq_ms": (partial(losses.shiq_ms, beta=BETA), shiq_ms),
    "shiq_tk": (partial(losses.shiq_tk, beta=BETA), shiq_tk),
    **{f"shiq-{lam}": (partial(losses.shiq, beta=BETA, lam=lam), partial(shiq, lam=lam)) for lam in LAMBDAS},
    "direct": (partial(losses.direct, beta=BETA), direct),
    "soft_q": (called_soft_q, soft_q),
    "tbrm": (partial(losses.tbrm, beta=BETA), tbrm),
    "qrpo": (partial(losses.qrpo, beta=BETA), qrpo),
    "kto": (partial(losses.kto, beta=BETA), kto),
    "kto-weighted": (partial(losses.kto, beta=BETA, **WEIGHTED), partial(kto, **WEIGHTED)),
    "dro": (partial(losses.dro, beta=BETA), dro),
    "dro_v": (partial(losses.dro_v, beta=BETA), dro_v),
    "oreo": (partial(losses.oreo, beta=BETA, kl_reg=0.3), partial(oreo, kl_reg=0.3)),
    "oreo-turn": (partial(losses.oreo, beta=BETA, level="turn"), partial(oreo, level="turn")),
    "oreo-plain": (partial(losses.oreo, beta=BETA, kl_reg=0.0), partial(oreo, kl_reg=0.0)),
}
"""Name -> the loss and its naive twin; `shiq-0.9` is shiq with lam 0.9."""
WHOLE = {"units": "trajectory"}
LOSSES |= {
    "shiq-whole": (partial(losses.shiq, beta=BETA, **WHOLE), by_trajectory(shiq)),
    "shiq-0.9-whole": (partial(losses.shiq, beta=BETA, lam=0.9, **WHOLE), by_trajectory(partial(shiq, lam=0.9))),
    "shiq_init-whole": (partial(losses.shiq_init, beta=BETA, **WHOLE), by_trajectory(shiq_init)),
    "shiq_ms-whole": (partial(losses.shiq_ms, beta=BETA, **WHOLE), by_trajectory(shiq_ms)),
}
"""A trajectory is the unit, whatever its length."""
FADES = [{"fade": 0.8}, {"fade": 0.5, "fade_from": "turn", **WHOLE}, {"fade": 0.0, "fade_from": "turn"}]
LOSSES |= {
    f"{name}-fades-{i}": (partial(getattr(losses, name), beta=BETA, **fades), faded(square, **fades))
    for i, fades in enumerate(FADES)
    for name, square in SQUARES.items()
}
"""Squares are weighted, from the first action or from the first of every turn."""
SMOOTHED, SPARSE = {"label_smoothing": 0.2}, {"pairing": "best_worst"}
COMPARING = {
    "dro_group_mean": (partial(losses.dro, beta=BETA, baseline="group_mean"), dro_group_mean),
    "copg": (partial(losses.copg, beta=BETA), copg),
    "copg-best_worst": (partial(losses.copg, beta=BETA, **SPARSE), partial(copg, **SPARSE)),
    "dpo": (partial(losses.dpo, beta=BETA), dpo),
    "dpo-smoothed": (partial(losses.dpo, beta=BETA, **SMOOTHED), partial(dpo, **SMOOTHED)),
    "dpo-best_worst": (partial(losses.dpo, beta=BETA, **SPARSE), partial(dpo, **SPARSE)),
    "ipo": (partial(losses.ipo, beta=BETA), ipo),
    "ipo-best_worst": (partial(losses.ipo, beta=BETA, **SPARSE), partial(ipo, **SPARSE)),
    "reward_model": (losses.reward_model, reward_model),
    "reward_model-best_worst": (partial(losses.reward_model, **SPARSE), partial(reward_model, **SPARSE)),
}
"""The same for losses that compare the completions of one prompt: these must stay in one micro-batch."""
COMPARING |= GROUP_GRADIENTS
LOSSES |= COMPARING


def ragged(lengths=LENGTHS, width=7, seed=0, groups=None):
    """(batch, policy, reference): random float64 numbers, padding included; actions come in turns of random length.

    Rewards are eighths, so that returns are exact in any order. The default rows answer the prompts of GROUPS with
    the returns of LEVELS; otherwise `groups` says who answers which prompt, by default each its own.
    """
    draw = torch.Generator().manual_seed(seed)
    shape = (len(lengths), width)
    between = torch.randint(1, 4, shape, generator=draw)  # 1: the same turn; more: after a reply
    rewards = torch.randint(-8, 9, shape, generator=draw).to(torch.float64) / 8
    if lengths is LENGTHS:
        groups = GROUPS
        _set_returns(rewards, draw)
    batch = Trajectories(
        input_ids=torch.randint(0, 9, (len(lengths), 3 * width + 1), generator=draw),
        attention_mask=torch.ones(len(lengths), 3 * width + 1, dtype=torch.bool),
        action_index=between.cumsum(-1),
        action_mask=torch.arange(width) < torch.tensor(lengths)[:, None],
        rewards=rewards,
        group=torch.tensor(range(len(lengths)) if groups is None else groups),
        kl_estimate=torch.tensor(Z, dtype=torch.float64),
        quantile=torch.arange(len(lengths), dtype=torch.float64) * 5 % 8 / 8,
    )
    policy, reference = scores(shape, draw), scores(shape, draw)
    return _sampled(batch, policy, seed), policy, reference


def _sampled(batch, policy, seed):
    """The batch with proximal scores near the policy's, and with a distribution near those that it was sampled from."""
    draw = torch.Generator().manual_seed(seed + 500)
    noise = 0.3 * torch.randn(4, *batch.rewards.shape, dtype=torch.float64, generator=draw)
    near = (policy.logit, policy.log_partition, policy.value)
    proximal = ActionScores(*(x.detach() + e for x, e in zip(near, noise[:3], strict=True)))
    return replace(batch, proximal=proximal, behaviour_logp=proximal.logp + noise[3])


def _set_returns(rewards, draw):
    """Deals each group's returns of LEVELS to its completions, through the reward of the last action."""
    for group, levels in LEVELS.items():
        members = [b for b, (g, length) in enumerate(zip(GROUPS, LENGTHS, strict=True)) if g == group and length]
        for level, i in zip(levels, torch.randperm(len(members), generator=draw), strict=True):
            row, length = rewards[members[i]], LENGTHS[members[i]]
            row[length - 1] = level - row[: length - 1].sum()


def scores(shape, draw):
    """Random scores in which the log-partition exceeds the logit, as leaves that take a gradient."""
    logit, gap, value = torch.randn(3, *shape, dtype=torch.float64, generator=draw)
    kl = torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(17))
    parts = (logit, logit + gap.abs(), value, kl)
    return ActionScores(*(part.clone().requires_grad_() for part in parts))


def numbers(policy):
    """What a loss may take a gradient from."""
    given = (policy.logit, policy.log_partition, policy.value, policy.kl)
    return given[:3] if policy.kl is None else given


def gradients(terms, policy):
    """d total / d (logit, log_partition, value, kl), zeros where nothing arrives."""
    return list(torch.autograd.grad(terms.total, numbers(policy), materialize_grads=True))
