"""The anchor: kappa beta^2 sum of squared gaps at tokens that were not taken, by a naive loop."""

import pytest
import torch

from shiqrun.losses.anchor import anchor
from shiqrun.types import ActionScores, Trajectories

B, A, K, V = 3, 4, 5, 6


def problem(seed=0):
    g = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([4, 0, 2])
    ids = torch.randint(V, (B, A + 1), generator=g)
    batch = Trajectories(
        input_ids=ids,
        attention_mask=torch.ones(B, A + 1, dtype=torch.bool),
        action_index=torch.arange(1, A + 1).expand(B, A),
        action_mask=torch.arange(A) < lengths[:, None],
        rewards=torch.zeros(B, A, dtype=torch.float64),
        group=torch.arange(B),
        anchor_tokens=torch.randint(V, (B, A, K), generator=g),
    )
    blank = torch.zeros(B, A, dtype=torch.float64)
    further = [torch.randn(B, A, K, generator=g, dtype=torch.float64) for _ in range(2)]
    policy, reference = (ActionScores(blank, blank, further=x, further_tokens=batch.anchor_tokens) for x in further)
    return batch, policy, reference


def test_anchor_is_the_naive_sum_without_the_action_itself():
    batch, policy, reference = problem()
    expected, same = 0.0, 0
    for b in range(B):
        for t in range(A):
            for j in range(K):
                if not batch.action_mask[b, t]:
                    continue
                if batch.anchor_tokens[b, t, j] == batch.input_ids[b, t + 1]:
                    same += 1
                    continue
                expected += 0.3 * 0.5**2 * float(policy.further[b, t, j] - reference.further[b, t, j]) ** 2
    assert same, "the draw must hit an action, or the exclusion is not tested"
    terms = anchor(batch, policy, reference, kappa=0.3, beta=0.5)
    assert float(terms.total) == pytest.approx(expected)
    assert int(terms.count) == 6


def test_nothing_of_the_padding_reaches_the_anchor():
    batch, policy, reference = problem()
    clean = anchor(batch, policy, reference, kappa=1, beta=1).total
    dirty = ActionScores(
        policy.logit,
        policy.log_partition,
        further=policy.further.masked_fill(~batch.action_mask[..., None], float("nan")).requires_grad_(),
        further_tokens=batch.anchor_tokens,
    )
    total = anchor(batch, dirty, reference, kappa=1, beta=1).total
    assert float(total.detach()) == pytest.approx(float(clean))
    (gradient,) = torch.autograd.grad(total, dirty.further)
    assert bool(torch.isfinite(gradient).all())


def test_equal_logits_cost_nothing_and_pull_nowhere():
    batch, policy, _ = problem()
    leaf = policy.further.clone().requires_grad_()
    held = ActionScores(policy.logit, policy.log_partition, further=leaf, further_tokens=batch.anchor_tokens)
    total = anchor(batch, held, policy, kappa=1, beta=1).total
    assert float(total.detach()) == 0
    assert not torch.autograd.grad(total, leaf)[0].any()


def test_without_tokens_it_says_what_is_missing():
    batch, policy, reference = problem()
    bare = ActionScores(reference.logit, reference.log_partition)
    with pytest.raises(ValueError, match="anchor_tokens"):
        anchor(batch, policy, bare, kappa=1, beta=1)
