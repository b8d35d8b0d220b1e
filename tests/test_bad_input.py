"""Input that cannot work, through the real command line: exit code 2 before training, with what to do; or counted."""

import json
import os

import pytest

from shiqrun.cli import main
from tests.support import helpers
from tests.support.command_line import metrics, summary

SHORT = ("data=jsonl", "logger=none", "trainer.max_steps=1", "trainer.batch_size=4")


pytestmark = pytest.mark.usefixtures("workplace")


def rows(n=12, **columns):
    return [{"prompt": f"question {i}", "completion": f"answer {i}", "reward": i % 2, **columns} for i in range(n)]


def write(lines, name="rows.jsonl"):
    with open(name, "w") as file:
        file.writelines((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    return f"data.path={name}"


def refused(capfd, *words) -> str:
    """What `shiqrun train` says when it ends with exit code 2, having made no run directory."""
    assert main(["train", *SHORT, "run_dir=run", *words]) == 2
    assert not os.path.exists("run")
    return capfd.readouterr().err


def saved(tokenizer, path="model"):
    """A small Llama with this tokenizer, on disk."""
    helpers.llama(vocabulary=len(tokenizer)).save_pretrained(path)
    tokenizer.save_pretrained(path)


def replaced(at, **columns):
    lines = rows()
    lines[at] |= columns
    return lines


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], ["rows.jsonl", "empty"]),
        ([*rows(2), '{"prompt": "x", '], ["rows.jsonl:3", "JSON"]),
        ([{"prompt": "a", "text": "b"}], ["rows.jsonl:1", "completion", "text"]),
        (replaced(4, reward=float("nan")), ["rows.jsonl:5", "reward", "nan"]),
        (replaced(4, reward=float("inf")), ["rows.jsonl:5", "reward", "inf"]),
        (replaced(4, reward="good"), ["rows.jsonl:5", "reward", "good"]),
        ([{k: v for k, v in r.items() if k != "reward"} for r in rows()], ["algo=shiq", "needs rewards", "reward"]),
        (rows(completion=" "), ["no training trajectory", "empty completion"]),
    ],
    ids=["empty", "broken json", "missing column", "nan", "inf", "no number", "no rewards", "all dropped"],
)
def test_a_data_file_that_cannot_work(capfd, lines, said):
    message = refused(capfd, write(lines)).lower()
    for word in said:
        assert word.lower() in message, message


def test_a_data_file_that_is_not_there(capfd):
    assert "nothing.jsonl" in refused(capfd, "data.path=nothing.jsonl")


def test_everything_longer_than_max_length(capfd):
    message = refused(capfd, write(rows()), "data.max_length=4")
    assert "longer than max_length (4 tokens)" in message


def test_a_number_of_rewards_that_fits_no_turns_and_no_tokens(capfd):
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}] * 2
    message = refused(capfd, write([{"messages": talk, "rewards": [1.0] * 40}]))
    assert "rows.jsonl:1" in message
    assert "40 rewards" in message


@pytest.mark.parametrize("beta", ["0", "-0.5"])
def test_a_temperature_that_is_not_positive(capfd, beta):
    message = refused(capfd, write(rows()), f"algo.beta={beta}")
    assert "algo.beta" in message
    assert "greater than 0" in message


def test_a_model_directory_without_weights(capfd):
    os.mkdir("model")
    message = refused(capfd, write(rows()), "model=hf", "model.path=model")
    assert "model.path=model" in message
    with open("model/config.json", "w") as file:
        file.write('{"model_type": "llama"}')
    assert "no weights" in refused(capfd, write(rows()), "model=hf", "model.path=model")


def test_a_hub_id_without_network(capfd):
    message = refused(capfd, write(rows()), "model=hf", "model.path=someone/something")
    assert "model.path=DIRECTORY" in message


def test_an_output_directory_that_cannot_be_made(capfd):
    open("file", "w").close()
    assert main(["train", *SHORT, write(rows()), "run_dir=file/run"]) == 2
    assert "file/run" in capfd.readouterr().err


def test_a_run_directory_of_another_config(capfd):
    assert main(["train", *SHORT, write(rows()), "run_dir=run"]) == 0
    before = sorted(os.walk("run"))
    assert main(["train", *SHORT, write(rows()), "run_dir=run", "algo.beta=0.7"]) == 2
    message = capfd.readouterr().err
    assert "run" in message
    assert "algo.beta" in message
    assert sorted(os.walk("run")) == before


def test_adapter_reference_without_adapter(capfd):
    assert "model.lora_r" in refused(capfd, write(rows()), "algo.reference=adapter")


def test_training_on_responses_is_for_sft_alone(capfd):
    assert "algo=sft" in refused(capfd, write(rows()), "data.train_on=response")


def test_no_steps_at_all(capfd):
    message = refused(capfd, write(rows()), "trainer.max_steps=null", "trainer.max_epochs=null")
    assert "trainer.max_steps" in message


def test_a_cache_directory_that_cannot_be_written(capfd):
    open("file", "w").close()
    assert "cache_dir=file/cache" in refused(capfd, write(rows()), "cache_dir=file/cache")


def test_sizes_of_a_tiny_model_that_do_not_fit(capfd):
    message = refused(capfd, write(rows()), "model.num_heads=3")
    assert "model.hidden_size=64 and model.num_heads=3" in message


def test_a_group_mean_over_groups_of_one(capfd):
    assert "algo.reward_offset" in refused(capfd, write(rows()), "algo.reward_offset=group_mean")


def test_a_group_mean_where_some_trajectories_are_alone(capfd):
    pair = [{"prompt": "question x", "completion": f"answer {c}", "reward": r} for c, r in (("a", 1), ("b", 0))]
    message = refused(capfd, write(rows() + pair), "algo.reward_offset=group_mean", "data.val_fraction=0")
    assert "12 of 14 trajectories are alone with their prompt" in message
    assert "rows.jsonl:1" in message


