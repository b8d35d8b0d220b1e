import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, LlamaConfig

from shiqrun.errors import InputError
from shiqrun.models.policy import Policy, prepare
from shiqrun.models.pretrained import Pretrained
from tests.support.helpers import STORIES, llama, model, needs_stories, rows, settings, tokenizer


def pretrained(path):
    return Pretrained(path=str(path), trust_remote_code=False)


def build(path):
    """All that a run asks of a model, in its order."""
    choice = pretrained(path)
    made = choice.tokenizer(None, [])
    choice.context()
    return choice.build(made, 0)


@pytest.fixture
def saved(tmp_path):
    """A saved Llama with its tokenizer."""
    made, folder = tokenizer(), tmp_path / "saved"
    llama(vocabulary=len(made)).save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


def test_a_saved_model_is_loaded_as_it_was(saved):
    before = load_file(saved / "model.safetensors")
    loaded = build(saved).state_dict()
    assert before.keys() == loaded.keys()
    assert all(torch.equal(before[name], loaded[name]) for name in before)
    assert pretrained(saved).context() == 64


def test_weights_stored_in_half_precision_are_trained_in_float32(saved):
    llama(vocabulary=len(tokenizer())).bfloat16().save_pretrained(saved)
    assert {w.dtype for w in load_file(saved / "model.safetensors").values()} == {torch.bfloat16}
    assert {p.dtype for p in build(saved).parameters()} == {torch.float32}


def test_a_tokenizer_without_template_gets_the_plain_one(saved):
    assert "generation" in pretrained(saved).tokenizer(None, []).chat_template


@needs_stories
def test_a_real_model_with_tied_weights_loads():
    loaded = build(STORIES)
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    assert pretrained(STORIES).context() == 512


def without_config(folder):
    (folder / "config.json").unlink()


def without_weights(folder):
    (folder / "model.safetensors").unlink()


def without_a_tensor(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def with_another_shape(folder):
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = torch.ones(17)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def with_cut_weights(folder):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def without_tokenizer(folder):
    for file in folder.glob("*token*"):
        file.unlink()


def with_broken_tokenizer(folder):
    (folder / "tokenizer.json").write_text('{"version": "1.0", "model": {}}')


def with_broken_config(folder):
    (folder / "config.json").write_text("{")


def with_an_unknown_architecture(folder):
    (folder / "config.json").write_text(json.dumps({"model_type": "no-such-model"}))


def with_fewer_logits_than_tokens(folder):
    llama(vocabulary=50).save_pretrained(folder)


DAMAGES = {
    without_config: "no config.json in it; pass a directory made by save_pretrained",
    without_weights: r"no weights in it \(\*\.safetensors",
    without_a_tensor: "the weights lack model.layers.1.mlp.up_proj.weight; they would start at random",
    with_another_shape: "its weights cannot be loaded",
    with_cut_weights: "its weights cannot be loaded",
    without_tokenizer: "its tokenizer cannot be loaded",
    with_broken_tokenizer: "its tokenizer cannot be loaded",
    with_broken_config: "cannot be loaded",
    with_an_unknown_architecture: "cannot be loaded",
    with_fewer_logits_than_tokens: r"\d+ tokens in the tokenizer but 50 logits",
}


@pytest.mark.parametrize(("damage", "says"), DAMAGES.items(), ids=lambda x: getattr(x, "__name__", ""))
def test_a_damaged_directory_is_an_input_error(saved, damage, says):
    damage(saved)
    with pytest.raises(InputError, match=rf"model\.path={saved}: .*{says}"):
        build(saved)


class Malicious:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)


def test_code_in_a_models_pickle_is_not_run(saved, tmp_path):
    weights = load_file(saved / "model.safetensors")
    (saved / "model.safetensors").unlink()
    torch.save(weights, saved / "pytorch_model.bin")
    build(saved)  # a plain one is read
    torch.save({**weights, "evil": Malicious(tmp_path / "made")}, saved / "pytorch_model.bin")
    with pytest.raises(InputError, match=rf"model\.path={saved}: its weights cannot be loaded"):
        build(saved)
    assert not (tmp_path / "made").exists()


def test_a_file_or_nothing_at_a_path_is_an_input_error(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in (saved / "config.json", tmp_path / "nowhere", "./nowhere", "saved/config.json", "a/b/c"):
        with pytest.raises(InputError, match=r"model\.path=.* is not a directory"):
            build(path)


def test_a_hub_id_without_network_is_an_input_error_that_says_what_to_pass(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match=r"nobody/nothing is not on this machine .* pass model\.path=DIRECTORY"):
        build("nobody/nothing")


def config_with_dropout(kind):
    if kind == "gpt2":
        sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
        return GPT2Config(vocab_size=48, resid_pdrop=0.3, embd_pdrop=0.3, attn_pdrop=0.3, **sizes)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaConfig(vocab_size=48, attention_dropout=0.5, **sizes)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_dropout_is_off_in_train_mode(kind, tmp_path):
    noisy = model(config_with_dropout(kind))
    batch = rows().collate([0, 1, 2])
    with torch.no_grad():
        once, again = (Policy(noisy.train())(batch).logp for _ in range(2))
    assert not torch.equal(once, again)  # the model as saved does drop out

    noisy.save_pretrained(tmp_path)
    loaded = prepare(pretrained(tmp_path).build([None] * 48, 0), settings())
    assert loaded.training
    policy = Policy(loaded)
    with torch.no_grad():
        once, again, still = policy(batch).logp, policy(batch).logp, policy.eval()(batch).logp
    assert torch.equal(once, again)
    assert torch.equal(once, still)


def test_preparing_a_model_of_any_origin_switches_its_dropout_modules_off():
    """`pretrained` clears the dropout of a configuration, but a user's own choice of a model may not."""
    policy = Policy(prepare(model(config_with_dropout("gpt2")), settings()))
    assert policy.model.training
    batch = rows().collate([0, 1, 2])
    with torch.no_grad():
        assert torch.equal(policy(batch).logp, policy(batch).logp)
