"""The contract of the configuration: every choice composes and passes the check, every key says what it is."""

import inspect
import re
import shlex
import shutil
import subprocess
from importlib import import_module
from importlib.resources import files
from pathlib import Path

import pytest
import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_module
from omegaconf import OmegaConf

from shiqrun import losses
from shiqrun.cli import COMMANDS, HELP, main
from shiqrun.config.compose import as_hydra_overrides, compose, job_overrides
from shiqrun.config.sources import user_folders
from shiqrun.config.sweep_search import is_search, plan_search
from shiqrun.config.validate import check
from shiqrun.types import LossTerms

CONF = Path(str(files("shiqrun.conf")))
README = Path(__file__).parents[1] / "README.md"
FILES = sorted(path for path in CONF.rglob("*.yaml") if "hydra" not in path.relative_to(CONF).parts)  # no keys of ours
CHOICES = [(path.parent.name, path.stem) for path in FILES if path.parent != CONF and path.stem[0] != "_"]
CONFIGURED = [command for command in COMMANDS if (CONF / f"{command}.yaml").exists()]  # others read paths alone
MEAN = {"baseline": "group_mean"}
NAMES = {"agro": ("dro", MEAN), "tba": ("dro", MEAN), "gvpo": ("dro", MEAN), "rebel": ("copg", {}), "a2po": ("spo", {})}
"""Other papers' names: the loss that each one is, and what it sets (docs/methods.md, "One loss, several names")."""
OPEN = {
    "data=jsonl": "data.path=FILE",
    "model=hf": "model.path=DIR",
    "reward=model": "reward.path=DIR",
    "experiment=demo": "model.path=DIR",
    "experiment=hh_small": "data.path=FILE model.path=DIR eval.reward.path=DIR",
    "experiment=hh_small_reward": "model.path=DIR",
    "experiment=hh_small_sft": "model.path=DIR",
    "experiment=hh_135m": "data.path=FILE model.path=DIR eval.reward.path=DIR",
    "experiment=hh_135m_reward": "model.path=DIR",
    "experiment=bfcl_small": "model.path=DIR",
    "experiment=textgames_small": "data.path=FILE model.path=DIR",
    "experiment=textgames_small_sft": "data.path=FILE",
    "experiment=paper_bfcl": "model.path=DIR",
    "experiment=paper_hh": "data.path=FILE model.path=DIR eval.reward.path=DIR",
    "experiment=spo_offline": "model.path=DIR",
    "experiment=spo_programs": "model.path=DIR",
    "experiment=paper_spo": "model.path=DIR",
    "experiment=paper_uf": "model.path=DIR eval.reward.path=DIR",
}
"""Choices that ask the user for values, and these."""
TABULAR = {"soft_q"}
"""Losses that need whole rows of logits: for `shiqrun toy`, without a YAML."""
EXPLAIN_THEMSELVES = {"name", "_target_", "_partial_", "defaults", "hydra"}


def algorithms():
    return [option for group, option in CHOICES if group == "algo"]


def schema(command):
    return import_module(COMMANDS[command].module).SCHEMA


def settings(name, *overrides):
    with initialize_config_module("shiqrun.conf", version_base="1.3"):
        return hydra_compose(name, overrides=list(overrides))


@pytest.mark.parametrize("option", algorithms())
def test_an_algorithm_is_named_like_its_file_and_its_loss(option):
    node = settings("train", f"algo={option}", "data=treasure").algo
    assert node.name == option
    assert node._target_ == f"shiqrun.losses.{NAMES.get(option, (option,))[0]}"
    assert node._partial_ is True


def test_every_loss_has_a_yaml():
    assert sorted(set(losses.__all__) - TABULAR) == sorted(set(algorithms()) - {*NAMES})


