import threading
from dataclasses import fields, is_dataclass
from itertools import islice

import pytest
import torch

from shiqrun.batching.columns import AnchorTokens
from shiqrun.batching.prefetch import DEPTH, THREAD, Prefetcher, each_tensor
from shiqrun.batching.steps import Steps
from tests.support.helpers import rows

CPU = torch.device("cpu")


def steps(*, packed=False, start=0):
    made = rows(12).with_layout(packed=packed).with_anchor(AnchorTokens(2, 48, 0))
    return Steps(made, batch_size=5, micro_batch_tokens=30, seed=0, start=start, rank=0, world=1)


def tensors(x):
    """Every tensor in it, by a walk of its own over all fields."""
    if isinstance(x, torch.Tensor):
        return [x]
    if is_dataclass(x):
        return [t for f in fields(x) for t in tensors(getattr(x, f.name))]
    return [t for value in x for t in tensors(value)] if isinstance(x, list | tuple) else []


@pytest.fixture
def threads():
    """Which threads of loaders there are beside those that another test has left to be collected."""
    before = set(threading.enumerate())
    return lambda: [t for t in threading.enumerate() if t.name.startswith(THREAD) and t not in before]


@pytest.mark.parametrize("packed", [False, True])
def test_the_steps_are_those_of_the_iterable_in_its_order(packed):
    ahead = Prefetcher(steps(packed=packed), CPU)
    for made, expected in zip(islice(ahead, 9), islice(steps(packed=packed), 9), strict=True):
        assert len(made) == len(expected)
        found, wanted = tensors(made), tensors(expected)
        assert len(found) == len(wanted) > 9
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    ahead.close()


def test_a_step_is_made_before_it_is_asked_for():
    made, third = [], threading.Event()

    def slow():
        for n in range(99):
            made.append((n, threading.current_thread()))
            if n == DEPTH:
                third.set()
            yield [n]

    ahead = Prefetcher(slow(), CPU)
    running = iter(ahead)
    assert not made, "nothing before the first is wanted: Lightning asks for iterators that it throws away"
    assert next(running) == [0]
    assert third.wait(20)
    ahead.close()
    assert len(made) <= DEPTH + 2
    assert threading.main_thread() not in {thread for _, thread in made}


def test_an_error_comes_where_its_step_is_asked_for_with_its_message(threads):
    def breaks():
        yield [1]
        yield [2]
        raise ValueError("row 7 of file:3 is odd")

    running = iter(Prefetcher(breaks(), CPU))
    assert [next(running), next(running)] == [[1], [2]]
    with pytest.raises(ValueError, match="row 7 of file:3 is odd"):
        next(running)
    assert not threads()


def test_the_thread_ends_with_the_steps_and_when_closed_and_when_begun_anew(threads):
    assert list(Prefetcher([[1], [2], [3]], CPU)) == [[1], [2], [3]]
    assert not threads()
    ahead = Prefetcher(steps(), CPU)
    next(iter(ahead))
    assert len(threads()) == 1
    again = next(iter(ahead))
    assert len(threads()) == 1
    assert torch.equal(again[0].input_ids, next(iter(steps()))[0].input_ids)
    ahead.close()
    ahead.close()
    assert not threads()


@pytest.mark.parametrize("packed", [False, True])
def test_what_is_done_to_a_batch_reaches_every_tensor_of_it(packed):
    (batch, *_) = next(iter(steps(packed=packed)))
    copy = each_tensor([batch], torch.clone)[0]
    before, after = tensors(batch), tensors(copy)
    assert len(before) == len(after) > 9
    assert copy.layout is not None
    assert (copy.layout.attention is not None) == packed
    for a, b in zip(before, after, strict=True):
        assert torch.equal(a, b)
        assert a.numel() == 0 or a.data_ptr() != b.data_ptr()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_for_a_gpu_every_tensor_is_pinned():
    ahead = Prefetcher(steps(packed=True), torch.device("cuda"))
    assert all(t.is_pinned() for t in tensors(next(iter(ahead))) if t.numel())
    ahead.close()
