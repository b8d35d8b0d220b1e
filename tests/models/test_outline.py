"""A model whose weights are read by rows, on one process and on ranks, against `from_pretrained`."""

import json

import numpy as np
import pytest
import torch
from torch.distributed.tensor import DTensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Cohere2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from shiqrun.models.early_sharding import share_empty
from shiqrun.models.model_checks import check_head, enable_packing
from shiqrun.models.outline import outline_of
from shiqrun.models.policy import ModelSettings, Policy, ValueHead, prepare
from shiqrun.models.reference import FrozenReference, weights_fingerprint
from shiqrun.models.sharding import gathered, in_step, is_sharded, skeleton
from shiqrun.models.weight_files import WeightFiles
from tests.support.helpers import rows
from tests.support.ranks import on_ranks

SIZE = {
    "vocab_size": 49,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}
CONFIGS = {
    "llama": LlamaConfig(**SIZE),
    "tied_llama": LlamaConfig(**SIZE, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**SIZE),
    "qwen3": Qwen3Config(**SIZE),
    "cohere2": Cohere2Config(**SIZE, pad_token_id=0),
    "gemma3": Gemma3TextConfig(**SIZE, pad_token_id=0),
    "gpt2": GPT2Config(vocab_size=49, n_embd=16, n_layer=2, n_head=2),
}


def saved(config, folder, dtype=torch.float32, shard="1GB"):
    """A random model in a directory."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).to(dtype).save_pretrained(folder, max_shard_size=shard)
    return sorted(folder.glob("*.safetensors"))


def outline(folder, dtype, files=None):
    files = files or sorted(folder.glob("*.safetensors"))
    return outline_of(AutoConfig.from_pretrained(folder), dtype, files, trust_remote_code=False)


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_read_by_rows_is_the_one_that_transformers_loads(kind, dtype, tmp_path):
    files = saved(CONFIGS[kind], tmp_path, torch.bfloat16 if dtype == torch.float32 else torch.float32, "9KB")
    assert len(files) > 1
    want, got = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype), outline(tmp_path, dtype)
    assert got.fingerprint() == weights_fingerprint(want)
    model = got.model
    got.fill(Policy(model))
    for one, two in (
        (want.state_dict(), model.state_dict()),
        (dict(want.named_buffers()), dict(model.named_buffers())),
    ):
        assert one.keys() == two.keys()
        assert all(torch.equal(one[k], two[k]) and one[k].dtype == two[k].dtype for k in one)
    assert model.config.to_dict() == want.config.to_dict()
    assert model.generation_config.to_dict() == want.generation_config.to_dict()
    assert (model.training, model.name_or_path) == (want.training, want.name_or_path)
    tied = want.get_output_embeddings().weight is want.get_input_embeddings().weight
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied


def test_files_of_another_form_are_refused_with_the_reason(tmp_path):
    config = Qwen3MoeConfig(**SIZE, num_experts=2, num_experts_per_tok=1, moe_intermediate_size=8)
    saved(config, tmp_path)
    with pytest.raises(ValueError, match="another form of model"):
        outline(tmp_path, torch.float32)


def test_rows_are_read_in_parts_and_damage_is_found(tmp_path, monkeypatch):
    (file,) = saved(CONFIGS["llama"], tmp_path)
    monkeypatch.setattr("shiqrun.models.weight_files.CHUNK", 200)
    want = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    files = WeightFiles([file])
    for name, x in want.items():
        assert torch.equal(torch.cat(list(files.chunks(name))), x)
        assert torch.equal(torch.cat([*files.chunks(name, 3, 7)]), x[3:10])
        assert sum(len(part) for part in files.chunks(name, len(x), 0)) == 0
    whole = file.read_bytes()
    for damaged in (b"", b"x" * 40, whole[:-1], whole[:20]):
        file.write_bytes(damaged)
        with pytest.raises((ValueError, json.JSONDecodeError)):
            WeightFiles([file])


def policy_of(model, lora, value):
    """The policy around a model, as a run makes it."""
    torch.manual_seed(3)
    options = {"gradient_checkpointing": False, "attn_implementation": None, "lora_target_modules": None}
    head = None
    if value == "network":
        head = ValueHead(16, "state", model.__class__(model.config).base_model)
    if value == "head":
        head = ValueHead(16, "state")
    return Policy(prepare(model, ModelSettings(**options, lora_r=lora, lora_alpha=8.0)), value=head)


def shared(rank, folder, lora, value):
    """On a rank: scores of the sharded policy, of its copy, and the whole weights on rank 0."""
    found = outline(folder, torch.float32)
    policy = policy_of(found.model, lora, value)
    share_empty(policy, found.fill, torch.device("cpu"))
    assert is_sharded(policy)
    held = sum(p.to_local().numel() for p in policy.parameters() if isinstance(p, DTensor))
    data = rows(vocabulary=49)
    with in_step(policy):
        check_head(policy, data.collate([rank]))
        why = enable_packing(policy, data)
    reference = FrozenReference(policy)
    batch = data.with_layout(packed=True, device="cpu").collate([rank, rank + 2])
    scores = policy(batch)
    scores.logit.sum().backward()
    gap = float((reference(batch).logit - scores.logit.detach()).abs().max())
    whole = gathered(policy, skeleton(policy))
    weights = {k: v.numpy() for k, v in whole.state_dict().items()} if rank == 0 else {}
    return held / sum(p.numel() for p in policy.parameters()), why, gap, scores.logit.detach().numpy(), weights


@pytest.mark.parametrize(("kind", "lora", "value"), [("tied_llama", 0, None), ("qwen2", 2, "head")])
def test_two_ranks_read_their_halves_of_a_model(kind, lora, value, tmp_path):
    saved(CONFIGS[kind], tmp_path, torch.bfloat16, "9KB")
    told = on_ranks(2, shared, tmp_path, lora, value)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    one, data = policy_of(model, lora, value), rows(vocabulary=49)
    assert enable_packing(one, data) is None
    for rank, (share, why, gap, logits, _) in enumerate(told):
        assert 0.4 < share < 0.6
        assert why is None
        assert gap < 1e-5
        batch = data.with_layout(packed=True, device="cpu").collate([rank, rank + 2])
        assert np.allclose(one(batch).logit.detach(), logits, atol=1e-6)
    want, weights = one.state_dict(), told[0][4]
    assert want.keys() == weights.keys()
    assert all(np.array_equal(want[k], weights[k]) for k in want)
