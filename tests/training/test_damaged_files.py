"""Damage to the files of a run directory is found by every command that reads them, and said in one line."""

import json
import shutil
from pathlib import Path

import pytest

import shiqrun
from shiqrun.cli import main
from shiqrun.evaluation.checkpoint_files import save_checkpoint
from shiqrun.sweeping.state import load
from shiqrun.training.metrics_csv import MetricsFile
from shiqrun.util.summary import is_finished
from tests.evaluation.runs import make_base, train
from tests.support.command_line import checkpoint, metrics, summary, timeless
from tests.support.places import working_in
from tests.support.selection import rest_slow

pytestmark = pytest.mark.usefixtures("at_home")
WORDS = ("trainer.max_steps=6", "trainer.checkpoint_every=3", "trainer.log_every=1")


@pytest.fixture(scope="module")
def done(home):
    """One finished run of 6 steps with checkpoints of steps 3 and 6, and completions of four evaluations."""
    with working_in(home):
        make_base(home)
        assert train(home, "done", *WORDS) == 0
    return home / "done"


@pytest.fixture
def run(done, tmp_path):
    """A copy of the finished run."""
    return Path(shutil.copytree(done, tmp_path / "run"))


@pytest.fixture
def cut(run):
    """The same as a kill right after the last checkpoint leaves it."""
    shutil.rmtree(run / "policy")
    (run / "summary.json").unlink()
    return run


def refused(capsys, *words):
    """The one line that a command says on its way out, with exit code 2."""
    capsys.readouterr()
    assert main([*map(str, words)]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("shiqrun: error: ")]
    assert len(said) == 1
    return said[0]


