"""Every command of every study composes; make hands its variables to the studies."""

import os
import shlex
import shutil
import subprocess
from importlib import import_module
from pathlib import Path

import pytest

from tests.test_contract import expect_composed

ROOT = Path(__file__).parents[2]
ONE = ["--seeds", "1"]
STUDIES = {
    "hh": ["--data", "PAIRS", "--model", "MODEL", "--betas", "0.1", *ONE],
    "hh smollm2": ["--data", "PAIRS", "--model", "smollm2", "--betas", "0.1", *ONE],
    "bfcl": ["--betas", "0.1", *ONE],
    "textgames": ["--betas", "0.1", "--rates", "1e-3", *ONE],
    "spo_offline": ONE,
    "spo_online": ONE,
    "treasure methods": ONE,
    "treasure anchor": ONE,
    "treasure rewards": ONE,
    "treasure_tuned": [*ONE, "--methods", "shiq; dro none, centred; dpo"],
}
"""Options of every study: one beta and one seed, because each job of a sweep is composed."""
TARGETS = {
    "hh": ("hh", "HH"),
    "hh-135m": ("hh", "HH"),
    "bfcl": ("bfcl", "BFCL"),
    "textgames": ("textgames", "GAMES"),
    "spo-offline": ("spo_offline", "SPO"),
    "spo": ("spo_online", "ONLINE"),
}


def planned(study, *words):
    """Run a study dry in this process; its module's name may be followed by an argument."""
    module, *argument = study.split()
    argument = [] if "--model" in STUDIES[study] else argument
    import_module(f"experiments.{module}").main([*argument, *STUDIES[study], *words, "--dry-run"])


@pytest.mark.parametrize(
    "study",
    [s if s in ("hh", "bfcl") else pytest.param(s, marks=pytest.mark.slow) for s in STUDIES],
)
def test_every_command_of_a_study_composes_and_passes_the_check(study, workplace, capsys):
    planned(study)
    lines = capsys.readouterr().out.splitlines()
    commands = [line for line in lines if line.startswith("shiqrun ")]
    assert len(commands) > 1
    for line in commands:
        expect_composed(line)
    for line in set(lines) - set(commands):
        program, option, module, *_ = shlex.split(line)
        assert (program, option) == ("python", "-m")
        assert callable(import_module(module).main)
    assert not [*workplace.iterdir()]


def test_a_study_takes_its_seeds_betas_jobs_and_directory_from_its_options(capsys):
    planned("bfcl", "--out", "here", "--betas", "0.5", "--seeds", "7,8", "--jobs", "4", "--logger", "wandb")
    sweep = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("shiqrun sweep"))
    words = {"algo.beta=0.5", "seed=7,8", "sweep.parallel=4", "logger=wandb", "run_dir=here/others"}
    assert words <= set(shlex.split(sweep))


def test_the_ablations_are_reported_with_shiqs_runs_at_their_beta(capsys, tmp_path):
    for name in ("000_algo.beta=0.1_seed=1", "001_algo.beta=0.3_seed=1", "002_algo.beta=0.3_seed=2"):
        (tmp_path / "shiq" / name).mkdir(parents=True)
    planned("bfcl", "--out", str(tmp_path))
    report = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert [Path(word).name[:3] for word in report[2:4]] == ["001", "002"]
    assert report[4] == f"{tmp_path}/ablations"


def test_text_without_pairs_or_a_model_is_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        import_module("experiments.hh").main(["--data", "no_file", "--model", "no_folder"])
    assert ended.value.code == 2
    assert "no no_file or no_folder: give --data and --model (make: HH_FILE, HH_MODEL)" in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
@pytest.mark.parametrize("target", TARGETS)
def test_make_runs_a_study_with_its_variables_as_options(target):
    module, name = TARGETS[target]
    words = [f"{name}_SEEDS=4,5", f"{name}_OUT=there", f"{name}_JOBS=1", f"{name}_LOGGER=wandb", f"{name}_BETAS=2"]
    words += ["HH_FILE=PAIRS", "HH_MODEL=MODEL", "HH_ALGOS=dpo"]
    # a make that runs the tests hands its flags and level down: the inner one would say where it enters and leaves
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    make = ["make", "-n", target, *words]
    said = subprocess.run(make, cwd=ROOT, env=outside, capture_output=True, text=True, check=True).stdout
    command = shlex.split(said.splitlines()[-1])
    assert command[1:3] == ["-m", f"experiments.{module}"]
    options = dict(zip(command[3::2], command[4::2], strict=True))
    expected = {"--seeds": "4,5", "--out": "there", "--jobs": "1", "--logger": "wandb", "--betas": "2"}
    if module == "hh":
        expected |= {"--data": "PAIRS", "--model": "MODEL" if target == "hh" else "smollm2", "--algos": "dpo"}
    assert options == expected
