"""`shiqrun export`: what it writes has the logits of the run's policy, and nothing that has changed leaves a run."""

import importlib.util
import json
import shutil

import pytest
from peft import AutoPeftModelForCausalLM
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import shiqrun
from shiqrun.cli import main
from tests.sharing.runs import logits, trained


@pytest.fixture(params=["llama", "gpt2"])
def run(request, runs):
    return runs[request.param]


def exported(run, out, *words):
    """The directory that a form of a run is exported into."""
    assert main(["export", str(run), "--out", str(out), *words]) == 0
    return out


def refused(capsys, *words):
    """The one line that the command ends with."""
    assert main(["export", *map(str, words)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("shiqrun: error: ")
    assert err.count("\n") == 1
    return err


def test_merged_has_the_logits_the_tokens_and_the_template_of_the_policy(run, tmp_path):
    folder = exported(run, tmp_path / "out", "--to", "merged")
    policy, tokenizer = shiqrun.load(run).policy(), AutoTokenizer.from_pretrained(folder)
    assert_close(logits(AutoModelForCausalLM.from_pretrained(folder)), logits(policy), rtol=0, atol=0)
    assert tokenizer.chat_template == shiqrun.load(run).tokenizer().chat_template
    assert tokenizer("Is 7 even?")["input_ids"] == shiqrun.load(run).tokenizer()("Is 7 even?")["input_ids"]


@pytest.mark.parametrize(("dtype", "tolerance"), [("bf16", 2**-7), ("fp16", 2**-10)])
def test_half_precision_is_saved_as_such_and_near(runs, tmp_path, dtype, tolerance):
    folder = exported(runs["llama"], tmp_path / "out", "--to", "merged", "--dtype", dtype)
    half = AutoModelForCausalLM.from_pretrained(folder)
    assert str(half.dtype) == {"bf16": "torch.bfloat16", "fp16": "torch.float16"}[dtype]
    whole = logits(shiqrun.load(runs["llama"]).policy())
    assert_close(logits(half.float()), whole, rtol=0, atol=8 * tolerance * whole.abs().max().item())
    size = (folder / "model.safetensors").stat().st_size
    assert size < 0.6 * (runs["llama"] / "policy" / "model.safetensors").stat().st_size


def test_an_adapter_loads_by_itself_where_it_was_exported_to(run, tmp_path, monkeypatch):
    folder = exported(run, tmp_path / "out", "--to", "adapter")
    monkeypatch.chdir("/")
    assert_close(logits(AutoPeftModelForCausalLM.from_pretrained(folder)), logits(shiqrun.load(run).policy()))


def test_an_adapter_of_a_run_that_was_moved_still_finds_the_base_beside_it(runs, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(runs["llama"], moved)
    settings = json.loads((moved / "adapter" / "adapter_config.json").read_text())
    folder = exported(moved, tmp_path / "out", "--to", "adapter")
    now = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert now == str(folder / "base") != settings["base_model_name_or_path"]


def test_an_adapter_whose_base_is_gone_is_refused(runs, tmp_path, capsys):
    home = runs["gpt2"].parent
    (home / "start").rename(home / "gone")
    try:
        said = refused(capsys, runs["gpt2"], "--to", "adapter", "--out", tmp_path / "out")
    finally:
        (home / "gone").rename(home / "start")
    assert f"its base model {home}/start is gone" in said
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_an_adapter_says_so(runs, tmp_path, capsys):
    copy = tmp_path / "run"
    shutil.copytree(runs["llama"], copy)
    shutil.rmtree(copy / "adapter")
    assert "the run trained no adapter (model.lora_r=0); use --to merged" in refused(capsys, copy, "--to", "adapter")


@pytest.mark.parametrize(
    ("file", "form"), [("policy/model.safetensors", "merged"), ("adapter/adapter_model.safetensors", "adapter")]
)
def test_a_model_that_has_changed_is_refused(runs, tmp_path, capsys, file, form):
    copy = tmp_path / "run"
    shutil.copytree(runs["llama"], copy)
    data = bytearray((copy / file).read_bytes())
    data[-1] ^= 1
    (copy / file).write_bytes(data)
    assert f"{copy / file} has changed since the run saved it" in refused(capsys, copy, "--to", form)
    assert not (copy / "export" / form).exists()


def test_a_run_of_an_older_version_is_held_against_its_fingerprint(runs, tmp_path, capsys):
    copy = tmp_path / "run"
    shutil.copytree(runs["llama"], copy)
    summary = json.loads((copy / "summary.json").read_text())
    old = {key: value for key, value in summary.items() if not key.startswith("sha256")}
    (copy / "summary.json").write_text(json.dumps(old))
    exported(copy, tmp_path / "out", "--to", "merged")
    assert capsys.readouterr().out.count("without checksums") == 1
    (copy / "summary.json").write_text(json.dumps({**old, "fingerprint/policy": "0" * 32}))
    assert "its weights have changed since the run saved them" in refused(capsys, copy, "--to", "merged")


def test_an_unfinished_run_and_what_is_no_run_are_refused(runs, tmp_path, capsys):
    copy = tmp_path / "run"
    shutil.copytree(runs["llama"], copy)
    (copy / "summary.json").unlink()
    assert "the run is not finished; go on with shiqrun train resume=" in refused(capsys, copy, "--to", "merged")
    assert "no such directory" in refused(capsys, tmp_path / "nothing", "--to", "merged")


def test_an_out_that_is_there_stays_as_it_is(runs, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("x")
    said = refused(capsys, runs["llama"], "--to", "merged", "--out", tmp_path)
    assert "is there already; remove it, or give another --out" in said
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    said = refused(capsys, runs["llama"], "--to", "merged", "--out", tmp_path / "mine.txt" / "out")
    assert "cannot be written" in said


def test_it_ends_with_the_files_and_what_to_do_next(runs, tmp_path, capsys):
    exported(runs["llama"], tmp_path / "out", "--to", "merged")
    lines = capsys.readouterr().out.splitlines()
    assert str(tmp_path / "out" / "model.safetensors") in lines
    assert lines[-1].startswith(f"next: lm_eval --model hf --model_args pretrained={tmp_path / 'out'} ")


def test_a_dtype_for_an_adapter_is_refused(runs, capsys):
    assert "an adapter is kept as it was trained" in refused(
        capsys, runs["llama"], "--to", "adapter", "--dtype", "bf16"
    )


@pytest.mark.parametrize("words", [["--help"], ["x", "--to", "onnx"], ["x"]])
def test_help_and_wrong_words_name_the_forms(words, capsys):
    assert main(["export", *words]) == (0 if words == ["--help"] else 2)
    said = capsys.readouterr()
    assert "gguf" in said.out + said.err


def test_a_reward_model_leaves_with_its_scores_and_has_no_gguf(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(runs["llama"].parent)
    run = tmp_path / "scorer"
    assert trained("algo=reward_model", "model=tiny", "model.hidden_size=16", f"run_dir={run}", answers=False) == 0
    folder = exported(run, tmp_path / "out", "--to", "merged", "--dtype", "bf16")
    assert capsys.readouterr().out.splitlines()[-1].endswith(f"reward={folder}")
    scorer = AutoModelForSequenceClassification.from_pretrained(folder, dtype="float32")
    original = AutoModelForSequenceClassification.from_pretrained(run / "reward_model")
    assert_close(logits(scorer), logits(original), rtol=0.1, atol=0.05)
    assert (folder / "shiqrun.json").read_bytes() == (run / "reward_model" / "shiqrun.json").read_bytes()
    card = (folder / "README.md").read_text()
    assert "A reward model trained by `reward_model` on `rows.jsonl`" in card
    assert "bradley1952rank" in card
    if importlib.util.find_spec("gguf"):
        assert "a reward model, of which llama.cpp has no form" in refused(capsys, run, "--to", "gguf")
    else:
        assert "needs the extra `gguf`: pip install 'shiqrun[gguf]'" in refused(capsys, run, "--to", "gguf")
