"""`shiqrun push`: what the Hub has stored is the model and a card that can be cited; a dry run stores nothing."""

import json
import re
import shutil

import pytest
import yaml
from transformers import AutoModelForCausalLM

import shiqrun
from shiqrun.cli import main
from tests.sharing.runs import logits
from tests.support.hub_uploads import TOKEN, hub_for_uploads

WORDS = ("--repo", "my-org/my.model")


def refused(capsys, *words):
    """The one line that the command ends with."""
    assert main(["push", *map(str, words)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("shiqrun: error: ")
    assert err.count("\n") == 1
    return err


def metadata(card):
    """The YAML at the top of a card."""
    return yaml.safe_load(card.split("---\n")[1])


@pytest.fixture(scope="module")
def dry(runs, tmp_path_factory):
    """(folder, card) of a dry run of the Llama."""
    folder = tmp_path_factory.mktemp("dry") / "hub"
    assert main(["push", str(runs["llama"]), *WORDS, "--dry-run", "--out", str(folder)]) == 0
    return folder, (folder / "README.md").read_text()


@pytest.fixture
def uploads(monkeypatch):
    """A Hub that takes uploads, and what it has taken; the library's settings are those of HF_ENDPOINT and others."""
    with hub_for_uploads() as found:
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.setenv("HF_ENDPOINT", found.address)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        for name, value in (("ENDPOINT", found.address), ("HF_HUB_OFFLINE", False), ("HF_HUB_DISABLE_XET", True)):
            monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
        yield found


def test_the_hub_stores_the_model_and_the_folder_that_was_uploaded_is_gone(runs, uploads, tmp_path, capsys):
    before = sorted(runs["llama"].rglob("*"))
    assert main(["push", str(runs["llama"]), *WORDS, "--private"]) == 0
    said = capsys.readouterr().out
    assert f"{uploads.address}/my-org/my.model/commit/" in said
    assert said.splitlines()[-1] == 'next: AutoModelForCausalLM.from_pretrained("my-org/my.model") in Python'
    assert uploads.visibility == {"my-org/my.model": "private"}
    assert uploads.messages == ["Upload what shiq trained on jsonl, by shiqrun"]
    files = uploads.files["my-org/my.model"]
    assert sorted(files) == sorted(path.name for path in (runs["llama"] / "policy").iterdir())
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    policy = shiqrun.load(runs["llama"]).policy()
    assert logits(AutoModelForCausalLM.from_pretrained(tmp_path)).equal(logits(policy))
    assert sorted(runs["llama"].rglob("*")) == before


def test_a_second_push_is_a_commit_in_the_same_repository(runs, uploads):
    assert main(["push", str(runs["llama"]), *WORDS, "--private"]) == 0
    assert main(["push", str(runs["llama"]), *WORDS, "--dtype", "bf16"]) == 0
    assert uploads.visibility == {"my-org/my.model": "private"}
    assert len(uploads.messages) == len(uploads.objects) == 2


def test_a_token_that_the_hub_refuses_is_one_line(runs, uploads, monkeypatch, capsys):
    said = refused(capsys, runs["llama"], "--repo", "others/model")
    assert "others/model: the Hub refuses the token (403" in said
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "the Hub refuses the token (401" in refused(capsys, runs["llama"], *WORDS)
    assert uploads.files == {}


def test_a_hub_that_breaks_off_is_one_line_and_exit_code_1(runs, uploads, monkeypatch, capsys):
    uploads.breaks = True
    assert main(["push", str(runs["llama"]), *WORDS]) == 1
    err = capsys.readouterr().err
    assert err.startswith("shiqrun: failed: ")
    assert "push again" in err
    assert err.count("\n") == 1
    assert list(runs["llama"].glob(".push-*")) == []


def test_the_card_cites_the_method_the_adapter_and_the_code(dry):
    _, card = dry
    cited = re.findall(r"@\w+\{(\w+),", card)
    assert cited == ["clavier2025shiq", "hu2022lora", "shiqrun"]
    assert card.count("{") == card.count("}")
    assert f"version {shiqrun.__version__}" in card
    assert metadata(card) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["shiqrun", "shiq", "reinforcement-learning"],
    }


def test_the_card_has_the_numbers_of_the_summary_with_their_intervals(dry, runs):
    found = shiqrun.load(runs["llama"]).summary
    row = next(line for line in dry[1].splitlines() if line.startswith("| val/kl |"))
    assert row == f"| val/kl | 0 | {found['val/kl']:.4g} ± {found['val/kl_ci95']:.2g} |"
    assert "95 % intervals over 4 held-out prompts" in dry[1]
    assert "eval.max_prompts" not in dry[1]  # advice for whoever trains it


def test_no_file_names_a_path_of_this_machine(dry, runs):
    folder, card = dry
    assert "`rows.jsonl`" in card
    for file in folder.iterdir():
        assert str(runs["llama"].parent).encode() not in file.read_bytes(), file.name


def test_the_code_of_the_card_runs(dry, monkeypatch):
    folder, card = dry
    use = card.partition("## Use")[2].partition("## ")[0]
    code = "\n".join(line[4:] for line in use.splitlines()).replace("my-org/my.model", str(folder))
    names = {}
    exec(code, names)
    assert names["inputs"]["input_ids"].shape[0] == 1


def test_a_dry_run_needs_no_network_says_what_it_would_upload_and_uploads_nothing(runs, tmp_path, capsys):
    words = ["push", str(runs["gpt2"]), *WORDS, "--dry-run", "--out", str(tmp_path / "hub"), "--dtype", "bf16"]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    size = (tmp_path / "hub" / "model.safetensors").stat().st_size
    assert f"{size:>15,} bytes  model.safetensors" in lines
    assert lines[-2].startswith("nothing was uploaded to my-org/my.model; see ")
    assert lines[-1].startswith(f"next: hf upload my-org/my.model {tmp_path / 'hub'}")


@pytest.mark.parametrize("repo", ["model", "a/b/c", "org/mo del", "org/", "../x", "org/a--b"])
def test_a_name_that_is_no_repository_is_refused(runs, capsys, repo):
    assert f"--repo {repo}: expected ORG/NAME" in refused(capsys, runs["llama"], "--repo", repo)


def test_without_network_token_or_way_out_one_line_says_so(runs, capsys, monkeypatch, tmp_path):
    assert "HF_HUB_OFFLINE is set, so nothing can be uploaded" in refused(capsys, runs["llama"], *WORDS)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert "run `hf auth login` or set HF_TOKEN" in refused(capsys, runs["llama"], *WORDS)
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "127.0.0.1 cannot be reached" in refused(capsys, runs["llama"], *WORDS)
    assert "only with --dry-run" in refused(capsys, runs["llama"], *WORDS, "--out", tmp_path)
    assert not (runs["llama"] / "export" / "hub").exists()


def test_an_adapter_on_a_base_of_this_machine_is_refused(runs, capsys):
    said = refused(capsys, runs["gpt2"], *WORDS, "--as", "adapter", "--dry-run")
    assert "its base model is a directory of this machine" in said
    assert "use --as merged" in said


def test_an_adapter_on_a_model_of_the_hub_names_it(runs, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(runs["gpt2"], copy)
    file = copy / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": "openai-community/gpt2"}))
    old = {k: v for k, v in json.loads((copy / "summary.json").read_text()).items() if not k.startswith("sha256")}
    (copy / "summary.json").write_text(json.dumps(old))
    assert main(["push", str(copy), *WORDS, "--as", "adapter", "--dry-run"]) == 0
    card = (copy / "export" / "hub" / "README.md").read_text()
    assert metadata(card)["library_name"] == "peft"
    assert "A LoRA adapter trained by `shiq`" in card
