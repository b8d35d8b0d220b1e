"""A second environment needs one file and one YAML: it is trained on, played and scripted without another edit."""

import json

import pytest

from shiqrun.cli import main
from tests.support.command_line import metrics, summary

YAML = "_target_: tests.environments.counting.Counting\nmax_messages: null\n"
SIZE = ("model.hidden_size=32", "model.intermediate_size=48", "model.num_layers=2", "model.num_heads=2")
STEPS = ("trainer.max_steps=60", "trainer.batch_size=12", "trainer.learning_rate=1e-2", "trainer.warmup_steps=0")
EVALUATION = ("eval.every=30", "eval.max_new_tokens=3", "eval.samples_per_prompt=2")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    place = tmp_path_factory.mktemp("counting")
    (place / "yaml" / "data").mkdir(parents=True)
    (place / "yaml" / "data" / "counting.yaml").write_text(YAML)
    return place


def shiqrun(home, command, name, *words):
    folder = home / name
    words = ("--config-dir", str(home / "yaml"), "logger=none", f"run_dir={folder}", *words)
    return main([command, *words]), folder


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def trained(home):
    words = ("data=counting", "algo=shiq", "algo.beta=0.05", *SIZE, *STEPS, *EVALUATION, f"cache_dir={home / 'cache'}")
    code, folder = shiqrun(home, "train", "run", *words)
    assert code == 0
    return folder


def test_a_run_trains_on_logged_trajectories_and_plays_episodes(trained):
    rows = [row for row in metrics(trained) if "val/solved" in row]
    assert [row["step"] for row in rows] == [0, 30, 60]
    assert {row["val/episodes"] for row in rows} == {12}
    assert rows[-1]["val/reward"] > rows[0]["val/reward"] + 0.5, "of at most 1.5"
    assert rows[0]["val/kl"] == 0
    expected = rows[-1]["val/reward"] - 0.05 * rows[-1]["val/kl"]
    assert rows[-1]["val/regularised_return"] == pytest.approx(expected, abs=1e-5)
    assert summary(trained)["val/solved"] == rows[-1]["val/solved"]
    said = [row for row in lines(trained / "samples.jsonl") if row["step"] == 60]
    assert rows[-1]["val/reward"] == pytest.approx(sum(row["reward"] for row in said) / 12)
    assert any(row["kind"] == "sample" for row in lines(trained / "credit.jsonl")), "the token view has episodes"


def test_a_finished_run_is_evaluated_by_episodes(home, trained):
    code, folder = shiqrun(home, "eval", "eval", f"run={trained}")
    assert code == 0
    found, rows = json.loads((folder / "eval.json").read_text()), lines(folder / "episodes.jsonl")
    assert found["eval/episodes"] == len(rows) == 12
    assert found["eval/solved"] == pytest.approx(summary(trained)["val/solved"])
    for row in rows:
        spoken = [m for m in row["messages"] if m["role"] == "assistant"]
        assert len(spoken) == len(row["rewards"])
        assert row["reached"] == int(row["messages"][0]["content"]) + 4 * sum(row["rewards"])
    text = (folder / "episodes.md").read_text()
    assert text.count("*reward 0.5*") == sum(2 * sum(row["rewards"]) for row in rows)


@pytest.mark.parametrize(("policy", "reward", "solved"), [("perfect", 1.5, 1), ("once", 0.5, 0)])
def test_scripted_policies_play_by_their_names(home, policy, reward, solved):
    code, folder = shiqrun(home, "eval", policy, "data=counting", f"eval.policy={policy}")
    found = json.loads((folder / "eval.json").read_text())
    assert (code, found["eval/reward"], found["eval/solved"], found["policy"]) == (0, reward, solved, policy)
    assert (found["eval/reward_ci95"], found["eval/episodes"]) == (0, 6)


def test_an_episode_of_too_many_messages_is_truncated(home):
    code, folder = shiqrun(home, "eval", "short", "data=counting", "data.max_messages=2", "eval.policy=perfect")
    found = json.loads((folder / "eval.json").read_text())
    assert (code, found["eval/reward"], found["eval/episodes/too_many_steps"]) == (0, 1.0, 1.0)
    assert {row["ended"] for row in lines(folder / "episodes.jsonl")} == {"too many steps"}
    assert "*cut off: too many steps*" in (folder / "episodes.md").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("eval.policy=gold",), "it has perfect, once"),
        (("eval.policy=modle", "reward=exact_match"), "data=counting does not know it; did you mean model?"),
        (("eval.policy=perfekt", "reference=base"), "data=counting does not know it; did you mean perfect?"),
        (("eval.policy=perfect", "reward=exact_match"), "leave out reward=exact_match"),
        (("reward=exact_match",), "the environment of data=counting pays its own rewards"),
    ],
)
def test_what_cannot_be_played_is_refused_by_name(home, capsys, words, message):
    code, folder = shiqrun(home, "eval", "refused", "data=counting", *SIZE, *words)
    assert (code, folder.exists()) == (2, False)
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_misspelt_policy_beside_a_run_is_looked_up_in_the_runs_data_set(home, trained, capsys):
    for typed, meant in (("modle", "model"), ("onec", "once")):
        assert shiqrun(home, "eval", "misspelt", f"run={trained}", f"eval.policy={typed}")[0] == 2
        told = " ".join(capsys.readouterr().err.split())
        assert f"data=counting does not know it; did you mean {meant}?" in told
