"""A command whose work is to say what it was given; the seed chooses how it ends. It has the config of `train`."""

import json
import logging
import os
import sys
from pathlib import Path

from omegaconf import DictConfig

from shiqrun.commands.train import SCHEMA as SCHEMA
from shiqrun.errors import InputError, Interrupted, TrainingError

FAILURES = {
    101: InputError("data.path=x: no such file"),
    102: RuntimeError("a defect"),
    103: Interrupted("saved at step 7"),
    104: TrainingError("loss is NaN at step 3"),
    105: KeyboardInterrupt(),
}


def run(config: DictConfig, run_dir: Path) -> None:
    """Writes `said.json` in the run directory."""
    logging.getLogger(__name__).info("began")
    os.environ["LEFT_BY_A_JOB"] = "1"
    if config.seed > 200:
        import torch.distributed  # here alone: it takes as long as all else that a job does

        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    if config.seed in FAILURES:
        raise FAILURES[config.seed]
    said = {
        "seed": config.seed,
        "beta": config.algo.get("beta"),
        "algo": config.algo.name,
        "run_dir": config.run_dir,
        "resume": config.resume,
        "argv": sys.argv[1:],
        "child": os.environ.get("SHIQRUN_CHILD_CONFIG"),
    }
    (run_dir / "said.json").write_text(json.dumps(said))
    print("said", json.dumps(said))
