import json
import logging
import os
import re
import sys
from pathlib import Path

import pytest
import torch.distributed
import yaml

from shiqrun.commands.launch import launch


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    root.handlers[:], root.level = handlers, level


def toy(*words: str, writes: bool = True) -> int:
    return launch("train", words, module="toy_command", writes=writes)


def said(folder: Path) -> dict:
    return json.loads((folder / "said.json").read_text())


def saved(folder: Path) -> dict:
    return yaml.safe_load((folder / ".hydra/config.yaml").read_text())


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_run_gets_its_directory_with_config_overrides_and_log(workplace):
    assert toy("run_dir=out", "algo.beta=0.5") == 0
    assert files(Path("out")) == [
        ".hydra/config.yaml",
        ".hydra/hydra.yaml",
        ".hydra/overrides.yaml",
        "run.log",
        "said.json",
    ]
    assert yaml.safe_load(Path("out/.hydra/overrides.yaml").read_text()) == ["run_dir=out", "algo.beta=0.5"]
    assert said(Path("out"))["beta"] == 0.5


def test_the_saved_config_has_no_interpolation_and_the_true_directory(workplace):
    toy("seed=3")
    (folder,) = Path("outputs/shiq-treasure").iterdir()
    assert saved(folder)["run_dir"] == said(folder)["run_dir"] == str(folder.absolute())
    assert "${" not in (folder / ".hydra/config.yaml").read_text()


def test_the_default_directory_is_named_by_algo_data_and_time(workplace):
    toy("algo=sft")
    (folder,) = Path("outputs/sft-treasure").iterdir()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", folder.name)


def test_two_runs_of_one_second_have_two_directories(workplace):
    frozen = "run_dir=outputs/${now:%Y}"  # one name for a whole year
    assert [toy(frozen, "seed=1"), toy(frozen, "seed=2")] == [0, 0]
    folders = sorted(Path("outputs").iterdir(), key=lambda folder: len(folder.name))
    assert [said(folder)["seed"] for folder in folders] == [1, 2]
    assert folders[1].name == f"{folders[0].name}_2"


@pytest.mark.parametrize(("seed", "code"), [(101, 2), (102, 1), (103, 130), (104, 1), (105, 130)])
def test_the_exit_code_says_how_it_ended(workplace, seed, code):
    assert toy(f"seed={seed}", "run_dir=out") == code


def test_a_failure_shows_its_traceback_and_where_it_ran(workplace, capsys):
    toy("seed=102", "run_dir=out")
    error = capsys.readouterr().err
    assert "RuntimeError: a defect" in error
    assert "toy_command.py" in error
    assert f"run directory: {workplace / 'out'}" in error
    assert "RuntimeError: a defect" in Path("out/run.log").read_text()


def test_a_training_error_is_told_without_traceback(workplace, capsys):
    toy("seed=104", "run_dir=out")
    error = capsys.readouterr().err
    assert "loss is NaN at step 3" in error
    assert "Traceback" not in error


def test_an_interrupted_run_says_how_to_go_on(workplace, capsys):
    toy("seed=103", "run_dir=out")
    error = capsys.readouterr().err
    assert "saved at step 7" in error
    assert f"shiqrun train resume={workplace / 'out'}" in error


def test_wrong_input_found_by_the_command_leaves_no_directory(workplace):
    assert toy("seed=101", "run_dir=out") == 2
    assert files(workplace) == []
    assert toy("seed=1", "run_dir=out") == 0


def test_a_dry_run_leaves_no_file(workplace, capsys):
    assert toy("dry_run=true") == 0
    assert toy("-m", "seed=1,2", "dry_run=true") == 0
    assert capsys.readouterr().out.count('"seed"') == 3
    assert list(workplace.iterdir()) == []


def test_a_command_that_writes_nothing_makes_no_run_directory(workplace):
    assert toy(writes=False) == 0
    assert list(workplace.iterdir()) == []


def test_what_a_job_sets_in_the_environment_is_gone_after_it(workplace, monkeypatch):
    monkeypatch.delenv("LEFT_BY_A_JOB", raising=False)
    before = dict(os.environ)
    toy("run_dir=out")
    assert dict(os.environ) == before


