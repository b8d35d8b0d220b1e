"""LoRA on real models of several architectures: what is trained, what the reference is, what is merged and saved."""

import copy
import gc
import importlib.util

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, PhiConfig

from shiqrun.errors import InputError
from shiqrun.models.adapter import merge_adapter, merge_into_saved_base, save_adapter, with_lora
from shiqrun.models.policy import Policy, prepare
from shiqrun.models.pretrained import Pretrained, four_bit_config
from shiqrun.models.reference import AdapterOff, FrozenReference, weights_fingerprint
from tests.support.helpers import llama, model, rows, settings

WIDE = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES = WIDE | {"vocab_size": 48, "max_position_embeddings": 64, "initializer_range": 0.3}
BOUNDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "vocab_size": 48, "initializer_range": 0.3}
BASES = {
    "llama": llama,
    "llama, tied": lambda: llama(tie_word_embeddings=True),
    "gpt2": lambda: model(GPT2Config(**GPT2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **BOUNDS)),  # tied
    "gpt-neox": lambda: model(GPTNeoXConfig(**SIZES, **BOUNDS)),
    "phi": lambda: model(PhiConfig(**SIZES, **BOUNDS)),
}


@pytest.fixture(params=BASES)
def base(request):
    return BASES[request.param]().double()


def adapted(made, rank=2, **options):
    """A model with an adapter that has learned something."""
    wrapped = with_lora(made, rank=rank, **({"alpha": 8.0, "target_modules": None} | options))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        for name, p in wrapped.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(p, std=0.1)
    return wrapped


def trained(made):
    return {name for name, p in made.named_parameters() if p.requires_grad}


@torch.no_grad()
def logits(made, vocabulary=48):
    ids = torch.arange(24).reshape(2, 12) * 7 % vocabulary
    return made.eval()(input_ids=ids).logits


# ------------------------------------------------------------------ what has an adapter
def test_all_linear_layers_but_the_head_have_one_and_nothing_else_is_trained(base):
    head = base.get_output_embeddings()
    linear = {n for n, m in base.named_modules() if type(m).__name__ in ("Linear", "Conv1D") and m is not head}
    wrapped = with_lora(base, rank=2, alpha=8.0, target_modules=None)
    assert base.get_output_embeddings() is head
    layers = {name.removeprefix("base_model.model.").split(".lora_")[0] for name in trained(wrapped)}
    assert layers == linear
    assert all(".lora_" in name for name in trained(wrapped))
    assert not head.weight.requires_grad


def test_rank_zero_is_the_model_itself():
    made = llama()
    assert with_lora(made, rank=0, alpha=8.0, target_modules=None) is made
    assert trained(made) == {name for name, _ in made.named_parameters()}


HEADS = [
    ("llama", ["lm_head"]),
    ("llama", ["q_proj", "lm_head"]),
    ("llama, tied", ["lm_head"]),
    ("gpt2", ["c_attn", "lm_head"]),
    ("gpt-neox", ["lm_head"]),
]
TIED = [
    ("llama, tied", ["embed_tokens"]),
    ("llama, tied", ["q_proj", "model.embed_tokens"]),
    ("gpt2", ["wte"]),
]


@pytest.mark.parametrize(("name", "names"), HEADS)
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings")  # peft's own, before it is refused here
def test_the_head_is_refused_whatever_its_name(name, names):
    with pytest.raises(InputError, match=r"lora_target_modules=\[.*\]: the head .* would not train; leave it out"):
        with_lora(BASES[name](), rank=2, alpha=8.0, target_modules=names)


@pytest.mark.parametrize(("name", "names"), TIED)
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings")
def test_embeddings_that_are_also_the_head_are_refused(name, names):
    with pytest.raises(
        InputError, match=r"lora_target_modules=\[.*\]: the embeddings share their weight with the head"
    ):
        with_lora(BASES[name](), rank=2, alpha=8.0, target_modules=names)


@pytest.mark.parametrize("names", [["q_porj"], [".*"], [r".*lm_head"], ["all-linear"], [], ["model.layers"]])
def test_names_are_names_of_layers_and_no_patterns(names):
    with pytest.raises(InputError, match=r"model\.lora_target_modules=\["):
        with_lora(llama(), rank=2, alpha=8.0, target_modules=names)


def test_a_layer_is_asked_for_by_its_name_in_all_blocks_or_in_one():
    both = trained(with_lora(llama(), rank=2, alpha=8.0, target_modules=["q_proj"]))
    one = trained(with_lora(llama(), rank=2, alpha=8.0, target_modules=["model.layers.1.self_attn.q_proj"]))
    assert len(both) == 2 * len(one) == 4
    assert one == {name for name in both if ".layers.1." in name}


