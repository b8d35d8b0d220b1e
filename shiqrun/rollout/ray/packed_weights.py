"""Policy weights travel to Ray actors as bytes, which processes of a machine share without a copy."""

import warnings

import numpy as np
import torch
from torch import Tensor

from shiqrun.rollout.engine import Weights

Packed = dict[str, tuple[torch.dtype, torch.Size, np.ndarray]]
"""Of each parameter its dtype, its shape and its bytes."""


def pack_weights(weights: Weights) -> Packed:
    """Return policy weights as bytes, which Ray shares between processes without a copy; NumPy has no bfloat16."""
    return {
        name: (value.dtype, value.shape, value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        for name, value in weights.items()
    }


def unpack_weights(weights: Packed) -> dict[str, Tensor]:
    """Return the tensors of packed weights; they must not be written to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable.*")  # nobody writes
        return {n: torch.from_numpy(array).view(dtype).reshape(shape) for n, (dtype, shape, array) in weights.items()}
