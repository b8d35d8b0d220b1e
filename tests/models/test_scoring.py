"""The chunked scores against the dense computation: values, gradients, precision and refusals."""

import pytest
import torch
from torch.nn.functional import embedding
from torch.testing import assert_close

from shiqrun.models.scoring import chunk_rows, score_actions, score_further
from tests.models.dense import D, N, V, all_logits, dense, gradients, in_way, problem, upstreams

BIAS = pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
CHUNK = pytest.mark.parametrize("chunk", [1, 4, 11, 64, None])  # 4 does not divide 11
HEADS = pytest.mark.parametrize(("scale", "cap"), [(1.0, None), (0.7, None), (1.0, 2.0), (1.7, 3.0)])
WAYS = pytest.mark.parametrize("way", ["recomputed", "kept", "frozen"])


@BIAS
@HEADS
@WAYS
def test_gradients_are_those_of_finite_differences(way, scale, cap, bias):
    *inputs, targets = problem(bias=bias)
    keep = in_way(way, inputs)
    options = {"scale": scale, "cap": cap, "keep": keep, "chunk": 4}
    assert torch.autograd.gradcheck(lambda *x: score_actions(*x, targets, **options), tuple(inputs))


@BIAS
@HEADS
@WAYS
@CHUNK
def test_values_and_gradients_are_those_of_all_logits_at_once(chunk, way, scale, cap, bias):
    inputs = problem(bias=bias)
    keep = in_way(way, inputs[:3])
    outputs = score_actions(*inputs, chunk=chunk, scale=scale, cap=cap, keep=keep)
    truth = dense(*inputs, scale, cap)
    assert_close(outputs, truth)
    assert_close(gradients(outputs, upstreams(), inputs), gradients(truth, upstreams(), inputs))


@BIAS
@HEADS
@WAYS
@pytest.mark.parametrize("chunk", [4, 64])
def test_further_logits_and_their_gradients_are_those_of_all_logits_at_once(chunk, way, scale, cap, bias):
    inputs = problem(bias=bias)
    keep = in_way(way, inputs[:3])
    further = torch.randint(V, (N, 4), generator=torch.Generator().manual_seed(3))
    further[0, :2] = inputs[3][0]  # the action itself, twice
    further[1, 2:] = further[1, 0]  # another token three times
    options = {"chunk": chunk, "scale": scale, "cap": cap, "keep": keep}
    out = score_further(*inputs, further=further, **options)
    expected = (*dense(*inputs, scale, cap), all_logits(*inputs[:3], scale, cap).gather(1, further))
    outputs = (out.logit, out.log_partition, out.further)
    assert_close(outputs, expected)
    up = [*upstreams(), torch.randn(N, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))]
    assert_close(gradients(outputs, up, inputs), gradients(expected, up, inputs))


@WAYS
def test_gradients_of_sampled_tokens_are_those_of_all_logits_at_once(way):
    inputs = problem()
    keep = in_way(way, inputs[:3])
    out = score_further(*inputs, sample=5, describe=True, cap=2.0, keep=keep, chunk=4)
    expected = (*dense(*inputs, 1.0, 2.0), all_logits(*inputs[:3], 1.0, 2.0).gather(1, out.further_tokens))
    up = [*upstreams(), torch.randn(N, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))]
    outputs = (out.logit, out.log_partition, out.further)
    assert_close(gradients(outputs, up, inputs), gradients(expected, up, inputs))


@WAYS
def test_a_second_backward_pass_over_one_graph_gives_the_same(way):
    inputs = problem()
    keep = in_way(way, inputs[:3])
    outputs = score_actions(*inputs, keep=keep, chunk=4, cap=2.0)
    leaves = [x for x in inputs[:3] if x.requires_grad]
    first = torch.autograd.grad(outputs, leaves, upstreams(), retain_graph=True)
    assert_close(torch.autograd.grad(outputs, leaves, upstreams()), first)


@WAYS
def test_a_token_that_is_nearly_certain_keeps_its_small_gradient(way):
    hidden, weight, _, targets = problem(bias=False)
    hidden.data = 0.1 * hidden.data
    for row, y in enumerate(targets.tolist()):
        weight.data[y] += 8 * hidden.data[row] / hidden.data[row].square().sum() / (targets == y).sum()
    inputs = [x.detach().float().requires_grad_() for x in (hidden, weight)]
    keep = in_way(way, inputs)
    outputs = score_actions(*inputs, None, targets, keep=keep)
    truth = dense(*inputs, None, targets)
    up = upstreams()[0]
    assert (truth[0] - truth[1]).exp().max() > 0.99
    got, expected = (gradients(x[0] - x[1], up.to(x[0].dtype), inputs) for x in (outputs, truth))
    assert_close(got, expected)


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
@WAYS
def test_no_actions_give_no_scores_and_zero_gradients(way, bias):
    inputs = problem(bias=bias, n=0)
    keep = in_way(way, inputs[:3])
    out = score_further(*inputs, sample=2, describe=True, cap=2.0, keep=keep)
    assert [list(x.shape) for x in out[:6]] == [[0], [0], [0, 2], [0, 2], [0], [0]]
    assert out.kl is None
    got = gradients(out[:3], [*upstreams(0), out.further], inputs)
    assert [g.shape for g in got] == [x.shape for x in inputs[:3] if x is not None and x.requires_grad]
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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_on_the_cpu_no_dtype_rounds_the_products(dtype):
    inputs = problem(torch.float32, n=40, d=64, v=500)
    outputs, expected = score_actions(*inputs, dtype=dtype), score_actions(*inputs)
    assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))


@pytest.mark.parametrize(
    ("vocabulary", "rows"), [(32, 4096), (32_000, 256), (8192, 1024), (128_256, 256), (10_000_000, 256)]
)
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