def test_the_command_line_is_whole_inside_a_run(workplace, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["shiqrun", "train", "run_dir=out"])
    toy("run_dir=out")
    assert said(Path("out"))["argv"] == ["train", "run_dir=out"]


class TestARunDirectoryThatIsThere:
    def test_goes_on_if_its_run_has_not_ended(self, workplace, capsys):
        toy("run_dir=out", "seed=5")
        assert toy("run_dir=out", "seed=5") == 0
        assert "unfinished" in capsys.readouterr().err
        assert said(Path("out"))["resume"] == str(workplace / "out")

    def test_is_refused_if_its_run_has_ended(self, workplace, capsys):
        toy("run_dir=out")
        Path("out/summary.json").write_text("{}")
        assert toy("run_dir=out") == 2
        assert "finished" in capsys.readouterr().err

    def test_is_refused_and_untouched_if_its_config_differs(self, workplace, capsys):
        toy("run_dir=out", "algo.beta=0.1")
        before = Path("out/.hydra/config.yaml").read_bytes()
        assert toy("run_dir=out", "algo.beta=0.2") == 2
        assert "algo.beta: 0.1 there, 0.2 here" in capsys.readouterr().err
        assert Path("out/.hydra/config.yaml").read_bytes() == before

    def test_is_used_if_it_holds_no_run(self, workplace):
        Path("out").mkdir()
        Path("out/notes.txt").write_text("mine")
        assert toy("run_dir=out") == 0
        assert Path("out/notes.txt").read_text() == "mine"

    def test_is_refused_if_it_is_a_file(self, workplace, capsys):
        Path("file").write_text("")
        assert toy("run_dir=file") == 2
        assert toy("run_dir=file/out") == 2
        assert capsys.readouterr().err.count("run_dir=") == 2

    @pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a file system that nobody can write")
    def test_is_refused_if_nobody_can_write_there(self, workplace, capsys):
        assert toy("run_dir=/proc/out") == 2
        assert "run_dir=/proc/out: cannot be written" in capsys.readouterr().err


class TestResume:
    def test_runs_the_saved_config_in_its_directory(self, workplace):
        toy("run_dir=out", "algo.beta=0.7", "algo=shiq_ms")
        (Path("out") / "said.json").unlink()
        assert toy("resume=out") == 0
        told = said(Path("out"))
        assert (told["algo"], told["beta"]) == ("shiq_ms", 0.7)
        assert told["resume"] == told["run_dir"] == str(workplace / "out")

    def test_adds_to_the_log(self, workplace):
        toy("run_dir=out")
        logging.getLogger().handlers.clear()  # as in a new process
        toy("resume=out")
        assert Path("out/run.log").read_text().count("began") == 2

    def test_works_where_the_directory_was_moved_to(self, workplace):
        toy("run_dir=out")
        Path("out").rename("moved")
        assert toy("resume=moved") == 0
        assert said(Path("moved"))["run_dir"] == str(workplace / "moved")

    @pytest.mark.parametrize("other", ["seed=1", "-m", "algo=sft", "++algo.beta=2"])
    def test_takes_nothing_beside_it(self, workplace, capsys, other):
        toy("run_dir=out")
        assert toy("resume=out", other) == 2
        assert "nothing else can be set" in capsys.readouterr().err

    def test_of_no_directory_names_the_runs_near_it(self, workplace, capsys):
        toy("run_dir=runs/first")
        assert toy("resume=runs/frist") == 2
        error = capsys.readouterr().err
        assert "no such directory" in error
        assert "runs/first" in error
        assert not Path("runs/frist").exists()

    def test_of_a_directory_without_a_run_says_so(self, workplace, capsys):
        Path("out").mkdir()
        assert toy("resume=out") == 2
        assert "holds no .hydra/config.yaml" in capsys.readouterr().err

    def test_of_wrong_input_keeps_the_directory(self, workplace):
        toy("run_dir=out")
        Path("out/said.json").unlink()
        config = Path("out/.hydra/config.yaml")
        config.write_text(config.read_text().replace("seed: 0", "seed: 101"))
        assert toy("resume=out") == 2
        assert config.exists()


