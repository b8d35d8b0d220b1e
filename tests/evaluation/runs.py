"""A small problem with answers, a model that answers right about half of the time, and runs on them."""

import json
from pathlib import Path

from shiqrun.cli import main
from shiqrun.errors import InputError
from shiqrun.rewards.exact_match import ExactMatch

PROMPTS, BETA = 40, 0.2
SETTINGS = ("eval.max_prompts=8", "eval.max_new_tokens=6", "eval.samples_per_prompt=2")
SIZE = ("model.hidden_size=16", "model.intermediate_size=24", "model.num_layers=1", "model.num_heads=2")


def write_data(path: Path, answer: str | None = "yes", words: str = "is {} fine?", low: int = 0) -> None:
    """Questions whose right answer is yes, with a reward for both answers."""
    said = {"completions": ["yes", "no"], "rewards": [1, low], "answer": answer}
    rows = [{"prompt": words.format(n), **said} for n in range(PROMPTS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_base(home: Path) -> None:
    """`base/policy` in `home`: it says yes or no."""
    write_data(home / "data.jsonl")
    assert main(base_words(home)) == 0


def base_words(home: Path) -> list[str]:
    """`train` and the run that makes `base/policy`."""
    small = (*SIZE, "model.vocab_size=300", "model.max_position_embeddings=64")
    words = ("algo=sft", "trainer.max_steps=60", "trainer.learning_rate=0.03", "trainer.batch_size=16", "eval.every=0")
    return ["train", "logger=none", "data=jsonl", f"data.path={home}/data.jsonl", *small, *words, *at(home)]


def at(home: Path, name: str = "base") -> tuple[str, str]:
    """Where a run goes."""
    return f"run_dir={home / name}", f"cache_dir={home / 'cache'}"


def words(home: Path, name: str, *more: str, algo: str = f"algo.beta={BETA}") -> list[str]:
    """`train` and a run of a few steps from the base that answers eight prompts twice at every third."""
    problem = ["data=jsonl", f"data.path={home}/data.jsonl", "data.val_fraction=0.3"]
    steps = ["trainer.max_steps=7", "trainer.batch_size=8", "trainer.learning_rate=3e-3", "trainer.warmup_steps=0"]
    steps += ["trainer.checkpoint_every=2", "trainer.log_every=1", "eval.every=3", "eval.reward=exact_match"]
    model = ["model=hf", f"model.path={home}/base/policy"]
    return ["train", "logger=none", algo, *problem, *model, *steps, *SETTINGS, *at(home, name), *more]


def train(home: Path, name: str, *more: str, **options: str) -> int:
    """Exit code of such a run, in this process."""
    return main(words(home, name, *more, **options))


def samples(run_dir: Path) -> list[dict]:
    """Rows of `samples.jsonl`."""
    with (run_dir / "samples.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


class Breaks(ExactMatch):
    """A reward of a user's own that stops to work after so many calls."""

    def __init__(self, *, calls: int) -> None:
        super().__init__(ignore_case=False)
        self.left = calls

    def score(self, items, progress=lambda x, _: x):
        self.left -= 1
        if self.left < 0:
            raise InputError("the judge has gone home")
        return super().score(items)
