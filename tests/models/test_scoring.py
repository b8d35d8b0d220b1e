"""The chunked scores against the dense computation: values, gradients, precision, memory and refusals."""

import pytest
import torch
from torch.nn.functional import embedding
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from shiqrun.models.scoring import chunk_rows, score_actions, score_further

N, D, V = 11, 5, 23
BIAS = pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
CHUNK = pytest.mark.parametrize("chunk", [1, 4, 11, 64, None])  # 4 does not divide 11


def problem(dtype=torch.float64, *, bias=True, n=N, d=D, v=V, scale=1.0):
    """(hidden, weight, bias, targets) with leaves that take a gradient."""
    draw = torch.Generator().manual_seed(n + d + v)

    def leaf(*shape):
        return (scale * torch.randn(shape, dtype=torch.float64, generator=draw)).to(dtype).requires_grad_()

    return leaf(n, d), leaf(v, d), leaf(v) if bias else None, torch.randint(v, (n,), generator=draw)


def dense(hidden, weight, bias, targets):
    """The same two numbers from all logits at once, in float64."""
    logits = hidden.double() @ weight.double().t() + (0 if bias is None else bias.double())
    return logits[torch.arange(len(targets)), targets], logits.logsumexp(-1)


def gradients(outputs, upstream, inputs):
    leaves = [x for x in inputs if x is not None and x.requires_grad]
    return torch.autograd.grad(outputs, leaves, upstream)


def upstreams(n=N):
    """Two gradients that have nothing to do with each other."""
    return torch.randn(2, n, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).unbind()


@BIAS
@CHUNK
def test_gradients_are_those_of_finite_differences(bias, chunk):
    *inputs, targets = problem(bias=bias)
    assert torch.autograd.gradcheck(lambda *x: score_actions(*x, targets, chunk=chunk), tuple(inputs))


@BIAS
@CHUNK
def test_values_and_gradients_are_those_of_all_logits_at_once(bias, chunk):
    inputs = problem(bias=bias)
    outputs, truth = score_actions(*inputs, chunk=chunk), dense(*inputs)
    assert_close(outputs, truth)
    assert_close(gradients(outputs, upstreams(), inputs), gradients(truth, upstreams(), inputs))


@pytest.mark.parametrize("used", [0, 1])
def test_each_output_alone_gives_its_own_gradient(used):
    inputs = problem()
    got = gradients(score_actions(*inputs, chunk=4)[used], upstreams()[used], inputs)
    assert_close(got, gradients(dense(*inputs)[used], upstreams()[used], inputs))


@BIAS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_inputs_give_float32_scores_of_the_float64_truth(dtype, bias):
    inputs = problem(dtype, bias=bias, n=40, d=64, v=500, scale=0.5)
    logit, log_partition = score_actions(*inputs, chunk=16)
    truth = dense(*inputs)
    assert logit.dtype == log_partition.dtype == torch.float32
    assert_close((logit, log_partition), tuple(x.float() for x in truth))
    upstream = upstreams(40)
    got = gradients((logit, log_partition), [g.float() for g in upstream], inputs)
    expected = gradients(truth, upstream, inputs)
    assert [g.dtype for g in got] == [dtype] * len(got)
    assert_close(got, expected)


def test_a_bfloat16_log_partition_keeps_what_bfloat16_cannot_hold():
    hidden, weight, _, targets = problem(torch.bfloat16, bias=False, n=8, d=4, v=400)
    shift = torch.full((400,), 10.0, dtype=torch.bfloat16)
    partition = score_actions(hidden, weight, shift, targets)[1]
    truth = dense(hidden, weight, shift, targets)[1]
    assert (truth.bfloat16() - truth).abs().max().item() > 0.01  # bfloat16 steps by 0.125 here
    assert_close(partition, truth.float())


