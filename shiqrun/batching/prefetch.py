"""`Prefetcher` collates the batches of the next optimiser steps in a thread while the current step runs.

For a GPU the thread also pins their memory, so that the copy to the device overlaps with computation.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from shiqrun.types import Trajectories

Step = list[Trajectories]
DEPTH = 2
"""Steps that are collated ahead, beside the one that Lightning's own fetcher holds."""
THREAD = "shiqrun-batches"


def each_tensor(x: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return `x` with every tensor replaced by `change(tensor)`, through dataclasses, lists and tuples."""
    if isinstance(x, Tensor):
        return change(x)
    if isinstance(x, Trajectories):
        return _replace_fields(x, change).with_layout(each_tensor(x.layout, change))
    if is_dataclass(x) and not isinstance(x, type):
        return _replace_fields(x, change)
    return type(x)(each_tensor(value, change) for value in x) if isinstance(x, list | tuple) else x


def _replace_fields(x: Any, change: Callable[[Tensor], Tensor]) -> Any:
    return replace(x, **{f.name: each_tensor(getattr(x, f.name), change) for f in fields(x) if f.init})


class Prefetcher:
    """A `Prefetcher` iterates over optimiser steps, whose batches it collates ahead of their use in one thread.

    An error is raised where its step is asked for. The thread starts with the first step and ends when the steps do,
    at an error, and at `close`.

    Args:
        steps: iterated over in the thread alone.
        device: that the batches will be moved to.
    """

    def __init__(self, steps: Iterable[Step], device: torch.device) -> None:
        self.steps, self.device = steps, device
        self._running: Generator[Step, None, None] | None = None

    def __iter__(self) -> Generator[Step, None, None]:
        self.close()
        self._running = self._iterate()
        return self._running

    def close(self) -> None:
        """End the collating thread after the step that it is at."""
        if self._running is not None:
            self._running.close()

    def _iterate(self) -> Generator[Step, None, None]:
        source = iter(self.steps)
        with ThreadPoolExecutor(1, THREAD, self._choose_device) as thread:
            waiting = deque(thread.submit(self._next_step, source) for _ in range(DEPTH))
            try:
                while (step := waiting.popleft().result()) is not None:
                    waiting.append(thread.submit(self._next_step, source))
                    yield step
            finally:
                for future in waiting:
                    future.cancel()

    def _next_step(self, source: Iterator[Step]) -> Step | None:
        step = next(source, None)
        return each_tensor(step, Tensor.pin_memory) if self.device.type == "cuda" else step

    def _choose_device(self) -> None:
        if self.device.type == "cuda":  # else the thread of every rank would open a context on the first device
            torch.cuda.set_device(self.device)
