"""`Signals` ends a run after a whole step and with a checkpoint, on all ranks, when one of them gets a signal."""

import signal
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from shiqrun.training.callbacks import Checkpoints
from shiqrun.util import slurm

ORDER = (0, signal.SIGTERM, slurm.WARNING, signal.SIGUSR2, signal.SIGINT)
"""Signals from the one that says least: ranks that got different ones act on the last of these."""


class Stopped(Exception):
    """`Stopped` says that a signal ended the run after a step whose checkpoint was saved.

    It is no KeyboardInterrupt, because Lightning ends the process with exit code 1 on those.

    Attributes:
        number: of the signal.
    """

    def __init__(self, text: str, number: int) -> None:
        super().__init__(text)
        self.number = number


class Signals(Callback):
    """A `Signals` saves a checkpoint after the present step and ends the run when a rank gets a signal.

    The signals are SIGINT, SIGTERM, SIGUSR1, and SIGUSR2 where a launcher handles it, as submitit does: it is sent to
    that launcher again when the run has ended. A second SIGINT ends the run at once.

    Args:
        checkpoints: saves.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints
        self.received = slurm.early_warning()
        self._ranks: Any = None  # a process group that communicates over the CPU
        self._former: dict[int, Any] = {}

    def install(self) -> None:
        """Install this callback's handlers."""
        numbers = [signal.SIGINT, signal.SIGTERM, slurm.WARNING]
        if callable(self._former.get(signal.SIGUSR2, signal.getsignal(signal.SIGUSR2))):
            numbers.append(signal.SIGUSR2)
        for number in numbers:
            former = signal.signal(number, self._note)
            self._former.setdefault(number, former)

    def restore(self) -> None:
        """Restore the former handlers."""
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former.clear()

    def _note(self, number: int, frame: Any) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install the handlers again, because Lightning has put its own SIGTERM handler over ours by now.

        Lightning also asks all ranks about SIGTERM at each step, which waits for the GPU. Without its handler the
        question is void, so it is switched off, and ours goes over the CPU.
        """
        self.install()
        if trainer.world_size > 1:
            trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
            self._ranks = torch.distributed.new_group(backend="gloo")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Save a checkpoint and stop if any rank got a signal; this is the last callback, after metrics are written."""
        told = ORDER.index(self.received)
        if self._ranks is not None:
            number = torch.tensor(told)
            torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX, self._ranks)
            told = int(number)
        if told:
            self.checkpoints.save(trainer)
            raise Stopped(f"stopped after step {trainer.global_step}; the checkpoint is saved", int(ORDER[told]))
