"""Lightning is told by `StartedRanks` that the processes of a run are there, with their process group."""

import os

from lightning.fabric.plugins.environments import ClusterEnvironment, LightningEnvironment

from shiqrun.util.ranks import rank, world


class StartedRanks(ClusterEnvironment):
    """A `StartedRanks` takes ranks as `config/ranks.py` started or met them, whatever variables a cluster sets.

    Lightning's own environments would start processes again, or requeue a job of SLURM in the middle of a step.
    """

    @property
    def creates_processes_externally(self) -> bool:
        """Return True: no process is to be started."""
        return True

    @property
    def main_address(self) -> str:
        """Return the host where the ranks have met."""
        return os.environ["MASTER_ADDR"]

    @property
    def main_port(self) -> int:
        """Return the port where the ranks have met."""
        return int(os.environ["MASTER_PORT"])

    @staticmethod
    def detect() -> bool:
        """Return whether there are several ranks."""
        return world() > 1

    def world_size(self) -> int:
        """Return the number of ranks."""
        return world()

    def set_world_size(self, size: int) -> None:
        """Do nothing: the number is known."""

    def global_rank(self) -> int:
        """Return this process's number."""
        return rank()

    def set_global_rank(self, rank: int) -> None:
        """Do nothing: the number is known."""

    def local_rank(self) -> int:
        """Return this process's number on its node."""
        return int(os.environ["LOCAL_RANK"])

    def node_rank(self) -> int:
        """Return the number of this node; every node has as many processes."""
        return rank() // int(os.environ["LOCAL_WORLD_SIZE"])


def environment_of_run() -> ClusterEnvironment:
    """Return what Lightning asks about processes: one that is alone never looks for a cluster."""
    return StartedRanks() if StartedRanks.detect() else LightningEnvironment()
