"""`WeightFiles` reads rows of tensors from the safetensors files of a model, without reading the rest."""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Names of dtypes in these files; weights have no other."""
CHUNK = 1 << 26
"""Bytes that are read at once."""


class _Place(NamedTuple):
    """A `_Place` says where a tensor is."""

    path: Path
    start: int
    dtype: torch.dtype
    shape: tuple[int, ...]


class WeightFiles:
    """A `WeightFiles` knows where each tensor of a model is.

    The format: the length of a header in 8 bytes, the header as JSON (name -> dtype, shape, offsets), then the bytes of
    all tensors. The files are read and not mapped, so that what is read of them does not stay in memory.

    Args:
        paths: of the files, which have all tensors between them.

    Raises:
        ValueError: a file is none of safetensors, or is cut off, or holds another dtype than those of weights.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._places: dict[str, _Place] = {}
        for path in paths:
            self._add(path)

    def _add(self, path: Path) -> None:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if length < path.stat().st_size else {}
        if not isinstance(header, dict) or not header:
            raise ValueError(f"{path}: no file of safetensors")
        header.pop("__metadata__", None)
        for name, about in header.items():
            if about["dtype"] not in DTYPES:
                raise ValueError(f"{path}: {name} has dtype {about['dtype']}")
            dtype, (low, high) = DTYPES[about["dtype"]], about["data_offsets"]
            if high - low != dtype.itemsize * math.prod(about["shape"]) or 8 + length + high > path.stat().st_size:
                raise ValueError(f"{path}: is damaged or cut off at {name}")
            self._places[name] = _Place(path, 8 + length + low, dtype, tuple(about["shape"]))

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each tensor by its name."""
        return {name: place.shape for name, place in self._places.items()}

    def chunks(self, name: str, first: int = 0, count: int | None = None) -> Iterator[Tensor]:
        """Yield rows of a tensor from number `first` on, `count` of them or all, in tensors of at most `CHUNK` bytes.

        A tensor without axes is one row.
        """
        path, start, dtype, shape = self._places[name]
        rows, width = (shape[0], shape[1:]) if shape else (1, ())
        size = dtype.itemsize * math.prod(width)
        end = rows if count is None else min(rows, first + count)
        step = max(1, CHUNK // max(size, 1))
        with path.open("rb") as file:
            file.seek(start + first * size)
            for low in range(first, end, step):
                number = min(step, end - low)
                data = bytearray(number * size)
                if file.readinto(data) != len(data):
                    raise ValueError(f"{path}: is cut off at {name}")
                flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
                yield flat.view(number, *width) if shape else flat.view(())