class TestASweep:
    def test_has_one_directory_a_job_named_by_its_overrides(self, workplace):
        assert toy("-m", "run_dir=out", "algo.beta=0.1,0.2", "seed=4") == 0
        first, second = Path("out/0_algo.beta=0.1_seed=4"), Path("out/1_algo.beta=0.2_seed=4")
        assert (said(first)["beta"], said(second)["beta"]) == (0.1, 0.2)
        assert saved(second)["run_dir"] == str(workplace / second)
        assert Path("out/multirun.yaml").exists()

    def test_directory_names_are_safe_and_short(self, workplace):
        assert toy("-m", "run_dir=out", "model=hf", f"model.path='/a b/{'long/' * 60}',x", "data.limit=3") == 0
        names = sorted(path.name for path in Path("out").iterdir() if path.is_dir())
        assert len(names) == 2
        assert all(re.fullmatch(r"[\w.=+-]{1,100}", name) for name in names)

    def test_by_default_lies_under_algo_data_and_time(self, workplace):
        toy("-m", "seed=1,2")
        (folder,) = Path("outputs/shiq-treasure").iterdir()
        assert sorted(path.name for path in folder.iterdir()) == ["0_seed=1", "1_seed=2", "multirun.yaml"]

    def test_can_sweep_over_groups(self, workplace):
        assert toy("-m", "run_dir=out", "algo=shiq,sft") == 0
        assert said(Path("out/1_algo=sft"))["algo"] == "sft"

    def test_with_one_wrong_value_makes_nothing(self, workplace, capsys):
        assert toy("-m", "run_dir=out", "algo.beta=0.1,0") == 2
        assert "algo.beta: met 0" in capsys.readouterr().err
        assert list(workplace.iterdir()) == []

    def test_goes_on_after_a_job_that_failed(self, workplace):
        assert toy("-m", "run_dir=out", "seed=1,102,2") == 1
        assert Path("out/2_seed=2/said.json").exists()

    def test_whose_input_was_wrong_leaves_no_directory(self, workplace):
        assert toy("-m", "run_dir=out", "seed=101", "algo.beta=0.1,0.2") == 2
        assert list(workplace.iterdir()) == []

    def test_leaves_the_process_group_of_a_job_before_the_next(self, workplace):
        assert toy("-m", "run_dir=out", "seed=201,202") == 0
        assert not torch.distributed.is_initialized()

    def test_stops_at_an_interrupt(self, workplace):
        assert toy("-m", "run_dir=out", "seed=1,103,2") == 130
        assert not Path("out/2_seed=2").exists()

    def test_does_not_start_where_there_is_one(self, workplace, capsys):
        toy("-m", "run_dir=out", "seed=1,2")
        assert toy("-m", "run_dir=out", "seed=3,4") == 2
        assert toy("run_dir=out", "seed=3") == 2
        assert capsys.readouterr().err.count("already holds a sweep") == 2


class TestAFurtherRank:
    @pytest.fixture(autouse=True)
    def rank(self, workplace, monkeypatch):
        toy("-m", "run_dir=out", "algo.beta=0.1,0.2")
        self.folder = workplace / "out/1_algo.beta=0.2"
        (self.folder / "said.json").unlink()
        monkeypatch.setenv("LOCAL_RANK", "1")
        monkeypatch.setenv("SHIQRUN_CHILD_CONFIG", str(self.folder))

    def test_runs_the_first_ranks_config_whatever_its_command_line(self):
        before = {path: path.read_bytes() for path in (self.folder / ".hydra").iterdir()}
        assert toy("-m", "run_dir=out", "algo.beta=0.1,0.2", "hydra.run.dir=elsewhere") == 0
        assert said(self.folder)["beta"] == 0.2
        assert {path: path.read_bytes() for path in (self.folder / ".hydra").iterdir()} == before

    def test_resumes_if_the_first_rank_does(self, monkeypatch):
        monkeypatch.delenv("LOCAL_RANK")
        toy(f"resume={self.folder}")
        monkeypatch.setenv("LOCAL_RANK", "1")
        toy(f"resume={self.folder}")
        assert said(self.folder)["resume"] == str(self.folder)

    def test_was_told_where_the_config_is(self, monkeypatch):
        monkeypatch.delenv("LOCAL_RANK")
        monkeypatch.delenv("SHIQRUN_CHILD_CONFIG")
        toy(f"resume={self.folder}")
        assert said(self.folder)["child"] == str(self.folder)
