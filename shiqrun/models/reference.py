"""The frozen reference, three ways: scores cached on disk, a second copy, or the policy without its adapter."""

import contextlib
import copy
import hashlib
from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import nn

from shiqrun.models.policy import Policy
from shiqrun.types import ActionScores, Trajectories

Kind = Literal["cached", "frozen", "adapter", "none"]
Reference = Callable[[Trajectories], ActionScores]


def cached(batch: Trajectories) -> ActionScores:
    """The scores that came with the batch.

    Raises:
        ValueError: the batch carries none.
    """
    if batch.reference is None:
        raise ValueError("the batch carries no cached reference scores")
    return batch.reference


class Frozen:
    """A second copy of the model; not a module, so that no checkpoint and no optimiser sees it."""

    def __init__(self, policy: Policy) -> None:
        self.policy = Policy(copy.deepcopy(policy.model), autocast=policy.autocast).eval().requires_grad_(False)

    def to(self, device: torch.device) -> None:
        """Moves the copy."""
        self.policy.to(device)

    @torch.no_grad()
    def __call__(self, batch: Trajectories) -> ActionScores:
        """Scores of the copy."""
        return self.policy(batch)

    @contextlib.contextmanager
    def acting(self) -> Iterator[Policy]:
        """Inside, a policy that acts as the reference."""
        yield self.policy


class AdapterOff:
    """The policy itself with its LoRA adapter switched off."""

    def __init__(self, policy: Policy) -> None:
        self._policy = [policy]  # in a list: not a sub-module

    @torch.no_grad()
    def __call__(self, batch: Trajectories) -> ActionScores:
        """Scores without the adapter."""
        with self._policy[0].as_reference():
            return self._policy[0](batch)

    def to(self, device: torch.device) -> None:
        """Nothing: the policy is where it is."""

    @contextlib.contextmanager
    def acting(self) -> Iterator[Policy]:
        """Inside, the policy acts as the reference."""
        with self._policy[0].as_reference():
            yield self._policy[0]


Live = Frozen | AdapterOff
"""References that can be asked about any tokens, and made to answer."""


def weights_fingerprint(model: nn.Module) -> str:
    """A hash of every parameter's name, shape, dtype and bytes."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