def test_the_adapter_adds_alpha_over_rank_times_the_product_of_its_factors():
    wrapped = adapted(llama().double(), rank=4, alpha=6.0, target_modules=["q_proj"])
    layer = wrapped.base_model.model.model.layers[1].self_attn.q_proj
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    assert (down.shape, up.shape) == ((4, 16), (16, 4))
    expected = layer.base_layer.weight + 6.0 / 4 * up @ down
    assert_close(merge_adapter(wrapped).model.layers[1].self_attn.q_proj.weight, expected)


# ------------------------------------------------------------------ the reference
def test_with_the_adapter_off_scores_are_those_of_the_untouched_model(base):
    batch = rows().collate([0, 1, 2, 3])
    untouched = Policy(copy.deepcopy(base))(batch)
    policy = Policy(adapted(base))
    reference = AdapterOff(policy)(batch)
    assert torch.equal(reference.logit, untouched.logit)
    assert torch.equal(reference.log_partition, untouched.log_partition)
    assert not torch.allclose(policy(batch).logp, untouched.logp, atol=1e-2)


def matrices_of_the_vocabulary():
    """How many there are in this process: embeddings and head of every copy of a model with 53 tokens."""
    gc.collect()
    tensors = (t for t in gc.get_objects() if issubclass(type(t), torch.Tensor))
    return len({t.untyped_storage().data_ptr() for t in tensors if tuple(t.shape) == (53, 16)})


@pytest.mark.slow
def test_the_adapter_reference_holds_no_second_copy_of_the_weights():
    before = matrices_of_the_vocabulary()
    policy = Policy(adapted(llama(53)))
    assert matrices_of_the_vocabulary() - before == 2
    batch = rows().collate([0, 1])
    off = AdapterOff(policy)
    with off.as_policy() as acting:
        assert acting is policy
        acting(batch)
    off(batch)
    assert matrices_of_the_vocabulary() - before == 2
    second = FrozenReference(policy)
    assert matrices_of_the_vocabulary() - before == 4
    assert second.policy is not policy


# ------------------------------------------------------------------ merged, unmerged
def test_merged_in_the_adapter_gives_the_same_logits_and_leaves_the_policy_alone(base):
    wrapped = adapted(base)
    expected, before = logits(wrapped), copy.deepcopy(wrapped.state_dict())
    with wrapped.disable_adapter():
        untouched = logits(wrapped)
    plain = merge_adapter(wrapped)
    assert not any(isinstance(m, BaseTunerLayer) for m in plain.modules())
    assert_close(logits(plain), expected)
    assert not torch.allclose(untouched, expected, atol=1e-2)
    assert_close(wrapped.state_dict(), before, rtol=0, atol=0)
    assert torch.equal(logits(wrapped), expected)


def test_a_model_without_adapter_is_merged_already():
    made = llama()
    assert merge_adapter(made) is made


