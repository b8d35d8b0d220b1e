"""A step of several losses: each one's mean over its own units, weighed by its trajectories, however it is cut."""

from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer

from shiqrun import losses
from shiqrun.batching.columns import AnchorTokens
from shiqrun.batching.data_module import LoggedData
from shiqrun.batching.logged_data import EncodedData
from shiqrun.errors import TrainingError
from shiqrun.losses.anchor import anchor
from shiqrun.losses.soft_policy import monte_carlo
from shiqrun.models.policy import Policy
from shiqrun.models.reference import FrozenReference
from shiqrun.settings import AlgoSettings, TrainerSettings
from shiqrun.training.step.method import Method
from tests.support import helpers

BETA = 0.5
WHERE = {"logged": range(4), "online": range(4, 9), "annotated": range(9, 12)}
SPO, SHIQ = (partial(getattr(losses, name), beta=BETA) for name in ("spo", "shiq"))
CARLO = partial(monte_carlo, beta=BETA)
OTHERS = {"online": SHIQ, "annotated": CARLO}


def rows(source):
    """Those of a source, with all that the losses read."""
    whole = helpers.rows(12)
    made = whole.select(WHERE[source]).with_source(source).with_anchor(AnchorTokens(2, 48, 7))
    draw = np.random.default_rng(list(WHERE[source]))
    made = made.with_column("prompt_value", draw.normal(size=len(made)).astype(np.float32))
    targets = [-draw.random(n, np.float32) for n in made.actions]
    for target in targets:
        target[draw.random(len(target)) < 0.3] = np.nan
    return made if source == "online" else made.with_column("value_target", targets)


GIVEN = {source: rows(source) for source in WHERE}
CUTS = {
    "whole": {s: [[*range(len(r))]] for s, r in GIVEN.items()},
    "parts": {"logged": [[3, 0], [1], [2]], "online": [[4, 1, 2], [0, 3]], "annotated": [[2], [1, 0]]},
    "rows": {s: [[i] for i in range(len(r))] for s, r in GIVEN.items()},
}


def batches(cut):
    return [GIVEN[source].collate(some) for source, parts in CUTS[cut].items() for some in parts]


class Given(LoggedData):
    """Steps as they are."""

    def __init__(self, steps):
        super().__init__(
            EncodedData(GIVEN["logged"], GIVEN["logged"], Counter(), "x"), batch_size=12, micro_batch_tokens=9, seed=0
        )
        self.given = steps

    def train_dataloader(self):
        return self

    def __iter__(self):
        return iter(self.given)

    def __len__(self):
        return len(self.given)


class Gradients(Callback):
    def __init__(self):
        self.seen = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.seen.append([p.grad.clone() for p in pl_module.policy.parameters()])


def policy():
    return Policy(helpers.llama().double())


def method(loss, by_source, *, acting=None, **algo):
    settings = TrainerSettings(
        max_steps=1,
        max_epochs=None,
        batch_size=12,
        micro_batch_tokens=24,
        prompts_together=False,
        learning_rate=1e-2,
        weight_decay=0.0,
        warmup_steps=0,
        lr_schedule="constant",
        grad_clip=None,
        log_every=1,
        checkpoint_every=1000,
    )
    acting = acting or policy()
    return Method(
        acting,
        FrozenReference(acting),
        loss,
        settings,
        max_steps=1,
        seed=3,
        algo=AlgoSettings(**({"reference": "frozen", "reward_offset": "none"} | algo)),
        beta=BETA,
        by_source=by_source,
        sources=list(WHERE),
    )


def fit(made, steps, *callbacks):
    off = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    trainer = Trainer(accelerator="cpu", max_steps=1, max_epochs=-1, callbacks=list(callbacks), **off)
    kept = {}
    made.record = kept.update
    trainer.fit(made, datamodule=Given(steps))
    return kept


def moved():
    """A policy away from the reference, so that every term has a gradient."""
    other = policy()
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(1.1)
    return other


def gradient(loss, by_source, cut, **algo):
    """What the optimiser gets in a first step, of a policy that is not its reference."""
    made, seen = method(loss, by_source, acting=moved(), **algo), Gradients()
    made.reference = FrozenReference(policy())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shiqrun.training.step.method.check_step_zero", lambda *_: None)
        kept = fit(made, [batches(cut)], seen)
    return seen.seen[0], kept


