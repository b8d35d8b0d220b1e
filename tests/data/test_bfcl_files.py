"""Files of dialogues for data=bfcl: as an evaluation writes them, as others do, and those that are refused."""

import ast
import copy
import json
from pathlib import Path

import pytest

pytest.importorskip("bfcl_eval", reason="bfcl-eval is not installed: pip install --no-deps bfcl-eval==2025.6.8")

from shiqrun.batching.logged_data import load
from shiqrun.errors import InputError
from shiqrun.evaluation.episodes import evaluate_script
from shiqrun.evaluation.result_files import write_results
from tests.data.test_bfcl import bfcl, officially, parsed, settings, steps_of, train
from tests.support.helpers import assistant, tokenizer, tool, user


@pytest.fixture(scope="module")
def episodes(tmp_path_factory):
    """The reference answers, played and written as an evaluation does; (file, rows)."""
    source = bfcl(split="all")
    folder = tmp_path_factory.mktemp("episodes")
    write_results(folder, evaluate_script("ground_truth", source.environment, [*source.tasks("val")]))
    file = folder / "episodes.jsonl"
    return file, [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def written(folder, *rows):
    file = Path(folder) / "dialogues.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def test_played_episodes_are_read_back_with_their_messages_and_rewards(episodes):
    file, rows = episodes
    source = bfcl(path=str(file), split="all")
    examples = [*source.load("train"), *source.load("val")]
    assert sorted(e.prompt_id for e in examples) == sorted(row["id"] for row in rows)
    found = {e.prompt_id: ([*e.messages, *e.completions[0]], e.rewards[0]) for e in examples}
    assert found == {row["id"]: (row["messages"], row["rewards"]) for row in rows}
    assert {e.prompt_id for e in source.load("val")} == {"multi_turn_base_4", "multi_turn_base_99"}


def test_rows_without_rewards_are_scored_as_they_were_when_played(episodes, tmp_path):
    rows = [{"id": row["id"], "messages": row["messages"]} for row in episodes[1]]
    wrong = train(bfcl(only=[0]))["multi_turn_base_0"]
    rows += [{"id": wrong.prompt_id, "messages": [*wrong.messages, *completion]} for completion in wrong.completions]
    found = train(bfcl(path=written(tmp_path, *rows)))
    expected = {row["id"]: row["rewards"] for row in episodes[1]}
    assert all(example.rewards[0] == expected[name] for name, example in found.items())
    assert found["multi_turn_base_0"].rewards[1:] == wrong.rewards


def in_tool_calls(message, *, as_json):
    """The message with its calls in OpenAI's form."""
    calls = parsed(message["content"])
    nodes = [ast.parse(call, mode="eval").body for call in calls or []]
    if message["role"] != "assistant" or not nodes or any(node.args for node in nodes):
        return message  # nor has the form a place for what is given by position
    made = []
    for node in nodes:
        given = {k.arg: ast.literal_eval(k.value) for k in node.keywords}
        arguments = json.dumps(given) if as_json else given
        made.append({"type": "function", "function": {"name": node.func.id, "arguments": arguments}})
    return {"role": "assistant", "content": None, "tool_calls": made}


@pytest.mark.parametrize("as_json", [True, False])
def test_dialogues_in_tool_calls_are_scored_and_kept_in_that_form(episodes, tmp_path, as_json):
    rows = []
    for row in episodes[1]:
        messages = [in_tool_calls(m, as_json=as_json) for m in row["messages"]]
        rows.append({"id": row["id"], "messages": messages})
    sent = {row["id"]: row["messages"] for row in rows}
    assert sum("tool_calls" in m for messages in sent.values() for m in messages) > 30
    expected = {row["id"]: row["rewards"] for row in episodes[1]}
    for name, example in train(bfcl(path=written(tmp_path, *rows))).items():
        assert example.rewards == [expected[name]]
        kept = [*example.messages, *example.completions[0]]
        assert kept == [read_back(m) for m in sent[name]]


def read_back(message):
    """The message without nulls, and with the arguments of calls as objects, whatever form they were sent in."""
    kept = {k: v for k, v in copy.deepcopy(message).items() if v is not None} | {"content": message["content"] or ""}
    for call in kept.get("tool_calls", ()):
        given = call["function"]["arguments"]
        call["function"]["arguments"] = json.loads(given) if isinstance(given, str) else given
    return kept


@pytest.fixture
def talk(episodes):
    return next(row["messages"] for row in episodes[1] if row["id"] == "multi_turn_base_133")


def first_end(talk):
    """Place of the message that ends the first turn."""
    return next(i for i, m in enumerate(talk) if m["content"] == "Done.")


CUTS = {
    "behind a call": lambda talk: talk[:2],
    "behind a result": lambda talk: talk[: first_end(talk)],
    "behind the first turn": lambda talk: talk[: first_end(talk) + 1],
    "behind the next question": lambda talk: talk[: first_end(talk) + 2],
}


@pytest.mark.parametrize("cut", CUTS)
def test_a_dialogue_that_ends_early_is_paid_for_what_it_has_called(talk, tmp_path, cut):
    """Its last turn is judged by its calls, as the official runner does with a turn that it ends by force."""
    name, messages = "multi_turn_base_133", CUTS[cut](talk)
    source = bfcl(path=written(tmp_path, {"id": name, "messages": messages}))
    (example,) = train(source).values()
    (sample,) = (s for s in source.samples if s.id == name)
    spoken = [m["content"] for m in messages if m["role"] == "assistant"]
    assert example.rewards == [[0.0] * (len(spoken) - 1) + [float(officially(sample, [steps_of(spoken)]))]]
    assert example.rewards[0][-1] == (cut != "behind a call")  # of two
    assert example.completions == [messages[1:]]


def broken(talk):
    """Rows that are no dialogues of their sample, and what is said of them."""
    name, end = "multi_turn_base_133", first_end(talk)
    row = {"id": name, "messages": talk}
    spoken = sum(m["role"] == "assistant" for m in talk)
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "cd", "arguments": "{no"}}]}
    cut = {"id": name, "messages": [*talk[:1], *talk[1:]]}
    return {
        "unknown id": ([row | {"id": "x_1"}], r":1: id 'x_1' is no sample; expected one like 'multi_turn_base_0'"),
        "no messages": ([{"id": name}], r":1, messages: expected a string or a list"),
        "another first question": (
            [row | {"messages": [user("hi"), *talk[1:]]}],
            rf":1, message 0: not what the user of {name} says first",
        ),
        "no question": ([row | {"messages": talk[1:]}], rf":1, message 0: not what the user of {name} says first"),
        "another question": (
            [row | {"messages": [*talk[: end + 1], user("hi"), *talk[end + 2 :]]}],
            rf":1, message {end + 1}: .* other words are expected",
        ),
        "a question too early": (
            [row | {"messages": [*talk[:end], talk[end + 1]]}],
            rf":1, message {end}: .* no turn has ended",
        ),
        "a question twice": (
            [row | {"messages": [*talk[: end + 2], talk[end + 1]]}],
            rf":1, message {end + 2}: .* no turn has ended",
        ),
        "no second question": (
            [row | {"messages": [*talk[: end + 1], *talk[end + 2 :]]}],
            rf":1, message {end + 1}: the user of {name} says something before it",
        ),
        "more behind the end": (
            [cut | {"messages": [*talk, assistant("one more")]}],
            rf":1, message {len(talk)}: {name} is over before it \(all turns\)",
        ),
        "another prompt": (
            [row, row | {"messages": [{"role": "system", "content": "be kind"}, *talk]}],
            r":2: another prompt than that of .*dialogues.jsonl:1, which is of multi_turn_base_133 too",
        ),
        "too few rewards": (
            [row | {"rewards": [1.0]}],
            rf":1: 1 rewards for {spoken} assistant messages",
        ),
        "a reward that is no list": ([row | {"rewards": 1.0}], r":1: rewards must be a list"),
        "a reward that is no number": ([row | {"rewards": ["a"] * spoken}], r":1: rewards must be a list"),
        "arguments that are no JSON": (
            [row | {"messages": [talk[0], call]}],
            r":1, messages, message 1, tool call 0 of cd: arguments are no JSON: str '{no'; mend them",
        ),
    }


