import json
import logging
import os
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch.distributed
import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl

from shiqrun.config.launch import launch
from tests.support.command_line import edit_config


@pytest.fixture(autouse=True)
def workplace(workplace, monkeypatch):
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    monkeypatch.syspath_prepend(Path(__file__).parent)  # where toy_command.py is
    yield workplace
    root.handlers[:], root.level = handlers, level


PROGRAM = (
    f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from shiqrun.config.launch import launch; "
    "sys.exit(launch('train', sys.argv[1:], module='toy_command'))"
)


def toy(*words: str, writes: bool = True) -> int:
    return launch("train", words, module="toy_command", writes=writes, program=[sys.executable, "-c", PROGRAM])


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


def test_the_config_of_a_run_is_composed_once_and_hydra_runs_it(workplace, monkeypatch):
    composed, load = [], ConfigLoaderImpl.load_configuration
    monkeypatch.setattr(ConfigLoaderImpl, "load_configuration", lambda *a, **k: composed.append(a) or load(*a, **k))
    assert toy("run_dir=out", "hydra.verbose=false") == 0
    assert len(composed) == 1
    by_hydra = yaml.safe_load((workplace / "out/.hydra/hydra.yaml").read_text())["hydra"]
    assert by_hydra["overrides"] == {
        "hydra": ["hydra.verbose=false", f"hydra.run.dir='{workplace}/out'", "hydra.mode=RUN"],
        "task": ["run_dir=out"],
    }
    assert by_hydra["run"]["dir"] == by_hydra["runtime"]["output_dir"] == f"{workplace}/out"
    assert by_hydra["mode"] == "RUN"


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


def test_the_way_to_go_on_can_be_pasted_whatever_the_directory_is_called(workplace, monkeypatch, capsys):
    place = workplace / "it's (a) dir, b=c"
    place.mkdir()
    monkeypatch.chdir(place)
    assert toy("seed=103", "run_dir=out") == 130
    line = capsys.readouterr().err.partition("to go on: shiqrun train ")[2].partition("\n")[0]
    assert toy(*shlex.split(line)) == 130
    assert f"run directory: {place / 'out'}\n" in capsys.readouterr().err
    assert [path.name for path in place.iterdir()] == ["out"]


def test_wrong_input_found_by_the_command_leaves_no_directory(workplace):
    assert toy("seed=101", "run_dir=out") == 2
    assert files(workplace) == []
    assert toy("seed=1", "run_dir=out") == 0


