"""Mixtures that cannot work, through the real command line: one line that names the part, its file or key, a cure."""

import json
from pathlib import Path

import pytest

from shiqrun.cli import main
from shiqrun.config.mixture_parts import expand_parts
from tests.support.places import working_in

FILES = {
    "chat": [{"prompt": f"go {n}", "completions": ["a", "b"], "rewards": [1, 0]} for n in range(6)],
    "single": [{"prompt": f"say {n}", "completion": "a", "reward": n % 2} for n in range(6)],
    "bare": [{"prompt": f"do {n}", "completions": ["a", "b"]} for n in range(6)],
    "pairs": [{"prompt": f"stay {n}", "chosen": "yes", "rejected": "no"} for n in range(6)],
    "blank": [{"prompt": f"be {n}", "completion": " ", "reward": 1} for n in range(6)],
    "empty": [],
}
SMALL = ("logger=none", "model.hidden_size=16", "model.num_layers=1", "trainer.max_steps=1", "eval.every=0")
CHAT = "chat:{data:jsonl,path:chat.jsonl}"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    for name, rows in FILES.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "conf" / "data").mkdir(parents=True)
    yaml = "defaults:\n  - mixture\n  - _self_\nparts:\n  chat: {data: jsonl, path: chat.jsonl}\n"
    (folder / "conf" / "data" / "unnamed.yaml").write_text(yaml)
    yaml = (
        "defaults:\n  - mixture\n  - /data@parts.chat: [_part, jsonl]\n  - _self_\nparts:\n  chat: {path: chat.jsonl}\n"
    )
    (folder / "conf" / "data" / "mine.yaml").write_text(yaml)
    return folder


@pytest.fixture(autouse=True)
def _at_home(home):
    with working_in(home):
        yield


def refused(capfd, *words, code=2):
    assert main(["train", *SMALL, *words, "run_dir=run"]) == code
    assert not Path("run").exists()
    return capfd.readouterr().err


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ("{}", "data.parts: no data set to mix; name each"),
        ("{chat:{path:chat.jsonl}}", "data.parts.chat: no data set; say which, as in data.parts.chat={data:jsonl"),
        ("{chat:3}", "data.parts.chat: met 3, expected its data set and keys"),
        ("{chat:{data:jsnl,path:chat.jsonl}}", "data.parts.chat: data:jsnl is no data set; did you mean jsonl?"),
        ("{chat:{data:mixture}}", "data.parts.chat: a mixture cannot hold a mixture; give its parts beside the others"),
        ("{chat:{data:jsonl}}", "data.parts.chat.path: not set (???)"),
        ("{chat:{data:jsonl,pth:chat.jsonl}}", "data.parts.chat.pth: unknown key; did you mean data.parts.chat.path?"),
        ("{chat:{data:jsonl,path:chat.jsonl,weight:0}}", "data.parts.chat.weight: met 0, expected greater than 0"),
        (
            "{chat:{data:jsonl,path:chat.jsonl,weight:-1.5}}",
            "data.parts.chat.weight: met -1.5, expected greater than 0",
        ),
        ("{chat:{data:jsonl,path:chat.jsonl,weight:lots}}", "data.parts.chat.weight: met 'lots', expected a number"),
        ("{chat:{data:jsonl,path:chat.jsonl,weight:nan}}", "data.parts.chat.weight: met nan, expected a"),
        ("{my-part:{data:jsonl,path:chat.jsonl}}", "data.parts: 'my-part' is no name of a part; expected a letter"),
        ("{1:{data:jsonl,path:chat.jsonl}}", "data.parts: 1 is no name of a part"),
        ("{online:{data:jsonl,path:chat.jsonl}}", "data.parts.online: metrics use this name already"),
    ],
)
def test_parts_that_cannot_be_composed(capfd, parts, said):
    message = refused(capfd, "data=mixture", f"data.parts={parts}")
    assert said in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([f"{CHAT},no:{{data:jsonl,path:empty.jsonl}}"], "data.parts.no: empty.jsonl: the file is empty"),
        ([f"{CHAT},no:{{data:jsonl,path:nothing.jsonl}}"], "data.parts.no: nothing.jsonl: no such file"),
        (
            [f"{CHAT},no:{{data:jsonl,path:blank.jsonl}}"],
            "data.parts.no: no training trajectory is left: 6 empty completion (first: blank.jsonl:1); give rows",
        ),
        (
            [f"{CHAT},no:{{data:jsonl,path:single.jsonl}}", "algo=dpo"],
            "data.parts.no: no training trajectory is left: 6 alone with its prompt (algo=dpo compares completions",
        ),
        ([f"{CHAT},no:{{data:jsonl,path:bare.jsonl}}"], "data.parts.no: algo=shiq needs rewards, but 12 of 12"),
        (
            [f"{CHAT},no:{{data:jsonl,path:single.jsonl,max_length:3}}"],
            "(first: single.jsonl:1, 24 tokens); raise data.parts.no.max_length",
        ),
        (
            [f"{CHAT},no:{{data:jsonl,path:single.jsonl,weight:0.01}}"],
            "data.parts.no.weight=0.01: an epoch would visit none of its 6 units; give at least 0.0833",
        ),
        ([f"{CHAT},no:{{data:treasure,maps:20}}"], "data.parts.no: this data set is written in a closed list of words"),
        ([f"{CHAT},no:{{data:jsonl,path:chat.jsonl,config:x}}"], "data.parts.no: data.parts.no.config=x: only for"),
    ],
)
def test_parts_that_cannot_be_trained_on(capfd, words, said):
    parts, *others = words
    words = ("data=mixture", f"data.parts={{{parts}}}", "data.val_fraction=0", *others)
    assert said in refused(capfd, *words).splitlines()[-1]


