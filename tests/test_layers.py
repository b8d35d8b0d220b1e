"""The shape of the package: imports point down, only commands read configuration, files and functions are short."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import shiqrun
from shiqrun import losses

PACKAGE = Path(shiqrun.__file__).parent
LAYERS = (
    {
        "shiqrun": "the version, and nothing imported",
        "errors": "the two ways in which shiqrun gives up, with their exit codes",
        "layout": "where each token of a batch lies before the body of the model",
        "console": "the terminal: tables, progress, plain lines elsewhere",
    },
    {
        "types": "Example, Trajectories, ActionScores, LossTerms",
        "util": "atomic files, intervals, the Hub, quoting",
        "tracking": "experiment trackers",
    },
    {
        "losses": "pure functions of a batch and two models' scores, one for each paper",
        "sandbox": "running programs that a model wrote where they can do no harm",
        "environments": "what answers a policy over several turns: the contract, and one folder or file a world",
    },
    {"data": "data sets: `load(split) -> Example`", "toy": "tabular studies on the same losses"},
    {"batching": "Example -> Trajectories, dealt to optimiser steps"},
    {"models": "policy, reference, scoring of actions"},
    {"rewards": "reward models and verifiers", "settings": "the keys of YAML nodes as frozen classes"},
    {"sampling": "completions and episodes drawn from a policy"},
    {"evaluation": "reward and KL of a policy, by completions or episodes"},
    {
        "estimates": "prompt values and pivotal tokens, computed before training",
        "report": "HTML and terminal views of runs",
    },
    {"rollout": "trajectories sampled while a run trains", "sweeping": "grids of runs, a process each"},
    {"training": "one run, from plan to summary"},
    {"sharing": "what leaves a run: exported models, cards with citations, the Hub"},
    {"config": "Hydra, overrides, validation, run directories"},
    {"commands": "the command line's side, one file a command"},
    {"cli": "the names of commands", "api": "what `import shiqrun` offers in Python"},
    {"__main__": "python -m shiqrun"},
)
"""From the bottom up, what belongs in each folder. A part may import what is in a lower line, and its own files."""

LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}
FILES = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}
LONGEST_FILE, LONGEST_FUNCTION, LONGEST_TEST_FILE = 300, 50, 400


def part(name):
    """`data` of `data.encode`, `shiqrun` of the package itself."""
    return "shiqrun" if name == "__init__" else name.split(".")[0]


def modules_imported(tree):
    """Every module that an import anywhere in the file names, those under TYPE_CHECKING included."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        waiting += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import; say shiqrun.…"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(name):
    """The files of the package that a file imports."""
    for module in modules_imported(TREES[name]):
        found = module.removeprefix("shiqrun.") if module.startswith("shiqrun.") else None
        if module == "shiqrun":
            yield "__init__"
        elif found in FILES:
            yield found
        elif found and f"{found}.__init__" in FILES:
            yield f"{found}.__init__"


def test_few_modules_stand_at_the_root():
    modules = {name for name in FILES if "." not in name and name not in ("__init__", "__main__")}
    assert len(modules) <= 10, f"{sorted(modules)}: which folder is one of these at home in?"


def test_every_part_has_its_layer():
    assert {part(name) for name in FILES} <= set(LEVEL), "a new part: give it its line in LAYERS"


@pytest.mark.parametrize("name", FILES)
def test_imports_point_down(name):
    mine = part(name)
    up = {other for other in own_imports(name) if part(other) != mine and LEVEL[part(other)] >= LEVEL[mine]}
    assert not up, f"{name} imports {sorted(up)}, which is not below it"


def test_no_file_imports_itself_through_others():
    TopologicalSorter({name: set(own_imports(name)) - {name} for name in FILES}).prepare()


@pytest.mark.parametrize("name", [name for name in FILES if part(name) not in ("commands", "config")])
def test_only_config_and_commands_read_configuration(name):
    assert not {"hydra", "omegaconf"} & {module.split(".")[0] for module in modules_imported(TREES[name])}


@pytest.mark.parametrize("name", ["cli", "commands.train", "config.launch"])
def test_naming_the_commands_imports_nothing_heavy(name):
    at_once = ast.Module([node for node in TREES[name].body if not isinstance(node, ast.FunctionDef)], [])
    assert not {"torch", "transformers", "lightning"} & {m.split(".")[0] for m in modules_imported(at_once)}


GENERAL = ("sampling", "evaluation", "estimates", "rollout", "training", "commands")
"""Folders that treat every data set and every environment alike."""


@pytest.mark.parametrize("name", [name for name in FILES if part(name) in GENERAL])
def test_only_data_sets_know_an_environment_and_nobody_asks_which_data_set_it_is(name):
    particular = {
        "data.bfcl",
        "data.text_games",
        "data.textworld_express",
        "data.treasure",
        "data.treasure_optimum",
        "data.programs",
    }
    worlds = (
        "environments.bfcl",
        "environments.scienceworld",
        "environments.text_games",
        "environments.textworld_express",
    )
    known = {other for other in own_imports(name) if other in particular or other.startswith(worlds)}
    assert not known, f"{name} imports {sorted(known)}: let `data.source.Source` say what it wants to know"


def test_no_file_of_losses_is_named_like_a_loss():
    assert not {name.removeprefix("losses.") for name in FILES if part(name) == "losses"} & set(losses.__all__)


def test_files_are_short():
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in FILES.items()}
    assert not {name: length for name, length in lengths.items() if length > LONGEST_FILE}


def test_test_files_are_short():
    here = Path(__file__).parent
    lengths = {
        str(path.relative_to(here)): len(path.read_text(encoding="utf-8").splitlines()) for path in here.rglob("*.py")
    }
    assert not {name: length for name, length in lengths.items() if length > LONGEST_TEST_FILE}


def test_functions_are_short():
    lengths = {
        f"{name}:{node.name}": node.end_lineno - node.lineno + 1
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert not {name: length for name, length in lengths.items() if length > LONGEST_FUNCTION}
