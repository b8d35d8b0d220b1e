"""The KL over the vocabulary, tile by tile, against the dense computation: values, gradients and memory."""

import pytest
import torch
from torch.testing import assert_close

from shiqrun.models.attention import use_packed_attention
from shiqrun.models.chunked_scores import Plan
from shiqrun.models.head import Head
from shiqrun.models.policy import Policy
from shiqrun.models.reference import FrozenReference
from shiqrun.models.vocabulary_kl import States, scores_against
from tests.models.dense import N, V, all_logits, gradients, problem
from tests.support import helpers

HEADS = pytest.mark.parametrize(("scale", "cap"), [(1.0, None), (0.7, None), (1.0, 2.0), (1.7, 3.0)])
ROWS = pytest.mark.parametrize("rows", [1, 4, 64])  # 4 does not divide 11


def plan(rows=4, scale=1.0, cap=None, factors=torch.float64):
    return Plan(scale, cap, factors, "recomputed", rows, 0, True)


def other(d=7, scale=1.3, cap=None, bias=True):
    """Another model with another width, scale and cap."""
    hidden, weight, b, _ = problem(d=d, bias=bias)
    return States(hidden.detach(), Head(weight.detach(), b if b is None else b.detach(), scale, cap))


def dense(hidden, weight, bias, tokens, theirs, scale, cap):
    """(logits of the tokens, log-partitions, KL) from all logits of both models at once."""
    x = all_logits(hidden, weight, bias, scale, cap)
    y = all_logits(theirs.hidden, *theirs.head)
    ours, reference = x.log_softmax(-1), y.log_softmax(-1)
    return x.gather(1, tokens), x.logsumexp(-1), (ours.exp() * (ours - reference)).sum(-1)


def tokens_of(targets, repeated=False):
    further = torch.randint(V, (N, 2), generator=torch.Generator().manual_seed(3))
    if repeated:
        further[0, :] = targets[0]
    return torch.cat([targets[:, None], further], 1)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@HEADS
@ROWS
def test_values_and_gradients_are_those_of_all_logits_at_once(rows, scale, cap, bias):
    *inputs, targets = problem(bias=bias)
    theirs, tokens = other(cap=cap, bias=bias), tokens_of(targets, repeated=True)
    found = scores_against(*inputs, tokens, theirs, plan(rows, scale, cap))
    outputs, expected = (found[0], found[2], found[5]), dense(*inputs, tokens, theirs, scale, cap)
    assert_close(outputs, expected)
    assert float(found[5].detach().min()) > 0
    draw = torch.Generator().manual_seed(5)
    up = [torch.randn(x.shape, dtype=torch.float64, generator=draw) for x in expected]
    assert_close(gradients(outputs, up, inputs), gradients(expected, up, inputs))


@HEADS
def test_gradients_are_those_of_finite_differences(scale, cap):
    *inputs, targets = problem()
    theirs, tokens = other(cap=cap), targets[:, None]

    def scored(*x):
        found = scores_against(*x, tokens, theirs, plan(4, scale, cap))
        return found[0], found[2], found[5]

    assert torch.autograd.gradcheck(scored, tuple(inputs))


def test_a_model_has_no_kl_from_itself_and_no_gradient_of_it():
    *inputs, targets = problem()
    same = States(inputs[0].detach(), Head(inputs[1].detach(), inputs[2].detach(), 1.0, None))
    kl = scores_against(*inputs, targets[:, None], same, plan())[5]
    assert float(kl.detach().abs().max()) < 1e-13
    assert all(float(g.abs().max()) < 1e-12 for g in torch.autograd.grad(kl.sum(), inputs))


def test_entropy_and_hits_are_read_off_the_same_tiles():
    *inputs, targets = problem()
    _, _, _, entropy, hits, _ = scores_against(*inputs, targets[:, None], other(), plan())
    logp = all_logits(*inputs).log_softmax(-1)
    assert_close(entropy, -(logp.exp() * logp).sum(-1))
    assert hits.tolist() == (logp.argmax(-1) == targets).tolist()


def test_in_float32_values_are_those_of_float64_to_its_precision():
    *inputs, targets = problem(torch.float32)
    theirs = other()
    narrow = States(theirs.hidden.float(), Head(theirs.head.weight.float(), theirs.head.bias.float(), 1.3, None))
    kl = scores_against(*inputs, targets[:, None], narrow, plan(factors=torch.float32))[5]
    assert kl.dtype == torch.float32
    assert_close(kl.double(), dense(*inputs, targets[:, None], narrow, 1.0, None)[2], rtol=1e-5, atol=1e-5)


def test_no_tensor_of_all_actions_and_tokens_is_kept():
    """What the graph saves is as large as the inputs, whatever V is."""
    *inputs, targets = problem(n=64, v=5000)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        scores_against(
            *inputs,
            targets[:, None],
            States(inputs[0].detach(), Head(*(x.detach() for x in inputs[1:]), 1.0, None)),
            plan(8),
        )
    assert max(kept) <= max(x.numel() for x in inputs) < 64 * 5000


# ------------------------------------------------------------------ through a model
@pytest.mark.parametrize("packed", [False, True])
def test_a_policy_compares_itself_with_a_live_reference_at_every_action(packed):
    """The weights' gradient too, against all logits of both models."""
    network, start = helpers.llama(seed=0), helpers.llama(seed=1)
    policy, reference = Policy(network), FrozenReference(Policy(start))
    rows = helpers.rows(6)
    if packed:
        assert all(map(use_packed_attention, (network, reference.policy.causal_lm)))
    batch = rows.with_layout(packed=packed).collate(range(6))
    frozen, states = reference.with_states(batch)
    assert_close(frozen.logit, reference(batch).logit)
    scored = policy(batch, against=states)
    plain = policy(batch)
    assert_close((scored.logit, scored.log_partition), (plain.logit, plain.log_partition))
    expected = divergence(network, start, batch)
    assert_close(scored.kl, expected, rtol=1e-4, atol=1e-5)
    assert float(scored.kl[batch.action_mask].detach().min()) > 0
    weights = list(network.parameters())
    ours = torch.autograd.grad(scored.kl.sum(), weights, allow_unused=True)
    theirs = torch.autograd.grad(expected.sum(), weights, allow_unused=True)
    for a, b in zip(ours, theirs, strict=True):
        assert_close(a, b, rtol=1e-3, atol=1e-4)  # float32 sums in another order, through the whole network


def divergence(network, start, batch):
    """KL(pi || pi_ref) at every action's state, from all logits of both models."""
    logp = []
    for model in (network, start):
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask.long()).logits
        at = (batch.action_index - 1).clamp(min=0)[..., None].expand(-1, -1, logits.shape[-1])
        logp.append(logits.gather(1, at).log_softmax(-1))
    kl = (logp[0].exp() * (logp[0] - logp[1].detach())).sum(-1)
    return kl.masked_fill(~batch.action_mask, 0)
