"""Words of small runs that sample while they learn, in this process, and what such a run kept."""

import pyarrow.parquet as pq

from shiqrun.cli import main

PROBLEMS = ("data=programs", "data.base=4", "data.primitives=[reverse,sort,rotate,add,drop]", "data.problems=120")
PROBLEMS = (*PROBLEMS, "data.val_problems=16", "data.distinct=false", "logger=none")
SMALL = ("model.hidden_size=32", "model.num_layers=2")
TINY = ("model=tiny", *SMALL)
SOLVES = ("model=hf", "model.path=sft/policy")
ONLINE = ("rollout=local", "rollout.max_new_tokens=10", "rollout.model_update_interval=5", "eval.reward=programs")
STEPS = (
    "trainer.max_steps=12",
    "trainer.batch_size=16",
    "trainer.log_every=4",
    "trainer.warmup_steps=0",
    "eval.every=0",
)
VALUES = ("values.samples=8", "values.max_new_tokens=10")


def train(algo, *words, data=PROBLEMS, model=SOLVES):
    """Exit code of a short run, from a policy that solves some problems in the working directory unless said."""
    return main(["train", f"algo={algo}", *data, *model, *STEPS, *VALUES, *words])


def live(algo, *words, **options):
    """With a reference that answers to what is sampled."""
    return train(algo, "algo.reference=frozen", *ONLINE, *words, **options)


def experience(run_dir):
    """Rows of what was kept, by uid."""
    rows = [r for file in sorted((run_dir / "experience").glob("*.parquet")) for r in pq.read_table(file).to_pylist()]
    return {row["uid"]: row for row in rows}
