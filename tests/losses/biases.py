"""`python -m tests.losses.biases` prints how far from the optimal policy each loss arrives on an enumerated tree.

Every loss is minimised from the reference (OREO and the policy gradients: descended with Adam) on all 15 paths of a
tree of three actions and three steps, with random rewards and beta = 0.6; the tests of this folder check the same
minimisers. The reference of OAPL stays, and its groups are all that the reference may sample. Distances are
KL(pi || pi*) in nats over whole paths. The reference itself is the first row.

The gradient of RLOO is that of all paths as one group, each weighed by its probability under the policy. "KL in the
loss" is GRPO's paper: advantages of the rewards alone, of an infinite group of the policy's samples, and beta times an
estimate of the KL, exp(-D) + D - 1 at every token, in the loss.
"""

from dataclasses import replace
from functools import partial
from math import exp, inf, log

import torch

from shiqrun import losses
from shiqrun.types import ActionScores, LossTerms
from tests.losses.test_fixed_points import BETA, SHAPED, UNSHIFTED, world
from tests.losses.test_offline_reasoning import descended
from tests.losses.trees import kl, minimised

UNBIASED = {
    "shiq": SHAPED["shiq-1.0"],
    "shiq, fade=0.7": SHAPED["shiq-fades"],
    "shiq_ms": SHAPED["shiq_ms"],
    "shiq_tk": SHAPED["shiq_tk"],
    "shiq_init": partial(losses.shiq_init, beta=BETA),
    "tbrm": partial(losses.tbrm, beta=BETA),
    "direct": partial(losses.direct, beta=BETA),
    "copg, rebel": UNSHIFTED["copg"],
    "dro baseline=group_mean, agro, tba, gvpo": UNSHIFTED["dro_group_mean"],
}


def followed(gradient_of, start):
    """The table that Adam reaches, with a falling rate, along the gradient of a scalar that each step makes anew."""
    table = start.clone().requires_grad_()
    optimiser = torch.optim.Adam([table], lr=0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, 0.995)
    for _ in range(2000):
        optimiser.zero_grad()
        gradient_of(table).backward()
        optimiser.step()
        schedule.step()
    return table.detach()


def with_kl_in_the_loss(tree, reference, scaled):
    """The objective of GRPO's paper at a table, over all of its paths, as `followed` takes it."""
    batch, frozen = tree.trajectories(), tree.scores(reference)
    returns = batch.rewards.sum(-1)

    def loss(table):
        logp = tree.scores(table).logp
        chances = logp.detach().masked_fill(~batch.action_mask, 0).sum(-1).exp()
        advantage = returns - (chances * returns).sum()
        advantage = advantage / (chances * advantage.square()).sum().sqrt() if scaled else advantage
        behind = frozen.logp - logp
        tokens = BETA * (behind.exp() - behind - 1) - advantage[:, None] * logp
        return (chances * tokens.masked_fill(~batch.action_mask, 0).sum(-1)).sum()

    return loss


def rloo_of_all_paths(tree, reference):
    """RLOO of every path once, as if they had been sampled evenly; weights undo that."""
    batch, frozen = tree.trajectories(), tree.scores(reference)
    even = torch.zeros_like(batch.rewards)
    even[:, 0] = -log(len(batch.group))
    batch = replace(batch, behaviour_logp=even)
    return lambda table: losses.rloo(batch, tree.scores(table), frozen, beta=BETA, importance_cap=inf).total


