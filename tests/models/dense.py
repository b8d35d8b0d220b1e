"""The dense computation that chunked scores are compared with: all logits at once, in float64."""

import torch

N, D, V = 11, 5, 23


def problem(dtype=torch.float64, *, bias=True, n=N, d=D, v=V, scale=1.0):
    """(hidden, weight, bias, targets) with leaves that take a gradient."""
    draw = torch.Generator().manual_seed(n + d + v)

    def leaf(*shape):
        return (scale * torch.randn(shape, dtype=torch.float64, generator=draw)).to(dtype).requires_grad_()

    return leaf(n, d), leaf(v, d), leaf(v) if bias else None, torch.randint(v, (n,), generator=draw)


def all_logits(hidden, weight, bias, scale=1.0, cap=None):
    """All logits at once, in float64."""
    logits = scale * (hidden.double() @ weight.double().t() + (0 if bias is None else bias.double()))
    return logits if cap is None else cap * torch.tanh(logits / cap)


def dense(hidden, weight, bias, targets, scale=1.0, cap=None):
    """The same two numbers from all logits at once, in float64."""
    logits = all_logits(hidden, weight, bias, scale, cap)
    return logits[torch.arange(len(targets)), targets], logits.logsumexp(-1)


def in_way(way, inputs):
    """The inputs, and what `keep` is; a frozen head takes no gradient and needs nothing kept."""
    for x in inputs[1:3]:
        if x is not None:
            x.requires_grad_(way != "frozen")
    return {"recomputed": False, "kept": True, "frozen": None}[way]


def gradients(outputs, upstream, inputs):
    leaves = [x for x in inputs if x is not None and x.requires_grad]
    return torch.autograd.grad(outputs, leaves, upstream)


def upstreams(n=N):
    """Two gradients that have nothing to do with each other."""
    return torch.randn(2, n, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).unbind()
