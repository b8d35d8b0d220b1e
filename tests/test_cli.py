import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from shiqrun.cli import COMMANDS, main

HEAVY = {"hydra", "omegaconf", "torch", "lightning", "transformers", "pydantic"}


pytestmark = pytest.mark.usefixtures("workplace")


def cli(*words: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "shiqrun", *words]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, timeout=120)


def composed(capsys, *words: str) -> dict:
    assert main(["train", *words, "--cfg", "job"]) == 0
    return yaml.safe_load(capsys.readouterr().out)


def write(path: str, text: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)


def imported_by(*words: str) -> list[str]:
    """The heavy packages in a process that ran one command line."""
    code = (
        f"import sys; from shiqrun.cli import main; main({list(words)}); print(); print(*{HEAVY} & sys.modules.keys())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120).stdout
    return sorted(out.splitlines()[-1].split())


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",), ("--version",), ("trian",)])
def test_what_needs_no_config_imports_nothing_heavy(words):
    assert imported_by(*words) == []


def test_help_of_a_command_imports_no_torch():
    assert not {"torch", "lightning", "transformers"} & set(imported_by("train", "--help"))


def test_help_lists_every_command(capsys):
    assert main([]) == main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"{name} " in shown and command.summary in shown for name, command in COMMANDS.items())


@pytest.mark.parametrize(("command", "absent"), [("eval", "algo|rollout|study"), ("score", "algo|model|experiment")])
def test_help_of_a_command_lists_only_the_groups_that_matter_to_it(capsys, command, absent):
    assert main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^data: bfcl, .*jsonl", shown, re.M)
    assert re.search(r"^reward: exact_match, ", shown, re.M)
    assert not re.search(rf"^({absent}): ", shown, re.M)


def test_choices_of_the_user_are_in_the_help(capsys):
    write("conf/data/mine.yaml", "_target_: mine.Data\n")
    assert main(["eval", "--help"]) == 0
    assert re.search(r"^data: .*\bmine\b", capsys.readouterr().out, re.M)


def test_a_reader_that_goes_away_gets_no_traceback():
    script = f"{sys.executable} -m shiqrun train --help | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[0].startswith("Trains a policy")
    assert done.stdout.splitlines()[1] in ("0", "141")  # 0: all of it fitted into the pipe before the reader had gone
    assert done.stderr == ""