@pytest.mark.parametrize("option", sorted(set(losses.__all__) - TABULAR))
def test_a_loss_has_the_signature_of_a_loss(option):
    signature = inspect.signature(getattr(losses, option))
    positional = [p.name for p in signature.parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    keyword = [p for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY]
    assert positional == ["batch", "policy", "reference"]
    assert len(positional) + len(keyword) == len(signature.parameters)
    assert {p.name for p in keyword if p.default is p.empty} <= {"beta"}
    assert signature.return_annotation is LossTerms


@pytest.mark.parametrize("option", algorithms())
def test_an_algorithm_sets_the_values_that_its_loss_has_as_defaults(option):
    node = settings("train", f"algo={option}").algo
    loss, own = NAMES.get(option, (option, {}))
    for parameter in inspect.signature(getattr(losses, loss)).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is not parameter.empty:
            assert node[parameter.name] == own.get(parameter.name, parameter.default)


def groups_of(name):
    """The groups that a command's config chooses from, in its own file or in a base of it."""
    entries = yaml.safe_load((CONF / f"{name}.yaml").read_text(encoding="utf-8")).get("defaults", [])
    own = {key for entry in entries if isinstance(entry, dict) for key in entry}
    return own.union(*(groups_of(entry) for entry in entries if isinstance(entry, str) and entry != "_self_"))


def accepted():
    """Every command with a config, with every choice of the groups in it; a choice's later commands are slow."""
    seen = set()
    for command in CONFIGURED:
        groups = groups_of(command)
        for choice in (f"{group}={option}" for group, option in CHOICES if group in groups):
            marks = [pytest.mark.slow] if choice in seen else []
            seen.add(choice)
            yield pytest.param(command, choice, id=f"{command} {choice}", marks=marks)


@pytest.mark.parametrize(("command", "choice"), list(accepted()))
def test_every_choice_composes_and_passes_the_check(command, choice):
    check(settings(command, choice, *OPEN.get(choice, "").split()), schema(command))


@pytest.mark.parametrize("command", CONFIGURED)
def test_every_command_knows_the_common_settings(command):
    config = settings(command)
    assert {"seed", "run_dir", "logger", "dry_run", "data", "model", "hardware"} <= set(config)


def test_a_choice_that_needs_a_path_leaves_it_open():
    for choice, paths in OPEN.items():
        command = "score" if choice.startswith("reward=") else "train"
        assert {path.partition("=")[0] for path in paths.split()} <= OmegaConf.missing_keys(settings(command, choice))


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(CONF)) for path in FILES])
def test_every_key_has_a_comment(path):
    text = path.read_text(encoding="utf-8")
    assert not list(uncommented(yaml.compose(text), text.splitlines()))


def uncommented(node, lines):
    """The keys of values without a comment on their line or on the one before."""
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        if key.value in EXPLAIN_THEMSELVES:
            continue
        if isinstance(value, yaml.MappingNode) and not value.flow_style:
            yield from uncommented(value, lines)
            continue
        before = lines[key.start_mark.line - 1].strip() if key.start_mark.line else ""
        beside = lines[value.end_mark.line][value.end_mark.column :] if value.end_mark.line < len(lines) else ""
        if not (re.match(r"\s+# \S", beside) or before.startswith("# ")):
            yield key.value


GROUPS = {group for group, _ in CHOICES}


def test_a_base_is_no_choice(capsys, monkeypatch):
    assert any(path.stem.startswith("_") for path in FILES if path.parent != CONF)
    assert main(["train", "--help"]) == 0
    listed = capsys.readouterr().out.partition("algo: ")[2].partition("Set any key")[0]
    assert "shiq_ms" in listed
    assert not re.search(r"\b_\w+", listed)
    for line in ("shiqrun train algo=", "shiqrun train experiment="):
        monkeypatch.setenv("COMP_LINE", line)
        monkeypatch.setenv("COMP_POINT", str(len(line)))
        main(["-sc", "query=bash"])
        offered = capsys.readouterr().out.split()
        assert offered
        assert not [word for word in offered if "=_" in word]
    assert main(["train", "algo=shqi"]) == 2
    assert "_regularised" not in capsys.readouterr().err


