"""`conf/experiment/paper_*.yaml`: what the paper says stands there, and every other value is marked as ours."""

import math
import re
from importlib.resources import files
from pathlib import Path

import pytest

from shiqrun.commands.train import SCHEMA
from shiqrun.config.compose import compose
from shiqrun.config.validate import check

PATHS = ["model.path=MODEL", "eval.reward.path=JUDGE"]
BOTH = {"hh": [*PATHS, "data.path=scored.jsonl"], "uf": PATHS}
METHODS = ["shiq", "shiq_init", "shiq_ms", "shiq_tk", "copg", "dpo", "dro"]


def text_of(name):
    """The YAML of an experiment and of the files that it builds on."""
    text = Path(str(files("shiqrun.conf")), "experiment", f"{name}.yaml").read_text(encoding="utf-8")
    return text + "".join(text_of(base) for base in re.findall(r"^  - (_paper\w*)$", text, flags=re.MULTILINE))


@pytest.mark.parametrize("name", BOTH)
def test_the_papers_values_stand(name):
    config = compose("train", [f"experiment=paper_{name}", *BOTH[name]])
    check(config, SCHEMA)
    assert (config.trainer.max_epochs, config.trainer.max_steps) == (1, None)
    assert (config.eval.every, config.eval.max_prompts) == (50, 128)
    assert (config.eval.temperature, config.eval.top_p) == (1.0, 1.0)
    assert config.eval.reward.path == "JUDGE"
    assert config.data.name == {"hh": "jsonl", "uf": "ultrafeedback"}[name]


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_of_the_comparison_can_be_chosen(name, method):
    check(compose("train", [f"experiment=paper_{name}", *BOTH[name], f"algo={method}", "algo.beta=0.3"]), SCHEMA)


@pytest.mark.parametrize("name", BOTH)
def test_every_value_says_whether_it_is_the_papers_or_ours(name):
    text = text_of(f"paper_{name}")
    values = [line for line in text.splitlines() if re.match(r"  \w+: \S", line)]
    assert len(values) > 15
    papers = [line.split(":")[0].strip() for line in values if "the paper's" in line]
    assert papers == ["max_epochs", "every", "max_prompts"]
    assert all(re.search(r"\bours\b", line) for line in values if "the paper's" not in line)


@pytest.mark.parametrize("method", METHODS)
def test_the_multi_turn_experiment_is_the_papers_as_far_as_it_is_known(method):
    config = compose("train", ["experiment=paper_bfcl", "model.path=MODEL", f"algo={method}"])
    check(config, SCHEMA)
    assert (config.data.name, config.data.split, config.data.rewards) == ("bfcl", "test", "independent")
    assert (config.data.arguments, config.data.functions, config.data.path) == ("said", "official", None)
    text = text_of("paper_bfcl")
    values = [line for line in text.splitlines() if re.match(r"  \w+: \S", line)]
    assert len(values) > 15
    assert all(re.search(r"\bours\b", line) for line in values)
    assert [
        line.split(":")[0].strip() for line in values if "the paper's numbers" in line or "turn: the paper's" in line
    ] == [
        "split",
        "rewards",
    ]


@pytest.mark.parametrize("method", ["spo", "spo_nonterminal", "spo_advantage", "copg", "shiq"])
def test_the_online_experiment_is_the_papers_as_far_as_it_is_known(method):
    pairs = ["rollout.samples_per_prompt=2"] * (method == "copg")
    words = ["experiment=paper_spo", "model.path=MODEL", f"algo={method}", "algo.reference=frozen", *pairs]
    config = compose("train", words)
    check(config, SCHEMA)
    assert (config.trainer.learning_rate, config.trainer.warmup_steps, config.trainer.batch_size) == (6e-8, 200, 128)
    assert (config.rollout.name, config.rollout.offline, config.rollout.model_update_interval) == ("ray", 0.5, 10)
    assert (list(config.rollout.temperature), config.rollout.top_p) == ([0.1, 0.8], 0.95)
    assert (list(config.data.rewards), config.eval.reward.right, config.eval.reward.wrong) == ([0, -1], 0, -1)
    assert config["values"].samples == 800
    assert config.algo.beta == pytest.approx(1 / math.log(1e5), rel=1e-6)
    text = text_of("paper_spo")
    values = [line for line in text.splitlines() if re.match(r"  \w+: \S", line)]
    assert len(values) > 25
    assert all("the paper's" in line or re.search(r"\bours\b", line) for line in values)
