"""Methods that read a file of `shiqrun values` in another way than SPO: quantiles, and a temperature of their own."""

import numpy as np
import pytest

from shiqrun.cli import main
from tests.commands.test_values import DATA, q0, read, refused, train, values
from tests.support.command_line import largest_difference, metrics
from tests.support.places import working_in

pytestmark = pytest.mark.usefixtures("at_home")


@pytest.fixture(scope="module")
def home(home):
    """A reference that solves some problems, and its values."""
    small = ("model.hidden_size=48", "model.num_layers=2", "logger=none", "eval.every=0", "trainer.max_steps=120")
    with working_in(home):
        words = ("algo=sft", *DATA, "data.problems=400", "data.completions=best", "seed=0")
        assert main(["train", *words, *small, "run_dir=reference0"]) == 0
        assert values("run_dir=made") == 0
    return home


@pytest.mark.slow
def test_quantiles_are_shares_of_the_files_rewards_and_train(home, capfd):
    """Of {-1, 0}: a wrong program is above the wrong samples alone, a right one above all."""
    words = ("algo=qrpo", "trainer.batch_size=160", "trainer.max_steps=8")
    answered = ("eval.reward=programs", "eval.every=8", "eval.max_new_tokens=12")
    assert train(*words, *answered, "algo.values=made/values.jsonl", "run_dir=ranked") == 0
    assert "val/reward" in metrics(home / "ranked")[-1]
    assert "val/regularised_return" not in metrics(home / "ranked")[-1], "beta is in quantiles per nat"
    rows = [r for r in metrics(home / "ranked") if "train/loss" in r]
    known = {line["prompt_id"]: np.array(line["rewards"]) for line in read("made/values.jsonl")[1:]}
    trained = [r["prompt_id"] for r in read("made/trajectories.jsonl")[:40]]
    expected = np.mean([(np.mean(known[name] <= -1) + 1) / 2 for name in trained])
    assert 0.5 < expected < 1
    assert rows[0]["train/quantile"] == pytest.approx(expected, rel=1e-5)
    assert rows[0]["train/logratio_mean"] == pytest.approx(0, abs=1e-6)
    assert rows[-1]["train/loss"] < rows[0]["train/loss"]
    for tokens in (10_000, 80):
        cut = ("algo=qrpo", "algo.values=made/values.jsonl", f"trainer.micro_batch_tokens={tokens}")
        assert train(*cut, f"run_dir=ranked{tokens}") == 0
    assert largest_difference(home / "ranked10000", home / "ranked80") < 5e-5
    assert "algo=qrpo needs what the reference earns on every prompt: give algo.values=FILE" in refused(
        capfd, "algo=qrpo"
    )
    assert "monte_carlo are for methods with prompt values" in refused(
        capfd, "algo=qrpo", "algo.values=made/values.jsonl", "+algo.monte_carlo=1", "+algo.targets=x"
    )


@pytest.mark.slow
def test_prompt_values_may_have_a_temperature_of_their_own(home, capfd):
    words = ("algo.values=made/values.jsonl", "trainer.batch_size=160", "algo.beta=0.5")
    for name, own in (("a2po", "0.2"), ("spo", "0.2"), ("spo", "null")):
        assert train(f"algo={name}", *words, f"algo.value_beta={own}", f"run_dir=own_{name}{own}") == 0
    known = {line["prompt_id"]: q0(line["rewards"], 0.2) for line in read("made/values.jsonl")[1:]}
    expected = np.mean([known[r["prompt_id"]] for r in read("made/trajectories.jsonl")[:40]])
    assert metrics(home / "own_a2po0.2")[0]["train/prompt_value"] == pytest.approx(expected, rel=1e-5)
    assert largest_difference(home / "own_a2po0.2", home / "own_spo0.2") == 0
    assert largest_difference(home / "own_spo0.2", home / "own_sponull") > 0
    file = "algo.values=made/values.jsonl"
    term = refused(capfd, "algo=a2po", file, "algo.monte_carlo=1", "algo.targets=x")
    assert "algo.value_beta=0.5: the Monte-Carlo term's targets are values at algo.beta; set null" in term
    assert "value_beta" in refused(capfd, "algo=shiq", "+algo.value_beta=1")