def by_hand(loss, by_source, carlo=0.0, kappa=0.0):
    """The gradient of sum_g N_g / N mean_g and of the additions, each over the whole step."""
    acting, reference = moved(), FrozenReference(policy())
    parts, more = {}, {"anchor": [], "carlo": []}
    for source, given in GIVEN.items():
        batch = given.collate(range(len(given)))
        scored = (batch, acting(batch), reference(batch))
        parts.setdefault(by_source.get(source, loss), []).append((by_source.get(source, loss)(*scored), len(given)))
        more["anchor"].append(anchor(*scored, kappa=kappa, beta=BETA))
        more["carlo"].append(monte_carlo(*scored, beta=BETA))
    total = 0.0
    for found in parts.values():
        share = sum(n for _, n in found) / 12
        total += share * sum(terms.total for terms, _ in found) / sum(terms.count for terms, _ in found)
    for weight, found in ((float(bool(kappa)), more["anchor"]), (carlo, more["carlo"])):
        total += weight * sum(terms.total for terms in found) / sum(terms.count for terms in found)
    return torch.autograd.grad(total, list(acting.parameters()))


def apart(found, expected):
    """The largest distance of two gradients of a tensor, over the second's length."""
    assert min(float(b.norm()) for b in expected) > 0.01
    return max(float((a - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True))


NEAR = 1e-6
"""Relative: the backward pass of scoring has numbers in float32."""
ADDED = {"anchor": 0.7, "anchor_tokens": 2, "monte_carlo": 1.9}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("algo", [{}, ADDED])
@pytest.mark.parametrize(
    ("loss", "by_source"), [(SPO, OTHERS), (SPO, {"online": SHIQ}), (SHIQ, {"logged": SPO}), (SPO, {}), (SHIQ, {})]
)
def test_the_gradient_is_that_of_each_loss_s_mean_weighed_by_its_trajectories(loss, by_source, algo, cut):
    found, _ = gradient(loss, by_source, cut, **algo)
    expected = by_hand(loss, by_source, algo.get("monte_carlo", 0.0), algo.get("anchor", 0.0))
    assert apart(found, expected) < NEAR


def test_a_loss_named_for_a_source_that_has_it_anyway_changes_nothing():
    alone, _ = gradient(SPO, {}, "parts")
    named, _ = gradient(SPO, {"online": SPO}, "parts")
    assert apart(named, alone) < NEAR


def test_how_a_step_is_cut_changes_nothing_but_the_order_of_sums():
    whole, parts, single = (gradient(SPO, OTHERS, cut, **ADDED)[0] for cut in CUTS)
    assert apart(parts, whole) < NEAR
    assert apart(single, whole) < NEAR


def test_the_logged_loss_is_what_is_minimised():
    _, kept = gradient(SPO, OTHERS, "parts")
    acting, reference, expected = moved(), FrozenReference(policy()), 0.0
    for source, given in GIVEN.items():
        batch = given.collate(range(len(given)))
        terms = OTHERS.get(source, SPO)(batch, acting(batch), reference(batch))
        expected += float(terms.total.detach() / terms.count) * len(given) / 12
    assert kept["train/loss"] == pytest.approx(expected)


def test_rewards_are_told_apart_by_source():
    _, kept = gradient(SPO, OTHERS, "rows")
    for source, given in GIVEN.items():
        assert kept[f"train/reward/{source}"] == pytest.approx(given.returns.mean(), rel=1e-5)
    assert kept["train/reward"] == pytest.approx(np.concatenate([r.returns for r in GIVEN.values()]).mean(), rel=1e-5)


def acted(by):
    """The step, whose online part another policy may have sampled; older samples of other sources say nothing."""
    step = batches("parts")
    for k, batch in enumerate(step):
        if batch.source != "logged":
            logp = by(batch).logp.detach() - 9.0 * (batch.source != "online")
            step[k] = type(batch)(**{n: v for n, v in vars(batch).items() if n != "layout"} | {"acting_logp": logp})
    return step


def test_samples_of_the_policy_itself_are_accepted_and_those_of_another_refused():
    kept = fit(method(SPO, {}), [acted(policy())])
    assert kept["train/acting_gap"] < 1e-6
    before = method(SPO, {})
    start = [p.detach().clone() for p in before.policy.parameters()]
    with pytest.raises(TrainingError, match=r"samples are not of the policy that is scored: .* differ by 0\.\d+ nats"):
        fit(before, [acted(moved())])
    assert all(torch.equal(a, b) for a, b in zip(start, before.policy.parameters(), strict=True))


def test_the_gap_between_acting_and_scoring_is_a_mean_over_sampled_actions():
    other, kept = moved(), {}
    made = method(SPO, {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shiqrun.training.step.method.check_step_zero", lambda *_: None)
        kept = fit(made, [acted(other)])
    batch = GIVEN["online"].collate(range(5))
    gap = (policy()(batch).logp - other(batch).logp).abs()[batch.action_mask]
    assert kept["train/acting_gap"] == pytest.approx(float(gap.detach().mean()), rel=1e-6)
