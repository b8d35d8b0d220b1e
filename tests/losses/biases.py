"""`python -m tests.losses.biases` prints how far from the optimal policy each loss arrives on an enumerated tree.

Every loss is minimised from the reference (OREO: descended with Adam) on all 15 paths of a tree of three actions and
three steps, with random rewards and beta = 0.6; the tests of this folder check the same minimisers. Distances are
KL(pi || pi*) in nats over whole paths. The reference itself is the first row.
"""

from dataclasses import replace
from functools import partial
from math import exp, log

import torch

from shiqrun import losses
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


def main() -> None:
    """Print the table."""
    tree, reference, _ = world(vocabulary=3, horizon=3)
    prior, returns = tree.probabilities(reference), tree.returns()
    batch, frozen = tree.trajectories(), tree.scores(reference)
    best = tree.best_probabilities(reference, BETA)

    def say(name, policy, optimum=best):
        found = kl(policy, optimum)
        print(f"{name:48} {found if found > 1e-8 else 0:9.2g}", flush=True)  # below it is where LBFGS stops

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
