import json
import re
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from shiqrun.cli import main
from tests.support.command_line import on_a_terminal

SMALL = ["data.maps=12", "data.val_maps=3", "model.hidden_size=16", "model.num_layers=1", "logger=none", "eval.every=0"]
BETA = 0.4


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A directory with `start`, a model, and `made`, a run of ShiQ from it with a reward offset."""
    folder = tmp_path_factory.mktemp("runs")
    start, made = folder / "start", folder / "made"
    assert main(["train", *SMALL, "algo=sft", "algo.reference=none", "trainer.max_steps=2", f"run_dir={start}"]) == 0
    words = [*SMALL[:2], *SMALL[-2:], "model=hf", f"model.path={start}/policy", f"algo.beta={BETA}"]
    words += ["algo.reward_offset=mean", "trainer.max_steps=8", "trainer.learning_rate=0.01", f"run_dir={made}"]
    words += [f"cache_dir={folder}/cache"]
    assert main(["train", *words]) == 0
    return folder


@pytest.fixture
def inspect(runs, tmp_path, monkeypatch, capsys):
    """Runs the command in an empty directory; (exit code, stdout, stderr). `made` is the run, `start` its start."""
    monkeypatch.chdir(tmp_path)
    for name in ("start", "made"):
        (tmp_path / name).symlink_to(runs / name)

    def call(*words):
        code = main(["inspect", *words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def rows(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def numbers(row, name):
    return [x for x in row[name] if x is not None]


def naive(runs, row, offset):
    """The three numbers of each action of a row, one at a time, from the saved models' dense logits in float64."""
    tokenizer = AutoTokenizer.from_pretrained(runs / "made" / "policy")
    ids = tokenizer("".join(row["tokens"]), add_special_tokens=False)["input_ids"]
    assert len(ids) == len(row["tokens"])
    logits = []
    for name in ("made", "start"):
        model = AutoModelForCausalLM.from_pretrained(runs / name / "policy", dtype=torch.float64).eval()
        with torch.no_grad():
            logits.append(model(torch.tensor([ids])).logits[0])
    at = [i for i, acts in enumerate(row["action"]) if acts]
    ours, theirs = (x.log_softmax(-1) for x in logits)
    advantage = [BETA * float(ours[i - 1, ids[i]] - theirs[i - 1, ids[i]]) for i in at]
    value = [BETA * float(logits[0][i - 1].logsumexp(-1) - logits[1][i - 1].logsumexp(-1)) for i in at]
    reward = numbers(row, "reward")
    left = [sum(reward[k:]) - offset - sum(advantage[k:]) - value[k] for k in range(len(at))]
    return advantage, value, left


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_numbers_written_are_those_of_a_loop_over_the_saved_models(inspect, runs, tmp_path, split):
    code, out, _ = inspect("run=made", "limit=5", f"split={split}", "out=credit.jsonl")
    assert code == 0
    offset = json.loads((runs / "made" / "summary.json").read_text())["reward_offset"]
    assert abs(offset) > 0.01
    found = rows(tmp_path / "credit.jsonl")
    assert len(found) == 5
    for row in found:
        advantage, value, left = naive(runs, row, offset)
        assert row["source"].startswith(f"treasure:{split}:")
        assert max(map(abs, advantage)) > 1e-3  # eight steps have taught it something
        assert numbers(row, "advantage") == pytest.approx(advantage, abs=1e-5)
        assert numbers(row, "shifted_value") == pytest.approx(value, abs=1e-5)
        assert numbers(row, "residual") == pytest.approx(left, abs=1e-5)
        assert (row["beta"], row["kind"]) == (BETA, "data")
        assert f"return {row['return']:g} = {sum(advantage):+.3g} advantages" in out


def test_every_action_has_its_number_under_it(inspect, tmp_path):
    for show in ("advantage", "shifted_value", "residual"):
        _, out, _ = inspect("run=made", "limit=1", f"show={show}", "out=credit.jsonl")
        lines = out.splitlines()
        at = next(i for i, line in enumerate(lines) if line.startswith("<bos> start"))
        shown = [float(word) for word in lines[at + 1].split()]
        (row,) = rows(tmp_path / "credit.jsonl")
        assert shown == pytest.approx(numbers(row, show), rel=0.06, abs=0.06 * max(map(abs, numbers(row, show))))
        assert lines[at].count("[") == sum(row["action"])
        title = show.replace("_", " ")
        assert f"under each action stand its {title}, in reward units, beta 0.4" in out
    assert "lengths and returns" in out


def test_nothing_is_written_unless_asked(inspect, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "made").rglob("*")}
    assert inspect("run=made", "limit=1")[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "start"]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "made").rglob("*")} == before