@pytest.mark.parametrize(("words", "warns"), [((), True), (("algo.same_unit=true",), False), (("algo=dpo",), False)])
def test_parts_whose_rewards_look_like_two_units_are_a_warning(capfd, words, warns):
    pairs = "pairs:{data:jsonl,path:pairs.jsonl}"
    given = ("data=mixture", f"data.parts={{{CHAT},{pairs}}}", "data.val_fraction=0", "dry_run=true")
    assert main(["train", *SMALL, *given, *words]) == 0
    said = " ".join("".join(capfd.readouterr()).split())
    text = "data.parts.chat pays 1 and 0, data.parts.pairs 1 and -1: these do not look like one unit"
    assert (text in said) == warns


def test_a_yaml_names_the_data_set_of_a_part_among_its_defaults(capfd):
    message = refused(capfd, "data=unnamed")
    assert "data.parts.chat: met {'data': 'jsonl', 'path': 'chat.jsonl'}, expected the node of a choice" in message
    assert "`/data@parts.chat: [_part, NAME]`" in message
    assert main(["train", *SMALL, "data=mine", "data.val_fraction=0", "dry_run=true"]) == 0


def test_a_mixture_is_scored_part_by_part(capfd):
    assert main(["score", "data=mixture", f"data.parts={{{CHAT}}}", "reward=exact_match", "run_dir=scored"]) == 2
    assert "score its parts (chat) one at a time" in capfd.readouterr().err


def test_overrides_of_other_keys_and_broken_ones_stay_as_they_are():
    for word in ("data.path={a:1}", "data.parts.chat.weight=2", "data.parts={", "data.partsof={a:1}"):
        assert expand_parts(word) == [word]
    words = expand_parts("data.parts.chat={data:jsonl,path:'a=b c.jsonl',weight:2}")
    assert words == [
        "+data@data.parts.chat=[_part,jsonl]",
        "data.parts.chat.path='a=b c.jsonl'",
        "data.parts.chat.weight=2",
    ]
