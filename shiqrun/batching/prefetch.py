"""The next steps' batches, made in a thread of their own while the present step runs.

For a GPU they are pinned in the thread, so that the copy to the device neither waits nor is waited for.
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
"""Steps that wait ready, beside the one that Lightning's own fetcher holds."""
THREAD = "shiqrun-batches"


def each_tensor(x: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """`x` with `change(tensor)` for every tensor in it, whatever dataclasses, lists and tuples it is in."""
    if isinstance(x, Tensor):
        return change(x)
    if isinstance(x, Trajectories):
        return _fields(x, change).laid_out(each_tensor(x.layout, change))
    if is_dataclass(x) and not isinstance(x, type):
        return _fields(x, change)
    return type(x)(each_tensor(value, change) for value in x) if isinstance(x, list | tuple) else x


def _fields(x: Any, change: Callable[[Tensor], Tensor]) -> Any:
    return replace(x, **{f.name: each_tensor(getattr(x, f.name), change) for f in fields(x) if f.init})


class Ahead:
    """The steps of an iterable in their order, each made before it is asked for.

    An error of the iterable is raised where its step is asked for. The thread begins with the first step and ends with
    the iteration: when the iterable does, at an error, and at `close`.

    Args:
        steps: iterated over in the thread alone.
        device: where they will go.
    """

    def __init__(self, steps: Iterable[Step], device: torch.device) -> None:
        self.steps, self.device = steps, device
        self._running: Generator[Step, None, None] | None = None

    def __iter__(self) -> Generator[Step, None, None]:
        self.close()
        self._running = self._made()
        return self._running

    def close(self) -> None:
        """Ends the thread, after the step that it is at."""
        if self._running is not None:
            self._running.close()

    def _made(self) -> Generator[Step, None, None]:
        source = iter(self.steps)
        with ThreadPoolExecutor(1, THREAD, self._enter) as thread:
            waiting = deque(thread.submit(self._following, source) for _ in range(DEPTH))
            try:
                while (step := waiting.popleft().result()) is not None:
                    waiting.append(thread.submit(self._following, source))
                    yield step
            finally:
                for future in waiting:
                    future.cancel()

    def _following(self, source: Iterator[Step]) -> Step | None:
        step = next(source, None)
        return each_tensor(step, Tensor.pin_memory) if self.device.type == "cuda" else step

    def _enter(self) -> None:
        if self.device.type == "cuda":  # else the thread of every rank would open a context on the first device
            torch.cuda.set_device(self.device)