BROKEN = broken([user("a"), assistant("Done."), user("b")])


@pytest.mark.parametrize("fault", BROKEN)
def test_a_row_that_is_no_dialogue_of_its_sample_is_refused_with_its_place(talk, tmp_path, fault):
    rows, message = broken(talk)[fault]
    with pytest.raises(InputError, match=r"dialogues\.jsonl" + message):
        train(bfcl(path=written(tmp_path, *rows)))


def test_dialogues_without_a_word_of_the_assistant_are_counted_once_for_each_split(talk, tmp_path):
    rows = [{"id": f"multi_turn_base_{n}", "messages": "hello"} for n in (0, 133, 4)]
    rows.append({"id": "multi_turn_base_133", "messages": talk})
    encoded = load(bfcl(path=written(tmp_path, *rows)), tokenizer(), settings(), context=None)
    assert encoded.dropped["no actions"] == 3


def test_what_cannot_be_encoded_is_named_by_the_row_of_its_file(talk, tmp_path):
    made = tokenizer("{{ raise_exception('no') }}")
    path = written(tmp_path, {"id": "multi_turn_base_133", "messages": talk})
    with pytest.raises(InputError, match=r"dialogues\.jsonl:1: the chat template refuses"):
        load(bfcl(path=path), made, settings(), context=None)


def test_a_result_that_the_dialogue_reports_otherwise_changes_no_reward(talk, tmp_path):
    lied = [tool("all is well") if m["role"] == "tool" else m for m in talk]
    rows = [{"id": "multi_turn_base_133", "messages": messages} for messages in (talk, lied)]
    (example,) = train(bfcl(path=written(tmp_path, *rows))).values()
    assert example.rewards[0] == example.rewards[1]


def test_rewards_are_the_checkers_and_it_is_said_where_the_files_differ(episodes, tmp_path, caplog):
    wrong = train(bfcl(only=[0], corrupt=1.0))["multi_turn_base_0"]
    rows = [{"id": wrong.prompt_id, "messages": [*wrong.messages, *c]} for c in wrong.completions]
    paid = [row | {"rewards": r} for row, r in zip(rows, wrong.rewards, strict=True)]
    alike = train(bfcl(path=written(tmp_path, *paid)))["multi_turn_base_0"]
    assert alike.rewards == wrong.rewards
    assert not caplog.records
    other = [row | {"rewards": [5.0] * len(row["rewards"])} for row in paid]
    assert train(bfcl(path=written(tmp_path, *other)))["multi_turn_base_0"].rewards == wrong.rewards
    (record,) = caplog.records
    assert "rewards of the file differ" in record.getMessage()
    assert "dialogues.jsonl:1" in record.getMessage()


def test_results_that_are_shown_otherwise_than_in_episodes_are_said(episodes, caplog):
    assert train(bfcl(path=str(episodes[0]), result_chars=5))
    assert "will be evaluated in other states" in caplog.text
