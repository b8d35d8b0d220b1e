"""data=bfcl with models whose chat template shows tools: functions as tools, calls in the form of the template."""

import json

import pytest

pytest.importorskip("bfcl_eval", reason="bfcl-eval is not installed: pip install --no-deps bfcl-eval==2025.6.8")

from shiqrun.batching.logged_data import load
from shiqrun.batching.source_template import tell_template
from shiqrun.cli import main
from shiqrun.data.bfcl_template import template_calls
from shiqrun.environments.bfcl.calls import calls_in
from shiqrun.errors import InputError
from shiqrun.sampling.play import ScriptedActor, begin_episodes, play
from tests.data.test_bfcl import bfcl, settings, train
from tests.data.test_tools import TEMPLATE
from tests.support import helpers

BEGIN = '<call>{"name": "'
JOINED = TEMPLATE.replace(
    "({'name': c.function.name, 'arguments': c.function.arguments} | tojson)",
    "'{\"name\": \"' + c.function.name + '\", \"parameters\": ' + c.function.arguments + '}'",
)
XML = TEMPLATE.replace("({'name': c.function.name, 'arguments': c.function.arguments} | tojson)", "c.function.name")
SPECIAL = TEMPLATE.replace("'<call>'", "'<|im_start|>'")
HIDDEN = TEMPLATE.replace("'<call>' + (", "'<call>' + ('' if loop.revindex0 else '') + (").replace(
    "{{ m.content }}", "{{ m.content if m.tool_calls or loop.last else m.content | upper }}"
)


def told(template=TEMPLATE, **options):
    """The data set after it was told of a model's template."""
    source = bfcl(only=(0, 4), **({"functions": "auto", "per_sample": 3} | options))
    tell_template(source, helpers.tokenizer(template))
    return source


@pytest.mark.parametrize("template", [TEMPLATE, JOINED], ids=["objects", "texts"])
def test_logged_dialogues_are_those_of_signatures_in_the_form_of_the_template(template):
    plain, found = train(bfcl(only=(0,), functions="signatures", per_sample=8)), train(told(template, per_sample=8))
    one, other = plain["multi_turn_base_0"], found["multi_turn_base_0"]
    assert one.rewards == other.rewards
    assert [m["role"] for m in other.messages] == ["user"]
    names = {tool["function"]["name"] for tool in other.tools}
    assert "grep" in names
    assert {tool["function"]["parameters"]["type"] for tool in other.tools} == {"object"}
    form = template_calls(helpers.tokenizer(template), [])
    for before, now in zip(one.completions, other.completions, strict=True):
        assert [m["role"] for m in before] == [m["role"] for m in now]
        for a, b in zip(before, now, strict=True):
            if a["role"] != "assistant" or calls_in(a["content"], names) is None:
                ended = a["role"] == "assistant" and a["content"] != "Done."  # cut in the middle: no call either
                assert not form.read(b["content"]) if ended else a["content"] == b["content"]
            else:
                assert b["content"].startswith(BEGIN)
                assert calls_in(form.read(b["content"]), names) is not None


def test_the_reference_answers_in_that_form_have_the_full_score():
    source = told(split="all")
    with source.environment() as world:
        running = begin_episodes(world, [*source.tasks("val")], 1)
        play(running, ScriptedActor("ground_truth"))
    assert all(r.messages[0]["tools"] and r.messages[1]["content"].startswith(BEGIN) for r in running)
    assert all(sum(r.rewards) == len(r.episode.dialogue.sample.questions) for r in running)


@pytest.mark.parametrize(
    ("template", "why"),
    [
        (helpers.CHATML, "leaves tools out"),
        (None, "no chat template of its own"),
        (XML, "a form that is not JSON"),
        (SPECIAL, "with a special token"),
        (HIDDEN, "earlier calls otherwise"),
    ],
)
def test_other_templates_keep_the_system_message_and_say_why(template, why, caplog):
    caplog.set_level("INFO", "shiqrun")
    source = told(template)
    assert "in the system message (" in caplog.text
    assert why in caplog.text
    assert train(source)["multi_turn_base_0"].messages[0]["role"] == "system"
    with pytest.raises(InputError, match=f"data.functions=tools: .*{why}.*data.functions=signatures"):
        told(template, functions="tools")


def test_inspect_says_which_and_shows_the_functions_folded(workplace, capsys):
    made = helpers.tokenizer(TEMPLATE)
    helpers.llama(vocabulary=len(made), max_position_embeddings=32768).save_pretrained("model")
    made.save_pretrained("model")
    words = ("data=bfcl", "data.limit=1", "data.per_sample=1", "model=hf", "model.path=model", "limit=1")
    assert main(["inspect", *words]) == 0
    said = capsys.readouterr().out
    assert "data=bfcl: the functions are shown as tools, by the model's chat template; data.functions=auto" in said
    assert "           cd(folder: string): " in said
    assert f"[{BEGIN}" in said
    assert "you have access to" not in said


def test_actions_are_the_calls_and_a_file_of_calls_is_replayed(tmp_path):
    source, made = told(), helpers.tokenizer(TEMPLATE)
    rows = load(source, made, settings(), context=None).train
    spoken = made.decode(rows.trajectories[0].input_ids[rows.trajectories[0].action_index])
    example = train(source)["multi_turn_base_0"]
    assert spoken == "".join(f"{m['content']}<|im_end|>" for m in example.completions[0] if m["role"] == "assistant")
    bare = [{k: v for k, v in m.items() if k != "tools"} for m in example.messages]
    row = {"id": example.prompt_id, "messages": [*bare, *example.completions[0]], "rewards": example.rewards[0]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    again = train(told(path=str(tmp_path / "rows.jsonl"), functions="tools"))["multi_turn_base_0"]
    assert (again.rewards[0], list(again.messages)) == (example.rewards[0], list(example.messages))
