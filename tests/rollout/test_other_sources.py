"""The file that rollouts are mixed with: what is left out of it, and what stays together."""

import json
import logging
from collections import Counter
from types import SimpleNamespace

import pytest
from hydra import compose, initialize_config_module

from shiqrun.batching.logged_data import examples_of
from shiqrun.commands.train import plan
from shiqrun.config.compose import as_hydra_overrides
from shiqrun.data.chats import prompt_name
from shiqrun.errors import InputError
from shiqrun.training.online import online_data
from shiqrun.training.prepare import prepare_run
from tests.support.helpers import user

PROMPTS = 24
SMALL = ("model.hidden_size=16", "model.num_layers=1", "trainer.max_steps=2", "trainer.batch_size=8", "eval.every=0")
MIXED = ("rollout=local", "rollout.sources.further=1", "rollout.sources.logged=1", "rollout.offline=0.75")


def write(path, completions, **columns):
    """A file of prompts with so many completions each, by number of the prompt."""
    rows = (
        {
            "prompt": f"question {n}?",
            "completions": [f"answer {n} {k}" for k in range(completions(n))],
            "rewards": [float(k) for k in range(completions(n))],
            "answer": "x",
            **{name: f"{value}{n}" for name, value in columns.items()},
        }
        for n in range(PROMPTS)
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def loaded(folder, data, further, *words, algo="shiq"):
    """The run of such words, ready to train."""
    given = (
        "data=jsonl",
        f"data.path={data}",
        "data.val_fraction=0.4",
        "eval.reward=exact_match",
        "logger=none",
        "algo.same_unit=true",
    )
    words = (f"algo={algo}", "algo.reference=frozen", *given, *SMALL, *MIXED, f"rollout.path={further}", *words)
    with initialize_config_module("shiqrun.conf", version_base="1.3"):
        config = compose(
            "train", as_hydra_overrides([*words, f"run_dir={folder / 'run'}", f"cache_dir={folder / 'cache'}"])
        )
    return prepare_run(plan(config, folder / "run"))


def asked(rows):
    return {t.input_ids[: t.action_index[0]].tobytes() for t in rows.trajectories}


@pytest.mark.parametrize("columns", [{}, {"prompt_id": "another name "}])
def test_prompts_of_validation_are_left_out_and_counted(tmp_path, caplog, columns):
    """Also where both files name their prompts, each in its own way."""
    data = write(tmp_path / "data.jsonl", lambda n: 2, **({"prompt_id": "name "} if columns else {}))
    further = write(tmp_path / "further.jsonl", lambda n: 3, **columns) if columns else data
    with caplog.at_level(logging.WARNING, "shiqrun"):
        run = loaded(tmp_path, data, further)
    held_out = asked(run.encoded.val)
    assert 3 < len(held_out) < PROMPTS - 3
    assert asked(run.further) == asked(run.encoded.train)
    assert not asked(run.further) & held_out
    each = 3 if columns else 2
    assert len(run.further) == each * (PROMPTS - len(held_out))
    told = f"{further}: left out are {each * len(held_out)} rollout.path, but the prompt is one of validation"
    assert [r.message for r in caplog.records if "rollout.path" in r.message] == [told]


def test_a_file_of_validation_prompts_alone_is_refused(tmp_path):
    data = write(tmp_path / "data.jsonl", lambda n: 2)
    run = loaded(tmp_path, data, data)
    names = {prompt_name(e.messages) for e in examples_of(run.plan.source, "val", run.plan.data)}
    lines = [x for x in data.read_text().splitlines() if prompt_name([user(json.loads(x)["prompt"])]) in names]
    only = tmp_path / "only.jsonl"
    only.write_text("\n".join(lines))
    with pytest.raises(InputError, match=f"{2 * len(lines)} rollout.path, but the prompt is one of validation"):
        loaded(tmp_path, data, only)


@pytest.mark.parametrize("tokens", [40, 400])
def test_completions_that_are_compared_stay_in_a_micro_batch(tmp_path, tokens):
    data = write(tmp_path / "data.jsonl", lambda n: 2)
    further = write(tmp_path / "further.jsonl", lambda n: 1 + n % 3)  # one, two or three completions
    words = ("rollout.samples_per_prompt=2", f"trainer.micro_batch_tokens={tokens}", "trainer.batch_size=24")
    run = loaded(tmp_path, data, further, *words, algo="copg")
    assert run.further.together
    assert run.further.compared
    sizes = Counter(t.group for t in run.further.trajectories)
    assert set(sizes.values()) == {2, 3}  # one alone has nothing to be compared with
    engine = SimpleNamespace(trained=lambda: iter(()))
    part = online_data(run, run.plan.rollout, engine).step_sources["further"]
    steps = part.steps.rows_of(0), part.steps.rows_of(1)
    for batches in steps:
        assert len(batches) > 1 or tokens == 400
        for batch in batches:
            for group, count in Counter(run.further.trajectories[i].group for i in batch).items():
                assert count == sizes[group]
    seen = [i for batches in steps for batch in batches for i in batch]
    assert len(set(seen)) == len(seen) > 8
