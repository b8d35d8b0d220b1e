"""`AtomicCheckpointIO` is how Lightning writes and reads checkpoints here: each as a whole, and without code."""

from pathlib import Path
from typing import Any

from lightning.fabric.plugins import TorchCheckpointIO

from shiqrun.evaluation.checkpoint_files import load_content, save_checkpoint


class AtomicCheckpointIO(TorchCheckpointIO):
    """An `AtomicCheckpointIO` streams each checkpoint to its own directory as a whole, and loads no code from one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write `checkpoint` and its checksum to the file `path`, as a whole or not at all."""
        save_checkpoint(checkpoint, Path(path))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Return the tensors and plain values of a checkpoint, whose checksums `execute` has compared."""
        return load_content(Path(path))