@pytest.mark.parametrize("path", [path for path in FILES if path.parent.name in GROUPS - {"experiment"}], ids=str)
def test_a_group_writes_into_no_node_but_its_own(path):
    assert "@package" not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("command", "choice", "key", "value"),
    [
        ("train", "model=tiny", "trainer.learning_rate", 2e-3),
        ("train", "model=hf model.path=DIR", "trainer.learning_rate", 1e-5),
        ("train", "data=bfcl", "eval.max_prompts", 200),
        ("eval", "data=bfcl", "eval.max_prompts", 200),
        ("eval", "data=hh", "eval.max_prompts", 128),
        ("values", "data=programs", "values.samples", 32),
        ("train", "data=hh", "values.samples", 800),
        ("train", "data=bfcl eval.max_prompts=5", "eval.max_prompts", 5),
        ("train", "experiment=demo_reference", "trainer.learning_rate", 3e-3),
    ],
)
def test_a_data_set_or_model_suggests_settings_of_other_nodes(command, choice, key, value):
    assert OmegaConf.select(compose(command, choice.split()), key) == value


def test_a_command_has_the_nodes_that_it_reads_and_no_more():
    nodes = {command: set(compose(command, [])) - {"hydra"} for command in ("score", "inspect", "toy", "pivotal")}
    assert not {node for of_command in nodes.values() for node in of_command} & {"trainer", "eval", "values"}


def commands_of(page):
    """Every `shiqrun ...` in a code block of a page, continued lines joined."""
    text = page.read_text(encoding="utf-8") if page.exists() else ""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    lines = [line.strip().removeprefix("$ ") for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if re.match(r"(\S+/)?shiqrun\s", line)]


def make_lines(target):
    """Every `shiqrun ...` that `make TARGET` runs."""
    said = subprocess.run(["make", "-n", target], cwd=README.parent, capture_output=True, text=True, check=True).stdout
    return re.findall(r"bin/(shiqrun .*)$", said, flags=re.MULTILINE)


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
def test_every_command_of_the_demo_composes_and_passes_the_check():
    lines = make_lines("demo")
    assert len(lines) == 2
    for line in lines:
        expect_composed(line)


def examples(help_text):
    """Every `shiqrun ...` among the examples of a help text, without the dots of what is left out."""
    lines = [line.strip().removesuffix(" ...") for line in help_text.partition("Examples:\n")[2].splitlines()]
    return [re.sub(r"  +[^#].*", "", line) for line in lines]


HELPS = [
    HELP,
    *(yaml.safe_load((CONF / f"{name}.yaml").read_text())["hydra"]["help"]["template"] for name in CONFIGURED),
]


@pytest.mark.parametrize("line", [line for text in HELPS for line in examples(text)])
def test_every_example_of_a_help_composes_and_passes_the_check(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for reward_model in ("DIR", "RM"):  # a reward is a choice by name unless it is a directory
        Path(reward_model).mkdir()
    assert line.startswith("shiqrun ")
    expect_composed(line)


@pytest.mark.parametrize("line", commands_of(README))
def test_every_command_of_the_readme_composes_and_passes_the_check(line):
    expect_composed(line)


def expect_composed(line):
    command, *words = shlex.split(line, comments=True)[1:]
    if command in ("--help", "--version", "-h"):
        return
    assert command in COMMANDS
    if command not in CONFIGURED:
        return
    if COMMANDS[command].word and "=" not in words[0]:
        words[0] = f"{COMMANDS[command].word}={words[0]}"
    overrides = as_hydra_overrides([word for word in words if not word.startswith("-") and "=" in word])
    if any(word.startswith(("resume=", "run=")) for word in overrides):  # the config is in that directory
        assert len(overrides) == 1 or command != "train"
        return
    with user_folders(command, None):
        many = command in ("sweep", "compare") or "-m" in words or "--multirun" in words
        whole = compose(command, overrides, multirun=many)
        if command == "sweep" and is_search(whole):
            each = plan_search(whole, overrides, words)[1]
        elif many:
            each = [compose(command, job) for job in job_overrides(command, whole, overrides)]
        else:
            each = [whole]
        for job in each:
            check(job, schema(command))