def test_a_body_in_bfloat16_with_a_float32_head_keeps_the_precision_of_the_head():
    hidden, weight, bias, targets = problem(torch.float32, n=40, d=64, v=500, scale=0.5)
    inputs = (hidden.detach().bfloat16().requires_grad_(), weight, bias, targets)
    outputs, truth = score_actions(*inputs, chunk=16), dense(*inputs)
    assert_close(outputs, tuple(x.float() for x in truth))
    got = gradients(outputs, [g.float() for g in upstreams(40)], inputs)
    assert [g.dtype for g in got] == [torch.bfloat16, torch.float32, torch.float32]
    assert_close(got, gradients(truth, upstreams(40), inputs))


def test_autocast_changes_neither_scores_nor_gradients():
    inputs = problem(torch.float32, n=6, d=32, v=100)
    expected = score_actions(*inputs, chunk=4)
    wanted = gradients(expected, [g.float() for g in upstreams(6)], inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = score_actions(*inputs, chunk=4)
        got = gradients(outputs, [g.float() for g in upstreams(6)], inputs)
    assert_close(outputs, expected)
    assert_close(got, wanted)


@BIAS
def test_no_actions_give_no_scores_and_zero_gradients(bias):
    inputs = problem(bias=bias, n=0)
    outputs = score_actions(*inputs)
    assert [list(x.shape) for x in outputs] == [[0], [0]]
    got = gradients(outputs, upstreams(0), inputs)
    assert [g.shape for g in got] == [x.shape for x in inputs[:3] if x is not None]
    assert not any(g.any() for g in got)


def test_strided_inputs_give_the_same():
    hidden, weight, bias, targets = problem()
    plain = (hidden, weight, bias, targets)
    strided = (
        hidden.detach().t().contiguous().t().requires_grad_(),
        torch.stack([weight.detach()] * 2, -1)[..., 0].requires_grad_(),
        torch.stack([bias.detach()] * 2, -1)[..., 0].requires_grad_(),
        torch.stack([targets] * 2, -1)[..., 0],
    )
    assert not any(x.is_contiguous() for x in strided)
    outputs, expected = score_actions(*strided, chunk=4), score_actions(*plain, chunk=4)
    assert_close(outputs, expected)
    assert_close(gradients(outputs, upstreams(), strided), gradients(expected, upstreams(), plain))


def test_an_expanded_upstream_gradient_gives_the_same():
    inputs = problem()
    outputs = score_actions(*inputs, chunk=4)
    got = torch.autograd.grad(outputs[0].sum() + outputs[1].sum(), inputs[:3], retain_graph=True)
    assert_close(got, gradients(outputs, [torch.ones(N, dtype=torch.float64)] * 2, inputs))


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_an_input_without_gradient_leaves_the_others_theirs(frozen):
    inputs = problem()
    inputs[frozen].requires_grad_(False)
    got = gradients(score_actions(*inputs, chunk=4), upstreams(), inputs)
    assert_close(got, gradients(dense(*inputs), upstreams(), inputs))


def test_a_weight_tied_to_the_embedding_gets_both_gradients():
    _, weight, bias, targets = problem()
    ids = torch.arange(N) % V

    def hidden():
        return embedding(ids, weight).tanh()

    got = gradients(score_actions(hidden(), weight, bias, targets, chunk=4), upstreams(), (weight, bias))
    assert_close(got, gradients(dense(hidden(), weight, bias, targets), upstreams(), (weight, bias)))


class Largest(TorchDispatchMode):
    """Inside, keeps the number of entries of the largest tensor that any operation returns."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.numel = max(self.numel, *(x.numel() for x in tree_leaves(result) if isinstance(x, torch.Tensor)), 0)
        return result


def test_no_tensor_is_larger_than_one_chunk_of_logits():
    inputs = problem(torch.float32, n=64, d=4, v=500)
    found = {}
    for name, scoring in (("chunked", lambda *x: score_actions(*x, chunk=8)), ("dense", dense)):
        with Largest() as largest:
            logit, log_partition = scoring(*inputs)
            (logit + log_partition).sum().backward()
        found[name] = largest.numel
    assert found == {"chunked": 8 * 500, "dense": 64 * 500}


@pytest.mark.parametrize(("vocabulary", "rows"), [(32, 4096), (32_000, 512), (128_256, 256), (10_000_000, 256)])
def test_a_chunk_fits_its_budget_unless_it_would_be_too_small(vocabulary, rows):
    assert chunk_rows(vocabulary, "cpu") == rows


@pytest.mark.parametrize(
    ("hidden", "weight", "bias", "targets", "met"),
    [
        ((N, D, 1), (V, D), (V,), (N,), "hidden"),
        ((N, D), (V, D + 1), (V,), (N,), "weight"),
        ((N, D), (V,), (V,), (N,), "weight"),
        ((N, D), (V, D), (V,), (N - 1,), "targets"),
        ((N, D), (V, D), (V,), (N, 1), "targets"),
        ((N, D), (V, D), (1,), (N,), "bias"),
        ((N, D), (V, D), (V, 1), (N,), "bias"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(hidden, weight, bias, targets, met):
    with pytest.raises(ValueError, match=met):
        score_actions(
            torch.zeros(hidden), torch.zeros(weight), torch.zeros(bias), torch.zeros(targets, dtype=torch.int64)
        )


# ------------------------------------------------------------------ further tokens
def test_further_logits_and_their_gradients_are_the_dense_ones():
    g = torch.Generator().manual_seed(3)
    hidden, weight, bias = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((7, 5), (11, 5), (11,)))
    leaves = [x.requires_grad_() for x in (hidden, weight, bias)]
    targets, further = torch.randint(11, (7,), generator=g), torch.randint(11, (7, 4), generator=g)
    further[0, :2] = targets[0]  # the action itself, twice
    up = [torch.randn(*s, generator=g, dtype=torch.float64) for s in ((7,), (7,), (7, 4))]
    out = score_further(*leaves, targets, further=further, chunk=3)
    ours = sum((u * x).sum() for u, x in zip(up, (out.logit, out.log_partition, out.further), strict=True))
    dense = hidden @ weight.t() + bias
    expected = (dense.gather(1, targets[:, None])[:, 0], dense.logsumexp(-1), dense.gather(1, further))
    theirs = sum((u * x).sum() for u, x in zip(up, expected, strict=True))
    for a, b in zip(torch.autograd.grad(ours, leaves), torch.autograd.grad(theirs, leaves), strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(out.further, expected[2])


def test_sampled_tokens_follow_the_policy_and_their_logits_are_theirs():
    torch.manual_seed(0)
    hidden, weight = torch.randn(3, 4), torch.randn(6, 4)
    out = score_further(hidden, weight, None, torch.zeros(3, dtype=torch.long), sample=20_000, chunk=2)
    dense = hidden @ weight.t()
    torch.testing.assert_close(out.further, dense.gather(1, out.further_tokens))
    share = torch.stack([(out.further_tokens == v).float().mean(1) for v in range(6)], 1)
    assert (share - dense.softmax(-1)).abs().max() < 0.02  # five standard errors of 20,000 draws


def test_entropy_and_hits_are_the_dense_ones_and_carry_no_gradient():
    g = torch.Generator().manual_seed(4)
    hidden, weight = torch.randn(9, 4, generator=g).requires_grad_(), torch.randn(6, 4, generator=g)
    targets = torch.randint(6, (9,), generator=g)
    out = score_further(hidden, weight, None, targets, describe=True, chunk=4)
    dense = (hidden @ weight.t()).detach()
    torch.testing.assert_close(out.entropy, torch.distributions.Categorical(logits=dense).entropy())
    assert torch.equal(out.hits, dense.argmax(-1) == targets)
    assert not out.entropy.requires_grad