def oapl_of_groups(tree, reference, size):
    """OAPL's squares, each by the probability of its path, with the mean value of groups that the path is in."""
    batch, frozen = tree.trajectories(), tree.scores(reference)
    prior = torch.tensor(tree.probabilities(reference), dtype=torch.float64)
    powers = torch.tensor([exp(r / BETA) for r in tree.returns()], dtype=torch.float64)
    sums, chances = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    for _ in range(size - 1):  # of the other completions
        sums, chances = (sums[:, None] + powers).flatten(), (chances[:, None] * prior).flatten()
    values = [float((chances * BETA * ((sums + own) / size).log()).sum()) for own in powers]
    batch = replace(batch, prompt_value=torch.tensor(values, dtype=torch.float64))

    def loss(table):
        policy, total = tree.scores(table), 0.0
        for i, chance in enumerate(prior):
            total = total + chance * losses.spo(*rows_at(batch, policy, frozen, i), beta=BETA).total
        return LossTerms(total, torch.ones(()))

    return loss


def rows_at(batch, policy, reference, i):
    """One row of a problem."""
    names = ("input_ids", "attention_mask", "action_index", "action_mask", "rewards", "group", "prompt_value")
    one = replace(batch, **{name: getattr(batch, name)[i : i + 1] for name in names})
    return one, *(ActionScores(s.logit[i : i + 1], s.log_partition[i : i + 1]) for s in (policy, reference))


def main() -> None:
    """Print the table."""
    tree, reference, _ = world(vocabulary=3, horizon=3)
    prior, returns = tree.probabilities(reference), tree.returns()
    batch, frozen = tree.trajectories(), tree.scores(reference)
    best = tree.best_probabilities(reference, BETA)

    def say(name, policy, optimum=best):
        found = kl(policy, optimum)
        print(f"{name:52} {found if found > 1e-8 else 0:9.2g}", flush=True)  # below it is where LBFGS stops

    def arrived(loss, of=batch):
        return tree.probabilities(minimised(lambda table: loss(of, tree.scores(table), frozen), reference))

    def valued(temperature):
        value = temperature * log(sum(p * exp(r / temperature) for p, r in zip(prior, returns, strict=True)))
        return replace(batch, prompt_value=torch.full((len(returns),), value, dtype=torch.float64))

    say("the reference", prior)
    for name, loss in UNBIASED.items():
        say(name, arrived(loss))
    for ratio in (1, 2, 10):
        say(f"spo, a2po, value_beta = {ratio} beta", arrived(partial(losses.spo, beta=BETA), valued(ratio * BETA)))
    say("dro", arrived(partial(losses.dro, beta=BETA)))
    for kl_reg in (0.0, 0.01, 0.1, 1.0):
        _, _, table, _ = descended("token", kl_reg)
        say(f"oreo, kl_reg={kl_reg:g}", tree.probabilities(table))
    say("rloo", tree.probabilities(followed(rloo_of_all_paths(tree, reference), reference)))
    for scaled in (False, True):
        divided = ", advantages by their deviation" * scaled
        found = followed(with_kl_in_the_loss(tree, reference, scaled), reference)
        say(f"grpo, KL in the loss{divided}", tree.probabilities(found))
    for size in (2, 4, 6):
        found = minimised(oapl_of_groups(tree, reference, size), reference)
        say(f"oapl, groups of {size}", tree.probabilities(found))
    say("ipo, all pairs, certain labels", arrived(partial(losses.ipo, beta=BETA)))
    for wrong in (0.0, 0.1):
        say(
            f"dpo, certain labels, label_smoothing={wrong:g}",
            arrived(partial(losses.dpo, beta=BETA, label_smoothing=wrong)),
        )
    for z in (0.0, 1.0):
        at = replace(batch, kl_estimate=torch.tensor(z, dtype=torch.float64))
        say(f"kto, z={z:g}", arrived(partial(losses.kto, beta=BETA), at))
    quantiles = tree.quantiles(reference)
    ranked = replace(batch, quantile=torch.tensor(quantiles, dtype=torch.float64))
    policy = arrived(partial(losses.qrpo, beta=BETA), ranked)
    say("qrpo", policy)
    say("qrpo, from the optimum of its own quantiles", policy, tree.best_probabilities(reference, BETA, quantiles))


if __name__ == "__main__":
    main()
