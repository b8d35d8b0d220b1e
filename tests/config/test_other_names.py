"""Names that people bring from other tools: each gets the right key or choice, in one line and with exit code 2."""

import pytest

from shiqrun.cli import main
from shiqrun.config.compose import compose
from shiqrun.config.explain import _dotted_keys
from shiqrun.config.other_names import FILES, KEYS, NEEDED

pytestmark = pytest.mark.usefixtures("at_home")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lr=1e-3"], "lr: unknown key; here it is trainer.learning_rate"),
        (["trainer.lr=1e-3"], "trainer.lr: unknown key; here it is trainer.learning_rate"),
        (["output_dir=x"], "output_dir: unknown key; here it is run_dir"),
        (["num_train_epochs=3"], "here it is trainer.max_epochs"),
        (["per_device_train_batch_size=4"], "here it is trainer.batch_size (trajectories of an optimiser step; "),
        (["bf16=true"], "here it is hardware.precision (bf16, fp32 or auto)"),
        (["model_name_or_path=x"], "here it is model.path (with model=hf)"),
        (["model=hf", "model.path=x", "model_name=y"], "here it is model.path (with model=hf)"),
        (["num_generations=4"], "here it is rollout.samples_per_prompt (with rollout=local)"),
        (["model.path=x"], "model.path: not a key of the chosen model; model=hf has it"),
        (["data.path=x"], "data.path: not a key of the chosen data; data=jsonl has it (so have data=bfcl"),
        (["vllm_server_base_url=http://x"], "here it is rollout.base_url (with rollout=vllm)"),
        (["algo=dpo", "algo.lam=1"], "algo.lam: not a key of the chosen algo; algo=shiq has it"),
        (["algo.lamb=1"], "algo.lamb: unknown key; did you mean algo.lam?"),
        (["seeds=1"], "seeds: unknown key; did you mean seed?"),
        (["algo=dop"], "algo=dop: no such choice; did you mean algo=dpo?"),
        (
            ["algo=reinforce"],
            "algo=reinforce: no such choice; policy gradients here are algo=grpo, ppo and rloo (algo: a2po, agro, ",
        ),
        (
            ["data=csv"],
            "data=csv: no such choice; data of your own, also CSV, Parquet and Arrow: data=jsonl data.path=",
        ),
        (["data=my.csv"], "data of your own: data=jsonl data.path=my.csv"),
        (["data=org/name"], "data of your own: data=jsonl data.path=org/name"),
        (["model=Qwen/Qwen2.5-0.5B"], "a model of your own: model=hf model.path=Qwen/Qwen2.5-0.5B"),
        (["model=gpt2.5"], "a model of your own: model=hf model.path=gpt2.5"),
    ],
)
def test_the_message_names_the_right_key(words, message, capsys):
    assert main(["train", *words]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "hydra." not in said


def test_every_key_of_the_table_is_there_and_says_what_it_needs():
    plain = {*_dotted_keys("", compose("train", []))}
    with_choices = {*_dotted_keys("", compose("train", ["eval.reward=programs", *NEEDED.values()]))}
    by_vllm = {*_dotted_keys("", compose("train", ["rollout=vllm"]))} - with_choices
    groups = {"algo", "logger", "rollout"}
    for name, here in KEYS.items():
        assert here.key in with_choices | by_vllm | groups, name
        if here.key in by_vllm:
            assert here.note == "with rollout=vllm", name
        elif here.key not in plain | groups:
            assert not here.note or NEEDED[here.key.partition(".")[0]] in here.note, name


def test_a_name_of_ours_is_never_taken_for_another_tools(capsys):
    assert not set(FILES) & {"bfcl", "hh", "jsonl", "treasure"}
    assert main(["train", "trainer.learning_rate=1e-3", "trainer.max_steps=1", "dry_run=true"]) == 0
    assert "here it is" not in capsys.readouterr().err
