"""`import shiqrun` in Python: train, load, evaluate and score, as a notebook does."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM

import shiqrun
from shiqrun.api.words import NODES, command_words
from shiqrun.config.compose import compose
from shiqrun.util.quoting import override_value
from tests.support.command_line import metrics

SMALL = {"model_hidden_size": 16, "model_num_layers": 1, "data_maps": 20, "data_val_maps": 3, "trainer_batch_size": 8}


@pytest.fixture(scope="module")
def run(home):
    """A finished run on the embedded problem."""
    settings = {"run_dir": home / "run", "trainer_max_steps": 3, "trainer_log_every": 1, "eval_every": 3}
    return shiqrun.train("algo=shiq", "logger=none", **SMALL, **settings)


def test_importing_it_imports_nothing_heavy_and_its_names_are_there():
    program = (
        "import sys, shiqrun\n"
        "heavy = {'torch', 'transformers', 'lightning', 'hydra', 'pandas', 'numpy'} & set(sys.modules)\n"
        "missing = [name for name in shiqrun.__all__ if not hasattr(shiqrun, name)]\n"
        "print(heavy, missing, set(shiqrun.__all__) <= set(dir(shiqrun)))"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "set() [] True"
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = shiqrun.trian


def test_the_stub_for_type_checkers_has_the_same_names():
    stub = (Path(shiqrun.__file__).parent / "__init__.pyi").read_text()
    assert {line.split()[-1] for line in stub.splitlines() if " as " in line} == set(shiqrun.__all__) - {"__version__"}


def test_a_run_can_be_read_as_tables(run):
    assert run.directory.is_dir()
    table = run.metrics
    rows = metrics(run.directory)
    assert list(table["step"]) == [row["step"] for row in rows]
    assert table["train/loss"].iloc[-1] == pytest.approx(rows[-1]["train/loss"])
    assert run.summary["algo"] == run.settings["algo.name"] == "shiq"
    assert run.settings["trainer.max_steps"] == 3
    shown = run.completions()
    assert len(shown) == len((run.directory / "samples.jsonl").read_text().splitlines())
    assert {"step", "prompt", "completion", "reward"} <= set(shown.columns)
    assert shiqrun.load(str(run.directory)) == run


def test_the_policy_of_a_run_has_the_saved_weights_and_reads_its_own_tokenizer(run):
    saved = AutoModelForCausalLM.from_pretrained(run.directory / "policy").state_dict()
    found = run.policy()
    assert not found.training
    assert all(torch.equal(saved[name], value) for name, value in found.state_dict().items())
    assert run.tokenizer().chat_template


def test_scores_are_the_models_own_log_probabilities(run):
    model, tokenizer = run.policy(), run.tokenizer()
    rows = [json.loads(line) for line in (run.directory / "samples.jsonl").read_text().splitlines()[:3]]
    given = [{"prompt": row["prompt"], "completion": row["completion"], "reward": 2} for row in rows]
    scored = shiqrun.score_actions(model, tokenizer, given, micro_batch_tokens=40)
    assert [(s.row, s.completion) for s in scored] == [(0, 0), (1, 0), (2, 0)]
    for s in scored:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor(s.tokens)[None]).logits[0].double()
        before = logits[s.actions - 1]
        taken = torch.tensor(s.tokens[s.actions])[:, None]
        np.testing.assert_allclose(s.logit, before.gather(-1, taken)[:, 0], atol=1e-4)
        np.testing.assert_allclose(s.logp, before.log_softmax(-1).gather(-1, taken)[:, 0], atol=1e-4)
    assert sum(len(s.actions) for s in scored) > 3
    assert scored[0].rewards.sum() == 2
    several = [{"prompt": rows[0]["prompt"], "completions": [row["completion"] for row in rows]}]
    again = shiqrun.score_actions(model, tokenizer, several)
    assert [(s.row, s.completion, s.rewards) for s in again] == [(0, 0, None), (0, 1, None), (0, 2, None)]
    np.testing.assert_allclose(again[0].logp, scored[0].logp, atol=1e-4)


def test_a_row_that_cannot_be_scored_is_named(run):
    model, tokenizer = run.policy(), run.tokenizer()
    model.train()
    with pytest.raises(shiqrun.InputError, match="row 1: missing column completion"):
        shiqrun.score_actions(model, tokenizer, [{"prompt": "a", "completion": "b"}, {"prompt": "a"}])
    with pytest.raises(shiqrun.InputError, match="rows without actions: 1 empty completion"):
        shiqrun.score_actions(model, tokenizer, [{"prompt": "a", "completion": ""}])
    with pytest.raises(shiqrun.InputError, match="row 0: expected columns by name, found a str"):
        shiqrun.score_actions(model, tokenizer, ["a"])
    assert model.training


def test_an_error_is_raised_with_the_words_of_the_command_line(home, capfd):
    for words, settings, message in (
        (("algo=shqi",), {}, "did you mean algo=shiq"),
        ((), {"trainer_max_stesp": 3}, r"trainer\.max_stesp: unknown key; did you mean trainer\.max_steps"),
        (("data=jsonl",), {"data_path": home / "missing file.jsonl"}, r"missing file\.jsonl: no such file"),
        (("shiq",), {}, "'shiq': expected an override such as 'algo=shiq'"),
        ((), {"data_path": object()}, "a object as a setting"),
        ((), {"dry_run": True}, "shiqrun train dry_run=true"),
        (("hardware=ddp",), {"hardware_devices": 2, "hardware_accelerator": "cpu"}, "start only from a shell"),
        (("-m", "seed=1,2"), {}, "'-m': expected an override"),
    ):
        with pytest.raises(shiqrun.InputError, match=message):
            shiqrun.train(*words, run_dir=home / "wrong", **settings)
        assert not (home / "wrong").exists()
    assert "shiqrun: error" not in capfd.readouterr().err
    with pytest.raises(shiqrun.InputError, match="no such directory"):
        shiqrun.load(home / "nowhere")


def test_a_failure_is_raised_and_the_run_says_how_to_go_on(home, capfd):
    with pytest.raises(shiqrun.TrainingError, match="nothing was updated"):
        shiqrun.train("logger=none", **SMALL, trainer_learning_rate=1e30, trainer_max_steps=4, run_dir=home / "failed")
    assert f"resume={home}/failed" in capfd.readouterr().err
    failed = shiqrun.load(home / "failed")
    assert failed.summary == {}
    with pytest.raises(shiqrun.InputError, match="no policy/ in this run: it is not finished"):
        failed.policy()


def test_an_evaluation_returns_what_it_writes(home):
    rows = [{"prompt": f"go {n}", "completion": f"left {n % 3}", "reward": n % 2} for n in range(40)]
    (home / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"data_path": home / "rows.jsonl", "model_hidden_size": 16, "trainer_max_steps": 1}
    run = shiqrun.train("algo=sft", "data=jsonl", "model=tiny", "logger=none", **settings, run_dir=home / "texts")
    found = shiqrun.evaluate(run, eval_max_prompts=2, eval_max_new_tokens=4, run_dir=home / "measured")
    assert found == json.loads((home / "measured" / "eval.json").read_text())
    assert found["fingerprint/policy"] == run.summary["fingerprint/policy"]


def test_settings_become_the_words_of_the_command_line(home):
    awkward = 'it\'s a \\ "file" $x, {a}.jsonl'
    words = command_words(
        ["algo=dpo", "~trainer.x"],
        {"data_path": awkward, "data_pair_rewards": [1, -0.5], "model_path": None, "run_dir": home, "seed": 3},
    )
    assert [word.partition("=")[0] for word in words[2:]] == [
        "data.path",
        "data.pair_rewards",
        "model.path",
        "run_dir",
        "seed",
    ]
    config = compose("train", ["data=jsonl", "model=hf", *words[:1], *words[2:]])
    assert config.data.path == awkward
    assert config.data.pair_rewards == [1, -0.5]
    assert config.model.path is None
    assert override_value({"a": [1, "b"], "c": True}) == "{a:[1,'b'],c:true}"


def test_every_node_of_the_config_can_be_set_by_name():
    for command, reward in (("train", []), ("eval", ["reward=math_answer"])):
        config = OmegaConf.to_container(compose(command, reward))
        nodes = {name for name, value in config.items() if isinstance(value, dict) and name != "hydra"}
        assert nodes <= set(NODES) | {"experiment"}
        assert not {name for name in config if name.partition("_")[0] in NODES and "_" in name}
