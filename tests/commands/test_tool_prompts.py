"""Rows with a `tools` column through the real commands: every one renders the prompt with its schemas."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from shiqrun.cli import main
from tests.data.test_tools import SCHEMAS, TEMPLATE, row, schema, written
from tests.rewards.classifiers import save
from tests.support import helpers
from tests.support.command_line import summary
from tests.support.places import working_in

WORDS = ("data=jsonl", "model=hf", "model.path=model", "data.val_fraction=0.5")
TRAIN = ("algo=sft", "logger=none", "trainer.max_steps=1", "trainer.batch_size=4", "eval.every=1000")
SAMPLED = ("eval.max_prompts=3", "eval.max_new_tokens=4")
NAMES = ("rain", "wind")


def asked(number, name):
    """A question whose answer depends on the tools alone."""
    return {"prompt": f"question {number}", "completion": name, "reward": 1, "answer": name, "tools": [schema(name)]}


@pytest.fixture(scope="module")
def home(home):
    """A small Llama whose template shows tools, questions that each have two lists of tools, and a trained policy."""
    with working_in(home):
        made = helpers.tokenizer(TEMPLATE)
        helpers.llama(vocabulary=len(made), max_position_embeddings=640).save_pretrained("model")
        made.save_pretrained("model")
        written(*(asked(n, name) for n in range(8) for name in NAMES))
        several = {"completion": None, "reward": None, "rewards": [1, 0]}
        chosen = [{**asked(n, name), **several, "completions": [name, "no"]} for n in range(8) for name in NAMES]
        written(*chosen, name="several.jsonl")
        assert main(["train", *data(), *TRAIN, *SAMPLED, "eval.reward=exact_match", "run_dir=run"]) == 0
    return home


pytestmark = pytest.mark.usefixtures("at_home")


def data(*words, path="rows.jsonl"):
    return (*WORDS, f"data.path={path}", "cache_dir=cache", *words)


def lines(path):
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def spelled(tokens):
    return AutoTokenizer.from_pretrained("model").decode(tokens)


def refused(capfd, *words):
    assert main([str(word) for word in words]) == 2
    said = capfd.readouterr().err.strip().splitlines()
    assert not any("Traceback" in line for line in said)
    return said[-1]


def test_evaluation_samples_a_prompt_for_each_list_of_tools(home):
    assert main(["eval", "run=run", *SAMPLED, "reward=exact_match", "run_dir=answers"]) == 0
    table = pq.read_table("answers/completions.parquet").to_pylist()
    for found in table:
        (message,) = found["messages"]
        (tool,) = json.loads(message["tools"])
        assert tool["function"]["name"] in NAMES
        assert found["prompt"] == f"tools: {tool['function']['name']}\n\nuser: {message['content']}"
    assert len(table) == 3


def test_prompts_are_measured_with_their_schemas(home, capfd):
    uncached = (*WORDS, "data.path=rows.jsonl")
    room = ("eval.max_new_tokens=600", "run_dir=none", "reward=exact_match")
    said = refused(capfd, "eval", *uncached, *room)
    assert "longer than 40 tokens" in said
    fits = ("eval.max_prompts=1", "eval.max_new_tokens=600", "reward=exact_match", "data.tools=false")
    assert main(["eval", *uncached, *fits, "run_dir=fits"]) == 0


def test_training_data_differ_by_tools_and_encoded_rows_are_kept_apart(home):
    prints = []
    for run, words in (("off", ("data.tools=false",)), ("on", ()), ("again", ("data.tools=false",))):
        assert main(["train", *data(*words), *TRAIN, "eval.max_prompts=0", f"run_dir={run}"]) == 0
        prints.append(summary(Path(run))["fingerprint/data"])
    assert prints[0] == prints[2] != prints[1] == summary(Path("run"))["fingerprint/data"]


def test_values_are_of_prompts_with_tools(home):
    words = ("reward=exact_match", "values.samples=2", "values.max_new_tokens=3", "run_dir=values")
    assert main(["values", *data(), *words]) == 0
    found = lines(next(Path("values").glob("*trajector*.jsonl")))
    assert len(found) == 16
    for one in found:
        (tool,) = one["prompt"][0]["tools"]
        assert f"{tool['function']['name']} of a city" in spelled(one["prompt_ids"])
    assert main(["train", *data(path=f"values/{next(Path('values').glob('*trajector*.jsonl')).name}"), *TRAIN]) == 0


RAY = ("rollout=ray", "rollout.actors=1", "rollout.actor_cpus=0.5", "rollout.waiting=16")


@pytest.mark.parametrize(
    "engine", [("rollout=local",), pytest.param(RAY, marks=pytest.mark.slow)], ids=["local", "ray"]
)
def test_rollouts_are_of_prompts_with_tools_and_are_read_again(home, engine):
    run_dir = engine[0].replace("=", "-")
    words = (
        "algo=copg",
        "algo.reference=frozen",
        *engine,
        "rollout.max_new_tokens=3",
        "rollout.samples_per_prompt=2",
    )
    more = (
        "eval.reward=exact_match",
        "eval.max_prompts=0",
        "rollout.path=several.jsonl",
        "rollout.sources.further=1",
        "trainer.max_steps=2",
    )
    assert main(["train", *data(path="several.jsonl"), *TRAIN, *words, *more, f"run_dir={run_dir}"]) == 0
    table = [
        found for file in Path(f"{run_dir}/experience").glob("*.parquet") for found in pq.read_table(file).to_pylist()
    ]
    assert table
    for found in table:
        (tool,) = json.loads(found["prompt"][0]["tools"])
        assert f"{tool['function']['name']} of a city" in spelled(found["input_ids"])
    assert main(["inspect", *WORDS[:3], f"data.path={run_dir}/experience"]) == 0


def test_pivotal_tokens_are_searched_behind_prompts_with_tools(home):
    words = ("reward=exact_match", "pivotal.max_new_tokens=12", "pivotal.between=[0,1]", "run_dir=pivots")
    assert main(["pivotal", *data(), *words]) == 0
    _, *found = lines("pivots/pivotal.jsonl")
    assert found
    assert all(one["prompt"][0]["tools"][0]["function"]["name"] in NAMES for one in found)


def test_a_reward_model_reads_the_schemas(home):
    folder = save(home / "classifier", template=TEMPLATE, context=640)
    assert main(["score", "data=jsonl", "data.path=rows.jsonl", f"reward={folder}", "run_dir=scored"]) == 0
    made = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    for given, found in zip(lines("rows.jsonl"), lines("scored/scored.jsonl"), strict=True):
        talk = [helpers.user(given["prompt"]), helpers.assistant(given["completion"])]
        ids = made.apply_chat_template(talk, tools=given["tools"], return_dict=False)
        with torch.no_grad():
            expected = float(model(input_ids=torch.tensor([ids])).logits)
        assert found["reward"] == pytest.approx(expected, abs=1e-4)
        assert found["tools"] == given["tools"]


def test_a_reward_model_without_a_place_for_tools_is_refused_by_its_own_key(home, capfd):
    folder = save(home / "deaf", template=TEMPLATE.removeprefix(SCHEMAS), context=640)
    words = ("score", "data=jsonl", "data.path=rows.jsonl", f"reward={folder}", "run_dir=deaf_scores")
    said = refused(capfd, *words)
    assert "rows.jsonl:1" in said
    assert "reward.tools=false" in said
    assert main([*words, "reward.tools=false"]) == 0
    scores = {}
    for one in lines("deaf_scores/scored.jsonl"):
        scores.setdefault((one["prompt"][0]["content"], one["completion"][0]["content"]), set()).add(one["reward"])
    assert all(len(found) == 1 for found in scores.values())


def test_a_policy_without_a_place_for_tools_trains_with_data_tools_false_alone(home, capfd):
    made = helpers.tokenizer(TEMPLATE.removeprefix(SCHEMAS))
    helpers.llama(vocabulary=len(made), max_position_embeddings=640).save_pretrained("deaf_model")
    made.save_pretrained("deaf_model")
    words = (
        "train",
        *data("model.path=deaf_model", path="several.jsonl"),
        *TRAIN,
        "algo=copg",
        "algo.reference=frozen",
        "rollout=local",
        "rollout.max_new_tokens=3",
    )
    words = (
        *words,
        "rollout.path=several.jsonl",
        "rollout.sources.further=1",
        "rollout.samples_per_prompt=2",
        "eval.reward=exact_match",
        "eval.max_prompts=0",
        "run_dir=deaf_run",
    )
    said = refused(capfd, *words)
    assert "several.jsonl:" in said
    assert "data.tools=false" in said
    assert main([*words, "data.tools=false"]) == 0


def test_converted_logs_train_with_their_tools(home):
    chats = [{"messages": one["messages"], "tools": one["tools"], "score": n % 2} for n in range(6) for one in [row(n)]]
    Path("log.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    assert main(["convert", "log.jsonl", "--from", "openai", "--to", "converted.jsonl"]) == 0
    prints = []
    for words in ((), ("data.tools=false",)):
        run = f"converted{len(words)}"
        words = (*data(*words, path="converted.jsonl"), *TRAIN, "eval.max_prompts=0")
        assert main(["train", *words, f"run_dir={run}"]) == 0
        prints.append(summary(Path(run))["fingerprint/data"])
    assert prints[0] != prints[1]


def test_a_tiny_model_reads_tools_too(home, capfd):
    words = ("data=jsonl", "data.path=rows.jsonl", "model=tiny", "model.hidden_size=16", "model.num_layers=1")
    assert main(["inspect", *words, "limit=1"]) == 0
    assert "ofacity" in "".join(capfd.readouterr().out.split())