def test_a_dry_run_leaves_no_file(workplace, capsys):
    assert toy("dry_run=true") == 0
    assert capsys.readouterr().out.count('"seed"') == 1
    assert toy("-m", "seed=1,2", "dry_run=true") == 0
    out = capsys.readouterr().out
    assert "0_seed=1" in out
    assert "1_seed=2" in out
    assert "said" not in out
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
        Path("out/summary.json").write_text('{"seconds": 1.0}')
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

    def test_takes_where_it_goes_on_and_keeps_that(self, workplace):
        toy("run_dir=out")
        assert toy("resume=out", "hardware.strategy=ddp") == 0
        assert "strategy: ddp" in Path("out/.hydra/config.yaml").read_text()
        assert toy("resume=out") == 0
        assert "strategy: ddp" in Path("out/.hydra/config.yaml").read_text()

    def test_does_not_add_hardware_to_a_run_without_it(self, workplace, capsys):
        toy("run_dir=out")
        edit_config(Path("out"), "  num_nodes: 1\n", "")
        assert toy("resume=out", "hardware.num_nodes=2") == 2
        assert "hardware.num_nodes: the run that goes on has no such setting" in capsys.readouterr().err

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
        edit_config(Path("out"), "seed: 0", "seed: 101")
        assert toy("resume=out") == 2
        assert Path("out/.hydra/config.yaml").exists()


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """A sweep whose jobs are processes of their own: three that end otherwise, and one that is fine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("sweep"))
        patch.syspath_prepend(Path(__file__).parent)
        assert toy("-m", "run_dir=out", "seed=101,102,103,1", "algo.beta=0.2") == 1
        return Path("out").absolute()


class TestASweep:
    @pytest.mark.slow
    def test_has_one_directory_a_job_named_by_its_overrides(self, out):
        first, last = out / "0_seed=101_algo.beta=0.2", out / "3_seed=1_algo.beta=0.2"
        assert (said(last)["seed"], said(last)["beta"]) == (1, 0.2)
        assert (saved(first)["run_dir"], saved(last)["run_dir"]) == (str(first), str(last))
        assert (out / "multirun.yaml").exists()

    @pytest.mark.slow
    def test_goes_on_after_jobs_that_failed_and_records_how_each_ended(self, out):
        jobs = json.loads((out / "sweep.json").read_text())["jobs"]
        assert [(job["status"], job["exit_code"]) for job in jobs] == [
            ("failed", 2),
            ("failed", 1),
            ("interrupted", 130),
            ("finished", 0),
        ]
        assert jobs[0]["error"] == ["shiqrun: error: data.path=x: no such file"]
        assert jobs[1]["error"][-1].strip() == "RuntimeError: a defect"
        assert "said" in (out / jobs[3]["dir"] / "console.log").read_text()

    @pytest.mark.slow
    def test_does_not_start_where_there_is_one(self, out, monkeypatch, capsys):
        monkeypatch.chdir(out.parent)
        before = files(out)
        assert toy("-m", "run_dir=out", "seed=3,4") == 2
        assert toy("run_dir=out", "seed=3") == 2
        err = capsys.readouterr().err
        assert err.count("already holds a sweep") == 2
        assert err.count(f"or go on with it: shiqrun sweep sweep.resume={out}") == 2
        assert files(out) == before

    def test_by_default_lies_under_algo_data_and_time(self, workplace):
        toy("-m", "algo=sft")
        (folder,) = Path("outputs/sft-treasure").iterdir()
        assert [path.name for path in folder.iterdir() if path.is_dir()] == ["0_algo=sft"]
        assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", folder.name)

    @pytest.mark.slow
    def test_runs_in_a_directory_of_any_name_and_goes_on_there(self, workplace, monkeypatch, capsys):
        place = workplace / "it's (a) dir, b=c"
        place.mkdir()
        monkeypatch.chdir(place)
        assert toy("-m", "run_dir=s", "seed=1,103") == 1
        assert said(place / "s/0_seed=1")["run_dir"] == str(place / "s/0_seed=1")
        (line,) = [line for line in capsys.readouterr().out.splitlines() if "to go on" in line]
        word = shlex.split(line.partition("shiqrun sweep ")[2])
        assert launch("sweep", word, module="toy_command", program=[sys.executable, "-c", PROGRAM]) == 1
        console = (place / "s/1_seed=103/console.log").read_text()
        assert console.count(f"run directory: {place / 's/1_seed=103'}\n") == 2

    def test_with_one_wrong_value_makes_nothing(self, workplace, capsys):
        assert toy("-m", "run_dir=out", "algo.beta=0.1,0") == 2
        assert "algo.beta: met 0" in capsys.readouterr().err
        assert list(workplace.iterdir()) == []

    def test_in_one_process_leaves_the_process_group_of_a_job_before_the_next(self, workplace, capsys):
        assert toy("-m", "seed=201,202", writes=False) == 0
        assert capsys.readouterr().out.count('"seed"') == 2
        assert not torch.distributed.is_initialized()


class TestAFurtherRank:
    @pytest.fixture(autouse=True)
    def rank(self, workplace, monkeypatch):
        self.folder = workplace / "out/1_algo.beta=0.2"
        toy(f"run_dir={self.folder}", "algo.beta=0.2")
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
