"""Checkpoints from outside: nothing in one runs, damage is found, and a full disk costs nothing that was saved."""

import os
import resource
import shutil
import signal
import tempfile
from pathlib import Path

import pytest
import torch

from shiqrun.cli import main
from shiqrun.errors import InputError, TrainingError
from shiqrun.evaluation.checkpoint_files import load_plain, read_checkpoint, save_checkpoint
from shiqrun.training.checkpoint_io import AtomicCheckpointIO
from tests.support.command_line import train
from tests.support.places import working_in

pytestmark = pytest.mark.usefixtures("at_home")


@pytest.fixture(scope="module")
def done(home):
    """One finished run of 6 steps, with last.ckpt of step 6 and a best.ckpt."""
    with working_in(home):
        assert train("run_dir=done", "trainer.max_steps=6", "trainer.checkpoint_every=3") == 0
    return home / "done"


@pytest.fixture
def copy(done, tmp_path):
    """The same run as a kill after its last checkpoint leaves it."""
    return Path(shutil.copytree(done, tmp_path / "copy", ignore=shutil.ignore_patterns("policy", "summary.json")))


class Malicious:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)


COMMANDS = {
    "resume": ("last", lambda run: ["train", f"resume={run}"]),
    "eval_last": ("last", lambda run: ["eval", f"run={run}", "checkpoint=last", f"run_dir={run}/e"]),
    "eval_best": ("best", lambda run: ["eval", f"run={run}", "checkpoint=best", f"run_dir={run}/e"]),
}


def refused(capsys, words):
    """The one line that a command says on its way out, with exit code 2."""
    capsys.readouterr()
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return " ".join(said.split())


def content(path):
    return torch.load(path, weights_only=False)


@pytest.mark.parametrize(
    ("name", "writer"),
    [("resume", "torch.save"), ("resume", "save_checkpoint"), ("eval_last", "torch.save"), ("eval_best", "torch.save")],
)
def test_code_in_a_checkpoint_is_not_run(copy, tmp_path, capsys, name, writer):
    which, words = COMMANDS[name]
    path, made = copy / "checkpoints" / f"{which}.ckpt", tmp_path / "made"
    evil = {**content(path), "evil": Malicious(made)}
    torch.save(evil, path) if writer == "torch.save" else save_checkpoint(evil, path)
    said = refused(capsys, words(copy))
    assert str(path) in said
    assert "system" in said
    assert not made.exists()


def test_the_path_through_lightning_runs_no_code_either(tmp_path):
    torch.save({"evil": Malicious(tmp_path / "made")}, tmp_path / "last.ckpt")
    with pytest.raises(InputError, match="system"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "last.ckpt", weights_only=False)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("name", ["resume", "eval_best"])
def test_a_flipped_bit_in_a_tensor_is_refused(copy, capsys, name):
    which, words = COMMANDS[name]
    path = copy / "checkpoints" / f"{which}.ckpt"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    said = refused(capsys, words(copy))
    assert str(path) in said
    assert "damaged" in said


def test_every_flipped_byte_is_found_in_content_headers_and_checksum(tmp_path):
    path = tmp_path / "last.ckpt"
    save_checkpoint({"global_step": 3, "state_dict": {"w": torch.arange(9.0)}, "shiqrun": {}}, path)
    whole = path.read_bytes()
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="damaged"):
            read_checkpoint(path)
    path.write_bytes(whole)
    assert read_checkpoint(path)["global_step"] == 3


@pytest.mark.parametrize("damage", [b"", b"garbage" * 99, None])
def test_a_damaged_last_checkpoint_names_the_best_and_its_step(copy, damage):
    path = copy / "checkpoints" / "last.ckpt"
    path.write_bytes(path.read_bytes()[:-500] if damage is None else damage)
    step = content(path.with_name("best.ckpt"))["global_step"]
    with pytest.raises(InputError) as refusal:
        read_checkpoint(path)
    assert f"{path}: the checkpoint is" in str(refusal.value)
    assert f"best.ckpt is whole and holds the weights alone of step {step}" in str(refusal.value)


def test_what_the_message_of_a_damaged_checkpoint_advises_works(copy, capsys):
    path = copy / "checkpoints" / "last.ckpt"
    path.write_bytes(path.read_bytes()[:-500])
    said = refused(capsys, ["train", f"resume={copy}"])
    assert f"{path}: the checkpoint is" in said
    assert f"eval run={copy} checkpoint=best" in said
    assert f"delete last.ckpt and resume={copy}" in said
    assert main(["eval", f"run={copy}", "checkpoint=best", f"run_dir={copy}/e"]) == 0
    path.unlink()
    assert main(["train", f"resume={copy}"]) == 0


def test_a_best_checkpoint_holds_weights_alone(done):
    last, best = (done / "checkpoints" / f"{name}.ckpt" for name in ("last", "best"))
    assert "optimizer_states" not in content(best)
    assert best.stat().st_size < last.stat().st_size / 2


def test_a_checkpoint_of_an_earlier_version_is_read_and_its_damage_found(tmp_path, caplog):
    path = tmp_path / "last.ckpt"
    torch.save({"global_step": 3, "state_dict": {"w": torch.arange(9.0)}, "shiqrun": {}}, path)
    with caplog.at_level("INFO", "shiqrun"):
        assert read_checkpoint(path)["global_step"] == 3
    assert "has no checksum" in caplog.text
    whole = path.read_bytes()
    at = whole.index(torch.arange(9.0).numpy().tobytes())
    path.write_bytes(whole[:at] + b"\x01" + whole[at + 1 :])
    with pytest.raises(InputError, match="damaged"):
        read_checkpoint(path)


def test_leftovers_of_killed_writers_go_when_the_run_starts_again(copy):
    for name in (".last.ckpt.999999.tmp", "last.ckpt.999999.tmp", ".best.ckpt.999999.tmp"):
        (copy / "checkpoints" / name).touch()
    assert main(["train", f"resume={copy}"]) == 0
    assert sorted(p.name for p in (copy / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]


@pytest.fixture
def small_files():
    """No file may grow beyond 64 KiB: writing then fails as on a full disk, with another number."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_save_that_fails_keeps_the_former_checkpoint_and_no_partial_file(tmp_path, small_files):
    path = tmp_path / "last.ckpt"
    save_checkpoint({"global_step": 1}, path)
    with pytest.raises(TrainingError, match=r"cannot be written.*File too large.*the former checkpoint is kept"):
        save_checkpoint({"w": torch.zeros(1 << 16)}, path)
    assert load_plain(path) == {"global_step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_run_on_a_full_disk_ends_with_one_line(tmp_path, capsys, small_files):
    assert train(f"run_dir={tmp_path / 'run'}", "trainer.max_steps=3", "eval.every=0") == 1
    said = capsys.readouterr().err
    assert "the checkpoint cannot be written" in said
    assert "Traceback" not in said
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


def test_a_checkpoint_goes_straight_to_its_own_directory(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    AtomicCheckpointIO().save_checkpoint({"global_step": 1}, tmp_path / "last.ckpt")
    assert load_plain(tmp_path / "last.ckpt") == {"global_step": 1}
