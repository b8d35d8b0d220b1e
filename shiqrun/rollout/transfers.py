"""Weights travel to where samples are drawn: in which dtype, how often, how many bytes, how long."""

from typing import Literal

import torch

from shiqrun.rollout.engine import Weights

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""The dtypes that weights can travel in, by the names of `rollout.weight_dtype`."""


def in_dtype(weights: Weights, name: Literal["fp32", "bf16"] | None) -> Weights:
    """Return weights in the dtype of a name in `DTYPES`; as they are for None."""
    return weights if name is None else {key: value.to(DTYPES[name]) for key, value in weights.items()}


class Transfers:
    """`Transfers` adds up transfers of weights.

    Attributes:
        number, bytes, seconds: of all so far.
    """

    def __init__(self) -> None:
        self.number, self.bytes, self.seconds = 0, 0, 0.0
        self._logged = (0, 0, 0.0)

    def add(self, size: int, seconds: float) -> None:
        """Count a transfer of so many bytes that took so many seconds."""
        self.number, self.bytes, self.seconds = self.number + 1, self.bytes + size, self.seconds + seconds

    def totals(self) -> dict[str, float]:
        """Return number, bytes and seconds of all transfers, as `summary.json` names them."""
        return {
            "weight_transfers": self.number,
            "weight_bytes": self.bytes,
            "seconds/weights": self.seconds,
        }

    def metrics(self) -> dict[str, float]:
        """Return the mean bytes and seconds of a transfer since the last call; nothing where there was none."""
        now = (self.number, self.bytes, self.seconds)
        (number, size, seconds), self._logged = (a - b for a, b in zip(now, self._logged, strict=True)), now
        return {"transfer_bytes": size / number, "transfer_seconds": seconds / number} if number else {}