def test_help_of_train_lists_groups_with_their_choices_and_keys(capsys):
    assert main(["train", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "sft, shiq, shiq_init, shiq_ms, shiq_tk" in shown
    assert "trainer.max_steps" in shown
    assert "shiqrun train resume=" in shown


@pytest.mark.parametrize(
    ("word", "message"),
    [("trian", "did you mean train?"), ("algo=sft", "did you mean shiqrun train algo=sft?"), ("--foo", "--foo")],
)
def test_a_word_that_is_no_command_ends_with_2(capsys, word, message):
    assert main([word]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("algo.btea=1", "algo.btea: unknown key; did you mean algo.beta?"),
        ("+algo.btea=1", "algo.btea: unknown key; did you mean algo.beta?"),
        ("++algo.btea=1", "algo.btea: unknown key; did you mean algo.beta?"),
        ("~algo.btea", "algo.btea: unknown key; did you mean algo.beta?"),
        ("~algo.beta", "algo.beta: missing"),
        ("~algo", "algo: missing; choose one with algo=NAME"),
        ("algo.beta=abc", "algo.beta: met 'abc', expected a number"),
        ("algo.beta=0", "algo.beta: met 0, expected greater than 0"),
        ("algo.beta=-0.5", "algo.beta: met -0.5, expected greater than 0"),
        ("algo.beta=.nan", "algo.beta: met '.nan', expected a number"),
        ("algo.beta=nan", "algo.beta: met nan, expected a finite number"),
        ("algo=shqi", "algo=shqi: no such choice; did you mean algo=shiq?"),
        ("alog=shiq", "alog: unknown key; did you mean algo?"),
        (
            "reward=exact_match",
            "training evaluates by a reward of the node eval; give eval.reward=",
        ),
        ("algo=null", "algo: cannot be null; leave it out, or choose one of a2po, agro, copg"),
        ("algo.reference=cache", "did you mean cached?"),
        ("experiment=nothing", "experiment=nothing: no such choice"),
        ("beta=1", "beta: unknown key; did you mean algo.beta?"),
        ("++data.name=???", "data.name: not set (???)"),
        ("model=hf", "model.path: not set (???); give model.path=VALUE"),
        ("++top=1", "top: unknown key; known are seed"),
        ("trainer.max_step=3", "trainer.max_step: unknown key; did you mean trainer.max_steps?"),
        ("++trainer.max_step=3", "trainer.max_step: unknown key; did you mean trainer.max_steps?"),
        ("hydra.run.dri=x", "hydra.run.dri: unknown key; did you mean hydra.run.dir?"),
        ("seed=1,2", "add --multirun"),
        ("algo", "cannot read 'algo', expected key=value"),
        ("seed=[1", "cannot read 'seed=[1'"),
        ("algo._target_=shiqrun.losses.shqi", "algo._target_: cannot import 'shiqrun.losses.shqi'"),
        ("run_dir=${nothing}", "nothing"),
        ("--config-dir=nowhere", "nowhere: no such directory"),
        ("--config-path=x", "--config-path: not allowed here"),
        ("--config-name=x", "--config-name: not allowed here"),
        ("--resolve", "only with --cfg"),
    ],
)
def test_wrong_input_ends_with_2_names_it_and_leaves_no_file(capsys, workplace, word, message):
    assert main(["train", word]) == 2
    assert message in capsys.readouterr().err
    assert list(workplace.iterdir()) == []


def test_every_unknown_key_is_named_at_once(capsys):
    assert main(["train", "algo.btea=1", "algo=shiq_ms", "trainer.max_step=3"]) == 2
    error = capsys.readouterr().err
    assert "algo.beta?" in error
    assert "trainer.max_steps?" in error


def test_the_exit_code_and_message_leave_the_process(workplace):
    done = cli("train", "algo.btea=1")
    assert done.returncode == 2
    assert "did you mean algo.beta?" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_flag_ends_with_2():
    assert cli("train", "--foo").returncode == 2


def test_hydras_flags_stand_anywhere_after_the_command(capsys):
    assert main(["train", "algo.beta=0.5", "--cfg", "job", "seed=3"]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert (config["algo"]["beta"], config["seed"]) == (0.5, 3)


def test_showing_the_config_makes_no_directory(capsys, workplace):
    assert main(["train", "--cfg", "all", "--resolve", "hydra.job.num=0"]) == 0
    assert main(["train", "--info", "searchpath"]) == 0
    assert "shiqrun://shiqrun.conf" in capsys.readouterr().out
    assert list(workplace.iterdir()) == []


def test_wrong_keys_are_told_when_showing_the_config_too(capsys):
    assert main(["train", "--cfg", "job", "algo.btea=1"]) == 2
    assert "did you mean algo.beta?" in capsys.readouterr().err


def test_the_settings_that_scripts_rely_on_are_the_defaults(capsys):
    config = composed(capsys)
    names = {group: config[group]["name"] for group in ("algo", "data", "model", "hardware", "logger")}
    assert names == {"algo": "shiq", "data": "treasure", "model": "tiny", "hardware": "cpu", "logger": "wandb"}


@pytest.mark.parametrize("path", ["runs/date=2024/x.jsonl", "a b/c=d.jsonl", "x=1", "/abs/lr=1e-3/y"])
def test_a_path_with_an_equals_sign_needs_no_quotes(capsys, path):
    assert composed(capsys, "data=jsonl", f"data.path={path}")["data"]["path"] == path


class TestUsersYaml:
    def test_in_conf_wins_over_ours(self, capsys):
        write("conf/algo/shiq.yaml", "name: mine\nbeta: 7\n")
        algo = composed(capsys)["algo"]
        assert (algo["name"], algo["beta"]) == ("mine", 7)
        assert "lam" not in algo

    def test_in_config_dir_wins_over_conf(self, capsys):
        write("conf/algo/shiq.yaml", "name: mine\n")
        write("other/algo/shiq.yaml", "name: other\n")
        assert composed(capsys, "--config-dir", "other")["algo"]["name"] == "other"

    def test_adds_choices_and_experiments(self, capsys):
        write("conf/algo/new.yaml", "beta: 1\n")
        write("conf/experiment/x.yaml", "# @package _global_\ndefaults:\n  - override /algo: new\nseed: 9\n")
        config = composed(capsys, "experiment=x")
        assert (config["algo"]["name"], config["seed"]) == ("new", 9)
        main(["train", "--help"])
        assert ", new, " in capsys.readouterr().out.split("algo: ")[1].splitlines()[0]

    def test_loses_to_the_command_line(self, capsys):
        write("conf/experiment/x.yaml", "# @package _global_\nseed: 9\ntrainer: {max_steps: 8}\n")
        config = composed(capsys, "experiment=x", "seed=1")
        assert (config["seed"], config["trainer"]["max_steps"]) == (1, 8)

    def test_is_forgotten_by_the_next_command_line(self, capsys):
        write("other/algo/shiq.yaml", "name: other\n")
        composed(capsys, "--config-dir", "other")
        assert composed(capsys)["algo"]["name"] == "shiq"

    def test_is_checked_against_the_signature_too(self, capsys):
        write("conf/algo/mine.yaml", "name: mine\n_target_: shiqrun.losses.shiq_ms\n_partial_: true\nbetta: 1\n")
        assert main(["train", "algo=mine"]) == 2
        error = capsys.readouterr().err
        assert "algo.betta: unknown key; did you mean algo.beta?" in error
        assert "algo.beta: missing" in error

    def test_cannot_replace_the_whole_config_of_a_command(self, capsys):
        write("conf/train.yaml", "seed: 1\n")
        assert main(["train"]) == 2
        assert "experiment=NAME" in capsys.readouterr().err

    def test_that_cannot_be_read_is_named(self, capsys):
        write("conf/algo/broken.yaml", "a: [1\n")
        assert main(["train", "algo=broken"]) == 2
        assert "broken.yaml" in capsys.readouterr().err

    def test_is_not_our_own_conf_directory(self, capsys, monkeypatch):
        import shiqrun.conf

        monkeypatch.chdir(Path(shiqrun.conf.__path__[0]).parent)
        assert composed(capsys)["algo"]["name"] == "shiq"


class TestCompletion:
    @pytest.mark.parametrize(
        ("line", "word"),
        [
            ("shiqrun ", "train"),
            ("shiqrun tr", "train"),
            ("shiqrun train al", "algo="),
            ("shiqrun train algo=s", "algo=shiq_ms"),
            ("shiqrun train algo=sft trainer.max_s", "trainer.max_steps="),
            ("/some/where/shiqrun train algo=sft algo.", "algo.reference="),
            ("shiqrun train ", "trainer."),
            ("shiqrun toy ", "bandit"),
            ("shiqrun toy gr", "grid"),
            ("shiqrun toy grid se", "seed="),
            ("shiqrun train data.path=ro", "data.path=rows.jsonl"),
            ("shiqrun eval run=./ou", "run=./outputs/"),
            ("shiqrun eval reward=", "reward=outputs/"),
            ("shiqrun eval reward=", "reward=exact_match"),
        ],
    )
    def test_completes_commands_groups_keys_and_paths(self, capsys, monkeypatch, line, word):
        Path("outputs").mkdir()
        Path("rows.jsonl").touch()
        monkeypatch.setenv("COMP_LINE", line)
        monkeypatch.setenv("COMP_POINT", str(len(line)))
        assert main(["-sc", "query=bash"]) == 0
        assert word in capsys.readouterr().out.split()

    def test_leaves_file_names_to_the_shell_where_a_command_takes_no_keys(self, capsys, monkeypatch):
        monkeypatch.setenv("COMP_LINE", "shiqrun report ou")
        assert main(["-sc", "query=bash"]) == 0
        out, err = capsys.readouterr()
        assert (out, err) == ("", "")

    def test_completes_where_the_cursor_is(self, capsys, monkeypatch):
        monkeypatch.setenv("COMP_LINE", "shiqrun train algo=sh seed=1")
        monkeypatch.setenv("COMP_POINT", str(len("shiqrun train algo=sh")))
        main(["-sc", "query=bash"])
        assert capsys.readouterr().out.split() == ["algo=shiq", "algo=shiq_init", "algo=shiq_ms", "algo=shiq_tk"]

    def test_of_no_command_is_silent(self, capsys, monkeypatch):
        monkeypatch.setenv("COMP_LINE", "shiqrun nothing a")
        assert main(["-sc", "query=bash"]) == 0
        assert capsys.readouterr().out == ""

    def test_is_installed_by_what_it_prints(self):
        program = Path(sys.executable).with_name("shiqrun")
        script = f'eval "$({program} -sc install=bash)"; complete -p shiqrun'
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0
        assert "hydra_bash_completion" in done.stdout
