"""Models of a user's own, by `model._target_`."""

from dataclasses import dataclass

import torch

from shiqrun.models.precision import cast_weights
from shiqrun.models.tiny import Tiny


@dataclass(frozen=True, kw_only=True)
class HalfTiny(Tiny):
    """A tiny model that comes with weights of 16 bits, whatever is asked for."""

    kind: str

    def build(self, tokenizer, seed, dtype=torch.float32):
        return cast_weights(super().build(tokenizer, seed), getattr(torch, self.kind))
