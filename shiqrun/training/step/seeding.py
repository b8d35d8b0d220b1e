"""The randomness of an optimiser step is a function of seed, step and rank, so that a resumed run repeats it."""

import torch


def seed_step(seed: int, step: int, rank: int, device: torch.device) -> None:
    """Seed torch for an optimiser step, counted from 1, on one rank."""
    # Not always torch.manual_seed: without a GPU it keeps a stack trace for one that may come, which takes 0.2 ms
    seeded = torch.default_generator.manual_seed if device.type == "cpu" else torch.manual_seed
    seeded(hash((seed, step - 1, rank)) % 2**63)
