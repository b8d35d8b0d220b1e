"""`LoggedData` deals the rows of a data set to the optimiser steps of Lightning's training loop."""

import torch
from lightning.pytorch import LightningDataModule

from shiqrun.batching.logged_data import EncodedData
from shiqrun.batching.prefetch import Prefetcher
from shiqrun.batching.steps import Batches, Steps
from shiqrun.types import Trajectories


class LoggedData(LightningDataModule):
    """A `LoggedData` gives Lightning the batches of logged trajectories, from the step that training has reached on.

    Args:
        encoded: both splits, annotated.
        batch_size: trajectories of an optimiser step, over all ranks.
        micro_batch_tokens: tokens of one forward pass.
        seed: of the order of rows.
    """

    def __init__(self, encoded: EncodedData, *, batch_size: int, micro_batch_tokens: int, seed: int) -> None:
        super().__init__()
        self.encoded, self.batch_size, self.tokens, self.seed = encoded, batch_size, micro_batch_tokens, seed
        self._ahead: Prefetcher | None = None
        self.even = False  # see `Steps`

    def _ranks(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def train_dataloader(self) -> Prefetcher:
        """Return the batches of all optimiser steps from the trainer's global step on, collated ahead in a thread."""
        self._close()
        rank, world = self._ranks()
        self.steps = Steps(
            self.encoded.train,
            batch_size=self.batch_size,
            micro_batch_tokens=self.tokens,
            seed=self.seed,
            start=self.trainer.global_step if self.trainer else 0,
            rank=rank,
            world=world,
            even=self.even,
        )
        self._ahead = Prefetcher(self.steps, self.trainer.strategy.root_device if self.trainer else torch.device("cpu"))
        return self._ahead

    def transfer_batch_to_device(
        self, batch: list[Trajectories], device: torch.device, dataloader_idx: int
    ) -> list[Trajectories]:
        """Move the micro-batches of a step to the device; pinned memory is copied while the step begins."""
        return batch if device.type == "cpu" else [micro.to(device) for micro in batch]

    def teardown(self, stage: str) -> None:
        """End the collating thread with the training loop."""
        self._close()

    def on_exception(self, exception: BaseException) -> None:
        """End the collating thread at an error or a signal."""
        self._close()

    def _close(self) -> None:
        if self._ahead is not None:
            self._ahead.close()

    def validation(self) -> Batches:
        """Return the batches of this rank's share of the validation split."""
        rank, world = self._ranks()
        return Batches(self.encoded.val, tokens=self.tokens, rank=rank, world=world)

    def passes(self, step: int) -> float:
        """Return how many passes over the training trajectories `step` optimiser steps are."""
        return step / self.encoded.train.steps_per_epoch(self.batch_size)

    def sources(self, step: int, micro_batch: int) -> list[str]:
        """Return where the rows of a micro-batch of this rank came from, for messages."""
        cut = self.steps.rows_of(step)
        return [self.encoded.train.trajectories[i].source for i in (cut[micro_batch] if cut else [])]