def test_rewards_whose_squares_overflow(capfd):
    message = refused(capfd, write(replaced(4, reward=1e30)))
    assert "rows.jsonl:5" in message
    assert "1e+15" in message


def test_an_empty_run_directory_name(capfd):
    assert main(["train", *SHORT, write(rows()), "run_dir="]) == 2
    assert "run_dir" in capfd.readouterr().err


def test_returns_that_are_never_positive_are_warned_of(capfd):
    lines = [r | {"reward": r["reward"] - 1} for r in rows()]
    assert main(["train", *SHORT, write(lines), "dry_run=true"]) == 0
    assert "algo.reward_offset=mean" in capfd.readouterr().out


def test_text_that_spells_a_special_token_is_dropped_and_counted(capfd):
    lines = [*rows(20), rows(1, completion="stop <eos> here")[0]]
    assert main(["train", *SHORT, write(lines), "dry_run=true"]) == 0
    assert "1 the text holds the special token <eos>" in capfd.readouterr().out


def test_a_tool_call_is_an_action_of_the_plain_template(capfd):
    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "add", "arguments": {"a": 41}}]}
    lines = [{"prompt": f"add {i}", "completion": [call], "reward": 1} for i in range(6)]
    assert main(["inspect", "data=jsonl", write(lines)]) == 0
    shown = capfd.readouterr().out
    assert "41" in shown.split("add 0")[1]


def test_a_gpu_that_is_not_there(capfd):
    assert "hardware=cpu" in refused(capfd, write(rows()), "hardware=gpu")


# ------------------------------------------------------------------ dropped and counted, or handled
def test_what_is_dropped_is_counted_by_reason_and_shown(capfd):
    lines = [*rows(20), {"prompt": "p", "completion": "", "reward": 1}, *rows(1, completion="long " * 300)]
    assert main(["train", *SHORT, write(lines), "data.max_length=200", "run_dir=run"]) == 0
    shown = capfd.readouterr().out
    assert "1 empty completion" in shown
    assert "1 longer than max_length (200 tokens)" in shown
    assert summary_of("run")["dropped/empty completion"] == 1


def summary_of(name):
    from pathlib import Path

    return summary(Path(name))


@pytest.mark.parametrize("pad", [None, "</s>"], ids=["no pad token", "pad is EOS"])
def test_eos_is_learned_whatever_the_pad_token(pad):
    """After sft on one sentence the model ends it: the probability of EOS behind it goes to 1."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    saved(helpers.tokenizer(pad=pad))
    lines = [{"prompt": f"say {i}", "completion": "fine, thank you."} for i in range(24)]
    words = ("algo=sft", "model=hf", "model.path=model", "trainer.max_steps=60", "trainer.learning_rate=0.01")
    assert (
        main(["train", "data=jsonl", "logger=none", "trainer.batch_size=8", write(lines), "run_dir=run", *words]) == 0
    )
    model, tokenizer = (kind.from_pretrained("run/policy") for kind in (AutoModelForCausalLM, AutoTokenizer))
    talk = [{"role": "user", "content": "say 3"}, {"role": "assistant", "content": "fine, thank you."}]
    ids = tokenizer.apply_chat_template(talk, return_dict=False)
    assert ids[-1] == tokenizer.eos_token_id
    with torch.no_grad():
        probability = model(torch.tensor([ids[:-1]])).logits[0, -1].softmax(-1)[tokenizer.eos_token_id]
    assert probability > 0.9


def test_a_template_that_is_not_prefix_stable(capfd):
    unstable = (
        "{% for m in messages %}{{ m.role + ':' + (m.content if loop.last else m.content | upper) }}{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    saved(helpers.tokenizer(unstable))
    message = refused(capfd, write(rows()), "model=hf", "model.path=model")
    assert "not prefix-stable" in message
    assert "rows.jsonl" in message


def test_rewards_of_every_form_reach_the_loss():
    from pathlib import Path

    talk = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d"},
    ]
    lines = [{"messages": talk, "rewards": [1.0, 2.0]} for _ in range(4)]
    assert main(["train", *SHORT, write(lines), "run_dir=run", "data.val_fraction=0"]) == 0
    assert metrics(Path("run"))[0]["train/reward"] == pytest.approx(3.0)


@pytest.mark.parametrize(
    "words",
    [
        ("train", "seed=99999999999999999999"),
        ("train", "seed=4294967296"),
        ("train", "data.limit=99999999999999999999"),
        ("train", "-m", "seed=0,99999999999999999999"),
        ("eval", "eval.seed=99999999999999999999"),
        ("values", "values.seed=99999999999999999999"),
        ("sweep", "seed=0,99999999999999999999"),
        ("toy", "bandit", "study.seeds=99999999999999999999"),
    ],
    ids=" ".join,
)
def test_an_integer_that_no_array_can_hold_is_refused_in_one_line(words, workplace, capsys):
    assert main(list(words)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    key, _, value = words[-1].partition("=")
    assert f"{key}: met {value.rpartition(',')[2]}, expected" in error
    assert not list(workplace.iterdir())


def test_a_tokenizer_that_treasure_cannot_use_is_named_before_any_scoring(capfd):
    saved(helpers.tokenizer())
    words = ("data=treasure", "data.maps=8", "data.val_maps=2", "model=hf", "model.path=model")
    for more in ((), ("dry_run=true",)):
        assert main(["train", *words, "logger=none", "trainer.max_steps=1", "run_dir=run", *more]) == 2
        out, err = capfd.readouterr()
        assert "data=treasure needs `model=tiny`" in err
        assert "reference scores" not in out