def flip(path):
    """Change one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


EVAL = {
    "eval": lambda run: ("eval", f"run={run}", f"run_dir={run}/e"),
    "model.path": lambda run: ("train", "model=hf", f"model.path={run}/policy", f"run_dir={run}/t", "logger=none"),
}


@pytest.mark.parametrize("command", rest_slow(EVAL))
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_changed_file_of_a_saved_policy_is_refused(run, capsys, command, name):
    flip(run / "policy" / name)
    said = refused(capsys, *EVAL[command](run))
    assert f"policy/{name} has changed since the run saved it" in said


def test_a_missing_or_added_file_of_a_policy_is_refused_and_its_card_may_be_edited(run, capsys):
    (run / "policy" / "README.md").write_text("mine")
    assert main(["eval", f"run={run}", f"run_dir={run}/e"]) == 0
    (run / "policy" / "pytorch_model.bin").write_text("x")
    assert "pytorch_model.bin was added" in refused(capsys, *EVAL["eval"](run))
    (run / "policy" / "config.json").unlink()
    assert "is missing" in refused(capsys, *EVAL["eval"](run))


def test_changed_weights_of_a_run_of_an_earlier_version_are_refused(run, capsys):
    values = {k: v for k, v in summary(run).items() if not k.startswith("sha256")}
    (run / "summary.json").write_text(json.dumps(values))
    assert main(["eval", f"run={run}", f"run_dir={run}/e"]) == 0
    flip(run / "policy" / "model.safetensors")
    assert "the weights have changed since the run saved them" in refused(capsys, *EVAL["eval"](run))


def test_a_changed_number_of_a_summary_is_one_line_and_without_its_checksum_it_is_a_meant_edit(run, capsys):
    file, values = run / "summary.json", json.loads((run / "summary.json").read_text())
    file.write_text(json.dumps(values | {"reward_offset": 0.25}))
    for words in (EVAL["eval"](run), ("report", run)):
        assert f"{file}: has changed since the run wrote it" in refused(capsys, *words)
    assert not is_finished(run)
    del values["sha256"]
    file.write_text(json.dumps(values | {"reward_offset": 0.25}))
    assert main(["report", str(run)]) == 0


def test_a_changed_saved_config_is_one_line_and_without_its_first_line_it_is_a_meant_edit(cut, capsys):
    file = cut / ".hydra" / "config.yaml"
    seal, _, lines = file.read_text().partition("\n")
    edited = lines.replace("learning_rate: 0.003", "learning_rate: 0.002")
    assert edited != lines
    file.write_text(f"{seal}\n{edited}")
    for words in (("train", f"resume={cut}"), EVAL["eval"](cut), ("report", cut)):
        assert f"{file}: has changed since the run wrote it; restore it, or remove" in refused(capsys, *words)
    file.write_text(edited)
    assert main(["train", f"resume={cut}"]) == 0


@pytest.mark.parametrize("content", rest_slow([b"", b"{", b"[]", b"\0\0\0"]))
def test_a_damaged_summary_is_one_line_and_resuming_writes_it_again(run, capsys, content):
    before = summary(run)
    (run / "summary.json").write_bytes(content)
    for words in (EVAL["eval"](run), ("report", run)):
        assert f"{run}/summary.json: " in refused(capsys, *words)
    assert main(["train", f"resume={run}"]) == 0
    assert summary(run)["fingerprint/policy"] == before["fingerprint/policy"]


def test_the_same_command_goes_on_with_a_run_whose_summary_is_damaged(done, home):
    moved = Path(shutil.copytree(done, home / "again"))
    (moved / "summary.json").write_bytes(b"")
    assert train(home, "again", *WORDS) == 0
    assert summary(moved)["steps"] == 6


@pytest.mark.parametrize("status", ["running", "finished"])
def test_a_sweep_runs_a_job_with_a_damaged_summary_again(tmp_path, status):
    job = {"number": 0, "dir": "a", "words": [], "swept": {}, "status": status}
    state = {"format": 1, "command": "train", "typed": [], "cwd": "/", "fixed": [], "jobs": [job]}
    (tmp_path / "sweep.json").write_text(json.dumps(state))
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "summary.json").write_bytes(b"")
    assert load(tmp_path).jobs[0].status == "interrupted"
    (tmp_path / "a" / "summary.json").write_text('{"seconds": 3.0}')
    assert load(tmp_path).jobs[0].status == "finished"


def without_line(content, number):
    lines = content.splitlines(keepends=True)
    return b"".join(lines[:number] + lines[number + 1 :])


JOURNALS = ("metrics.csv", "samples.jsonl")
CUTS = {
    "gone": lambda content: None,
    "empty": lambda content: b"",
    "first row": lambda content: without_line(content, 1),
    "middle row": lambda content: without_line(content, 3),
    "half": lambda content: content[: len(content) // 2],
    "changed digit": lambda content: content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
    "NULs in the middle": lambda content: content[:90] + bytes(40) + content[130:],
    "no UTF-8": lambda content: content[:90] + b"\xff\xfe" + content[92:],
}


@pytest.mark.parametrize("damage", rest_slow(CUTS))
@pytest.mark.parametrize("name", JOURNALS)
def test_a_run_is_not_resumed_without_rows_that_its_checkpoint_was_saved_after(cut, capsys, name, damage):
    content = CUTS[damage]((cut / name).read_bytes())
    (cut / name).unlink()
    if content is not None:
        (cut / name).write_bytes(content)
    said = refused(capsys, "train", f"resume={cut}")
    assert f"{cut / name}:" in said
    assert f"delete {cut}/checkpoints/last.ckpt" in said
    assert not (cut / "summary.json").exists()


@pytest.mark.parametrize("name", JOURNALS)
def test_after_the_checkpoint_is_deleted_the_run_trains_from_step_0_whatever_the_file_holds(cut, done, name):
    (cut / name).write_bytes(b"garbage\n\0\n\xff")
    (cut / "checkpoints" / "last.ckpt").unlink()
    assert main(["train", f"resume={cut}"]) == 0
    assert timeless(metrics(cut)) == timeless(metrics(done))
    assert (cut / "samples.jsonl").read_bytes() == (done / "samples.jsonl").read_bytes()


@pytest.mark.parametrize("tail", rest_slow([b"7,0.25,", bytes(50), b'{"step": 7, "prom' + bytes(500), b"7,1\n8,2\n"]))
def test_what_was_appended_after_the_checkpoint_is_dropped_and_a_torn_tail_is_said(cut, done, capsys, tail):
    for name in JOURNALS:
        with (cut / name).open("ab") as file:
            file.write(tail)
    assert main(["train", f"resume={cut}"]) == 0
    printed = capsys.readouterr()
    said = (printed.out + printed.err).replace("\n", "")
    assert said.count("dropped a torn last line") == (0 if tail.endswith(b"\n") else 2)
    assert timeless(metrics(cut)) == timeless(metrics(done))
    assert (cut / "samples.jsonl").read_bytes() == (done / "samples.jsonl").read_bytes()


def test_a_checkpoint_of_an_earlier_version_is_accepted_and_that_is_said_once(cut, done, capsys):
    saved = checkpoint(cut)
    del saved["callbacks"]["Checkpoints"]["journals"]
    save_checkpoint(saved, cut / "checkpoints" / "last.ckpt")
    lines = (cut / "metrics.csv").read_bytes()
    (cut / "metrics.csv").write_bytes(without_line(lines, 3))
    assert main(["train", f"resume={cut}"]) == 0
    printed = capsys.readouterr()
    assert (printed.out + printed.err).count("earlier version") == 1


def test_a_run_killed_after_its_last_step_ends_with_the_same_token_view_and_no_partial_file(cut, done):
    (cut / "credit.jsonl").unlink()
    for partial in (".credit.jsonl.999.tmp", ".hydra/.config.yaml.999.tmp"):
        (cut / partial).touch()
    assert main(["train", f"resume={cut}"]) == 0
    assert (cut / "credit.jsonl").read_bytes() == (done / "credit.jsonl").read_bytes()
    assert not list(cut.rglob("*.tmp"))


def test_rows_logged_at_the_checkpoints_own_step_after_it_was_saved_are_logged_again(tmp_path):
    log = MetricsFile(tmp_path / "m.csv")
    log.log_metrics({"a": 1.0}, 1)
    log.log_metrics({"a": 2.0}, 2)
    mark = log.mark()
    log.log_metrics({"b": 3.0}, 2)
    again = MetricsFile(log.path, 2, mark)
    assert again.latest() == {"a": 2.0}
    assert again.mark() == mark
    again.log_metrics({"b": 4.0}, 2)
    again.log_metrics({"b": float("nan")}, 3)
    assert MetricsFile(log.path).mark() == again.mark()


@pytest.mark.parametrize("name", ["metrics.csv", pytest.param("samples.jsonl", marks=pytest.mark.slow)])
def test_a_report_refuses_a_table_of_a_finished_run_that_has_changed(home, name, capsys):
    settings = {"data_maps": 20, "data_val_maps": 3, "model_hidden_size": 16, "trainer_max_steps": 1}
    run = shiqrun.train("logger=none", **settings, run_dir=home / f"reported_{name}").directory
    assert main(["report", str(run)]) == 0
    file = run / name
    content = file.read_bytes()
    place = next(n for n in range(len(content) - 2, 0, -1) if content[n : n + 1].isdigit())
    file.write_bytes(content[:place] + b"%d" % (9 - int(content[place : place + 1])) + content[place + 1 :])
    assert main(["report", str(run)]) == 2
    assert f"{name}: has changed since the run finished" in capsys.readouterr().err
    file.unlink()
    assert main(["report", str(run)]) == 2
    assert f"{name}: is gone since the run finished" in capsys.readouterr().err
    file.write_bytes(content)
    assert main(["report", str(run)]) == 0