@pytest.mark.parametrize("name", BASES)
def test_a_saved_adapter_on_its_base_gives_the_logits_of_the_policy(name, tmp_path, monkeypatch):
    BASES[name]().save_pretrained(tmp_path / "here")
    monkeypatch.chdir(tmp_path)
    wrapped = adapted(AutoModelForCausalLM.from_pretrained("here", dtype=torch.float32))
    where = save_adapter(wrapped, tmp_path / "adapter")
    assert where == str(tmp_path / "here")
    monkeypatch.chdir("/")  # the base is found from anywhere
    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(where), tmp_path / "adapter")
    assert_close(logits(again), logits(wrapped))
    assert_close(logits(AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")), logits(wrapped))
    assert not (tmp_path / "adapter" / "base").exists()


def test_embeddings_apart_from_the_head_may_have_one_and_come_back(tmp_path):
    llama().save_pretrained(tmp_path / "base")
    start = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    wrapped = adapted(start, target_modules=["embed_tokens", "q_proj"])
    expected = logits(wrapped)
    assert_close(logits(merge_adapter(wrapped)), expected)
    save_adapter(wrapped, tmp_path / "adapter")
    assert_close(logits(AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")), expected)


def test_a_base_without_a_directory_is_saved_beside_its_adapter(tmp_path):
    wrapped = adapted(llama())
    where = save_adapter(wrapped, tmp_path / "adapter")
    assert where == str(tmp_path / "adapter" / "base")
    assert_close(logits(AutoModelForCausalLM.from_pretrained(where)), logits(llama()))
    assert_close(logits(AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")), logits(wrapped))


def test_merging_into_the_base_read_again_is_merging(tmp_path):
    """What a run on 4-bit weights does; here the weights in memory are the base's own, so that both must agree."""
    llama().bfloat16().save_pretrained(tmp_path)
    wrapped = adapted(AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32))
    again = merge_into_saved_base(wrapped)
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    assert_close(again.state_dict(), merge_adapter(wrapped).state_dict())
    assert_close(logits(again), logits(wrapped))


# ------------------------------------------------------------------ checkpoints
def test_a_checkpoint_holds_the_adapter_alone_and_puts_it_on_the_same_base():
    first = Policy(adapted(llama()))
    saved = first.state_dict()
    assert set(saved) == trained(first)
    second = Policy(prepare(llama(), settings(lora_r=2)))
    assert not torch.equal(logits(second.model), logits(first.model))
    second.load_state_dict(saved)
    assert torch.equal(logits(second.model), logits(first.model))
    assert torch.equal(second.causal_lm.lm_head.weight, llama().lm_head.weight)


def test_what_a_checkpoint_lacks_of_the_adapter_or_has_too_much_is_an_error():
    policy = Policy(adapted(llama()))
    saved = policy.state_dict()
    name = next(iter(saved))
    with pytest.raises(RuntimeError, match="Missing key"):
        policy.load_state_dict({k: v for k, v in saved.items() if k != name})
    with pytest.raises(RuntimeError, match="Unexpected key"):
        policy.load_state_dict({**saved, "model.base_model.model.more": saved[name]})


def test_a_checkpoint_with_the_base_in_it_is_read_too():
    """As they were written before the base was left out."""
    policy = Policy(adapted(llama(seed=3)))
    whole = {f"model.base_model.model.{k}": v for k, v in policy.causal_lm.state_dict().items()}
    assert len(whole) > len(policy.state_dict())
    fresh = Policy(prepare(llama(), settings(lora_r=2)))
    fresh.load_state_dict(whole)
    assert torch.equal(logits(fresh.model), logits(policy.model))


# ------------------------------------------------------------------ 4 bits
def test_4_bits_need_an_adapter_a_gpu_and_a_library_and_say_so(tmp_path, monkeypatch):
    llama().save_pretrained(tmp_path)
    options = {"path": str(tmp_path), "trust_remote_code": False, "quantize": "nf4"}
    with pytest.raises(InputError, match=r"model\.quantize=nf4: .*set model\.lora_r=16"):
        Pretrained(**options)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"model\.quantize=nf4 needs a CUDA GPU, .* model\.quantize=null"):
        Pretrained(**options, lora_r=2).build([None] * 48, 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"model\.quantize=nf4 needs the extra `4bit`: pip install 'shiqrun\[4bit\]'"):
        Pretrained(**options, lora_r=2).build([None] * 48, 0)


def test_4_bits_are_nf4_quantised_twice_with_products_in_bfloat16(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    asked = four_bit_config().to_dict()
    assert asked["quant_method"] == "bitsandbytes"
    assert (asked["load_in_4bit"], asked["load_in_8bit"]) == (True, False)
    assert (asked["bnb_4bit_quant_type"], asked["bnb_4bit_use_double_quant"]) == ("nf4", True)
    assert asked["bnb_4bit_compute_dtype"] == "bfloat16"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_an_adapter_is_trained_on_4_bit_weights_and_merged_into_the_bases_own(tmp_path):
    pytest.importorskip("bitsandbytes")
    llama(hidden_size=64, intermediate_size=128).save_pretrained(tmp_path / "base")
    choice = Pretrained(path=str(tmp_path / "base"), trust_remote_code=False, quantize="nf4", lora_r=2)
    start = choice.build([None] * 48, 0)
    assert weights_fingerprint(start) == weights_fingerprint(choice.build([None] * 48, 0))
    with pytest.raises(InputError, match="4-bit weights cannot be trained"):
        prepare(start, settings())
    policy = Policy(prepare(start, settings(lora_r=2)), autocast=torch.bfloat16)
    batch = rows().collate([0, 1, 2]).to(torch.device("cuda"))
    before = policy(batch).logp
    before.sum().backward()
    assert all(p.grad is not None for p in policy.parameters() if p.requires_grad)
    with torch.no_grad():
        for name, p in policy.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(p, std=0.3)
    assert torch.equal(AdapterOff(policy)(batch).logp, before)
    again = Policy(prepare(choice.build([None] * 48, 0), settings(lora_r=2)), autocast=torch.bfloat16)
    again.load_state_dict(policy.state_dict())
    assert torch.equal(again(batch).logp, policy(batch).logp)
    own = adapted(AutoModelForCausalLM.from_pretrained(tmp_path / "base"))
    own.load_state_dict(policy.model.state_dict())
    assert_close(logits(merge_adapter(policy.model)), logits(own))