def test_limits_of_the_runs_own_data_can_be_set_and_its_offset_stays(inspect, runs, tmp_path):
    code, out, _ = inspect("run=made", "data.limit=2", "limit=1", "out=credit.jsonl")
    assert code == 0
    assert "│ train │    8 │       2 │ tokens" in out
    (row,) = rows(tmp_path / "credit.jsonl")
    explained = sum(numbers(row, "advantage")) + numbers(row, "shifted_value")[0] + numbers(row, "residual")[0]
    offset = json.loads((runs / "made" / "summary.json").read_text())["reward_offset"]
    assert row["return"] - explained == pytest.approx(offset, abs=1e-5)


def test_other_data_are_read_with_the_runs_tokenizer(inspect, tmp_path):
    row = {"prompt": "start r1 c1 goal r0 c0 treasure r2 c2", "completion": "N W", "reward": 1}
    (tmp_path / "mine.jsonl").write_text(json.dumps(row) + "\n")
    words = ["data=jsonl", "data.path=mine.jsonl", "data.val_fraction=0", "out=credit.jsonl"]
    code, out, _ = inspect("run=made", *words)
    assert code == 0
    (found,) = rows(tmp_path / "credit.jsonl")
    assert found["source"] == "mine.jsonl:1"
    assert "".join(t for t, acts in zip(found["tokens"], found["action"], strict=True) if acts).split()[0] == "N"
    assert "[ N" in out


def test_dry_run_prints_tables_and_no_token(inspect):
    code, out, _ = inspect("run=made", "dry_run=true")
    assert code == 0
    assert "<bos>" not in out
    assert "│ train │" in out
    assert out.splitlines()[-1].startswith("next: the same without dry_run=true")


def test_a_method_without_beta_is_shown_in_nats(inspect, tmp_path):
    code, out, _ = inspect("run=start", "limit=1", "out=credit.jsonl")
    assert code == 0
    assert "in nats (the method has no beta)" in out
    assert rows(tmp_path / "credit.jsonl")[0]["beta"] == 1.0


def test_an_unfinished_run_is_refused_and_its_checkpoint_can_be_looked_at(inspect, runs, tmp_path):
    (tmp_path / "made").unlink()
    shutil.copytree(runs / "made", tmp_path / "made")
    shutil.rmtree(tmp_path / "made" / "policy")
    (tmp_path / "made" / "summary.json").unlink()
    code, _, err = inspect("run=made")
    assert code == 2
    assert "run=made: no policy/ in it; the run is not finished; checkpoint=last" in err
    assert inspect("run=made", "checkpoint=last", "limit=1", "out=last.jsonl")[0] == 0
    (tmp_path / "made.whole").symlink_to(runs / "made")
    assert inspect("run=made.whole", "limit=1", "out=policy.jsonl")[0] == 0
    last, whole = (rows(tmp_path / f"{name}.jsonl")[0] for name in ("last", "policy"))
    assert numbers(last, "advantage") == pytest.approx(numbers(whole, "advantage"), abs=1e-5)


def test_a_reference_that_has_changed_is_refused(inspect, runs, tmp_path):
    (tmp_path / "made").unlink()
    shutil.copytree(runs / "made", tmp_path / "made")
    summary = json.loads((tmp_path / "made" / "summary.json").read_text())
    (tmp_path / "made" / "summary.json").write_text(json.dumps(summary | {"fingerprint/model": "abc", "sha256": None}))
    code, _, err = inspect("run=made")
    assert code == 2
    assert re.search(r"run=made: the model that it started from .*abc then, [0-9a-f]{32} now", err)


def test_a_reward_model_has_no_policy_to_look_into(inspect, tmp_path):
    words = ["algo=reward_model", "algo.reference=none", "trainer.max_steps=1", "run_dir=judge"]
    assert main(["train", *SMALL, *words]) == 0
    code, _, err = inspect("run=judge")
    assert code == 2
    assert "no policy/ in it; the run made a reward model" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model=tiny"], "run=made brings its own model; leave out model=tiny"),
        (["model.hidden_size=4"], "run=made brings its own model; leave out model.hidden_size=4"),
        (["show=advantages"], "show: met 'advantages'.*did you mean advantage"),
        (["data.limit=0"], "data.limit: met 0"),
        (["out=nowhere/credit.jsonl"], "out=nowhere/credit.jsonl: cannot be written"),
    ],
)
def test_what_does_not_fit_beside_a_run_ends_with_2(inspect, words, message):
    code, _, err = inspect("run=made", *words)
    assert code == 2
    assert re.search(message, err)


@pytest.mark.slow
def test_on_a_terminal_every_action_has_its_colour(runs):
    code, out = on_a_terminal("inspect", "run=made", "limit=2", cwd=runs, COLORTERM="truecolor")
    assert code == 0
    assert re.search(r"\x1b\[38;5;(16|231);48;2;\d+;\d+;\d+m [NSEW]\x1b\[0m", out)
    assert "48;2;178;24;43m" in out
    assert "48;2;33;102;172m" in out
    text = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", out)
    assert "[ " not in text
    assert re.search(r"advantage +-[\d.]+ {35}\+[\d.]+ +reward units, beta 0\.4", text)
