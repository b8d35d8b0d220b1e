import weakref
from dataclasses import replace

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    ModernBertDecoderConfig,
    PhiConfig,
)

from shiqrun.errors import InputError
from shiqrun.models.model_checks import check_head
from shiqrun.models.policy import Policy, prepare
from tests.support.helpers import dense_scores, llama, model, rows, settings

WIDE = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES = WIDE | {"vocab_size": 48, "max_position_embeddings": 64, "initializer_range": 0.3}
GROUPED = {"num_key_value_heads": 1, "head_dim": 8}
BOUNDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def gpt2():
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "vocab_size": 48, "initializer_range": 0.3}
    return model(GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **sizes, **BOUNDS))


def phi():
    built = model(PhiConfig(**SIZES, **BOUNDS))
    torch.nn.init.normal_(built.get_output_embeddings().bias)
    return built


LINEAR_HEADS = {
    "llama": llama,
    "llama, tied": lambda: llama(tie_word_embeddings=True),
    "gpt2": gpt2,  # learned positions, tied
    "gpt-neox": lambda: model(GPTNeoXConfig(**SIZES, **BOUNDS)),
    "phi": phi,  # a head with bias
}
OTHER_HEADS = {
    "gemma2": lambda: model(Gemma2Config(**SIZES, **BOUNDS, final_logit_softcapping=1.0, **GROUPED)),
    "cohere": lambda: model(CohereConfig(**SIZES, **BOUNDS, logit_scale=0.5)),
    "granite": lambda: model(GraniteConfig(**SIZES, **BOUNDS, logits_scaling=2.0)),
}


@pytest.fixture(params=LINEAR_HEADS)
def causal_lm(request):
    return LINEAR_HEADS[request.param]()


def batch_of(picked=(0, 1, 2, 3), dtype=torch.float64):
    batch = rows().collate(list(picked))
    return replace(batch, rewards=batch.rewards.to(dtype))


def gradients(policy, batch):
    """Of the sum of rewards times log-probabilities, which weighs every action differently."""
    policy.zero_grad()
    (policy(batch).logp * batch.rewards).sum().backward()
    return {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


def test_scores_are_those_of_the_dense_logits(causal_lm):
    batch = batch_of()
    assert batch.action_mask.sum(-1).unique().numel() > 1
    assert batch.attention_mask.sum(-1).unique().numel() > 1
    policy = Policy(causal_lm.double())
    scores, (logit, log_partition) = policy(batch), dense_scores(causal_lm, batch)
    assert_close(scores.logit, logit)
    assert_close(scores.log_partition, log_partition)
    assert check_head(policy, batch) is None


def test_float32_scores_come_in_float32():
    scores = Policy(llama())(batch_of())
    assert scores.logit.dtype == scores.log_partition.dtype == torch.float32
    under_autocast = Policy(llama(), autocast=torch.bfloat16)(batch_of())
    assert under_autocast.log_partition.dtype == torch.float32
    assert not torch.equal(under_autocast.logit, scores.logit)


def test_autocast_reaches_the_body():
    seen = []
    policy = Policy(llama(), autocast=torch.bfloat16)
    policy.causal_lm.model.layers[0].mlp.up_proj.register_forward_hook(lambda m, i, out: seen.append(out.dtype))
    policy(batch_of())
    assert seen == [torch.bfloat16]


def test_padding_changes_no_score_and_no_gradient(causal_lm):
    policy = Policy(causal_lm.double())
    together, summed = gradients(policy, batch_of()), {}
    scores = policy(batch_of())
    for row in range(4):
        alone = batch_of([row])
        count = int(alone.action_mask.sum())
        assert_close(policy(alone).logp[0], scores.logp[row, :count])
        for name, grad in gradients(policy, alone).items():
            summed[name] = summed.get(name, 0) + grad
    assert together.keys() == summed.keys()
    assert_close(together, summed)


def test_what_stands_on_padding_changes_nothing(causal_lm):
    policy, batch = Policy(causal_lm), batch_of()
    other = replace(batch, input_ids=batch.input_ids.masked_fill(~batch.attention_mask, 7))
    assert not torch.equal(other.input_ids, batch.input_ids)
    assert_close(policy(other).logp, policy(batch).logp)


def test_without_actions_scores_are_zeros_connected_to_every_parameter(causal_lm):
    policy, batch = Policy(causal_lm.train()), batch_of()
    idle = replace(batch, action_mask=torch.zeros_like(batch.action_mask))
    scores = policy(idle)
    assert not scores.logit.any()
    assert not scores.log_partition.any()
    (scores.logit.sum() + scores.log_partition.sum()).backward()
    assert all(p.grad is not None and not p.grad.any() for p in policy.parameters())


@pytest.mark.parametrize("name", OTHER_HEADS)
def test_a_head_that_caps_or_scales_its_logits_is_scored(name):
    policy, batch = Policy(OTHER_HEADS[name]()), batch_of()
    scores = policy(batch)
    logit, partition = dense_scores(policy.causal_lm, batch)
    assert_close(scores.logit, logit)
    assert_close(scores.log_partition, partition)
    assert check_head(policy, batch) is None


def test_a_head_that_is_no_linear_layer_is_refused():
    own = model(ModernBertDecoderConfig(**SIZES, **BOUNDS, local_attention=8))  # a dense layer and a norm before it
    with pytest.raises(
        InputError, match=r"ModernBertDecoderForCausalLM: scores differ from .* nats; .*no linear layer"
    ):
        check_head(Policy(own), batch_of())


def test_the_head_is_checked_in_full_precision_whatever_training_uses():
    assert check_head(Policy(llama(), autocast=torch.bfloat16), batch_of()) is None


def layer_calls(policy):
    """A list that grows by one each time the first decoder layer computes (recomputing stops before its end)."""
    calls = []
    policy.causal_lm.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize("lora_r", [0, 2])
def test_activation_checkpointing_recomputes_layers_and_changes_no_gradient(lora_r):
    plain = Policy(prepare(llama().double(), settings(lora_r=lora_r)))
    saving = Policy(prepare(llama().double(), settings(lora_r=lora_r, gradient_checkpointing=True)))
    saving.load_state_dict(plain.state_dict())
    calls, recalled = layer_calls(plain), layer_calls(saving)
    expected, found = gradients(plain, batch_of()), gradients(saving, batch_of())
    assert (len(calls), len(recalled)) == (1, 2)
    assert expected.keys() == found.keys()
    assert len(found) >= 2
    assert_close(found, expected)


@pytest.mark.parametrize("saving", [False, True])
def test_activation_checkpointing_keeps_no_logits(saving):
    policy, kept = Policy(prepare(llama().double(), settings(gradient_checkpointing=saving))), []
    with saved_tensors_hooks(lambda t: kept.append(tuple(t.shape)) or t, lambda t: t):
        scores = policy(batch := batch_of())
    logits = (int(batch.action_mask.sum()), policy.causal_lm.config.vocab_size)
    assert scores.logp.requires_grad
    assert (logits in kept) is not saving


def test_a_model_that_cannot_checkpoint_is_an_input_error():
    built = llama()
    built.supports_gradient_checkpointing = False
    with pytest.raises(InputError, match=r"model\.gradient_checkpointing=true: .*does not support"):
        prepare(built, settings(gradient_checkpointing=True))


def test_an_unknown_attention_implementation_is_an_input_error():
    with pytest.raises(InputError, match=r"model\.attn_implementation=flesh"):
        prepare(llama(), settings(attn_implementation="flesh"))
    assert prepare(llama(), settings(attn_implementation="eager")).config._attn_implementation == "eager"


def test_lora_trains_adapters_only_and_not_on_the_head():
    policy = Policy(prepare(llama(), settings(lora_r=2)))
    trained = [name for name, p in policy.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    assert not any("lm_head" in name for name in trained)
    layers = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in trained}
    assert layers == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    grads = gradients(policy, batch_of(dtype=torch.float32))
    assert set(grads) == set(trained)


def test_lora_goes_on_the_layers_asked_for():
    policy = Policy(prepare(llama(), settings(lora_r=2, lora_target_modules=["q_proj"])))
    assert all("q_proj" in name for name, p in policy.named_parameters() if p.requires_grad)


def test_lora_on_the_head_or_on_no_layer_is_refused():
    with pytest.raises(InputError, match=r"lora_target_modules=\['q_proj', 'lm_head'\]: .* would not train"):
        prepare(llama(), settings(lora_r=2, lora_target_modules=["q_proj", "lm_head"]))
    with pytest.raises(InputError, match=r"lora_target_modules=\['q_porj'\]: .*q_porj"):
        prepare(llama(), settings(lora_r=2, lora_target_modules=["q_porj"]))


def test_the_reference_of_a_lora_policy_is_its_base_whatever_the_adapter_learned():
    batch = batch_of(dtype=torch.float32)
    base = Policy(llama())(batch)
    policy = Policy(prepare(llama(), settings(lora_r=2)))
    assert torch.equal(policy(batch).logp, base.logp)  # at step 0 the adapter adds nothing
    for p in policy.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p)
    with policy.as_reference(), torch.no_grad():
        assert torch.equal(policy(batch).logp, base.logp)
    assert not torch.allclose(policy(batch).logp, base.logp, atol=1e-2)
    assert all("lora_" in name for name, p in policy.named_parameters() if p.requires_grad)


def test_autocast_holds_no_copy_of_a_weight_that_a_recomputed_layer_has_used():
    policy, copies = Policy(prepare(llama(), settings(gradient_checkpointing=True)), autocast=torch.bfloat16), []

    class Casts(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **kwargs or {})
            if func is torch.ops.aten._to_copy.default and args[0].ndim == 2 and out.dtype == torch.bfloat16:
                copies.append(weakref.ref(out))
            return out

    with Casts():
        scores = policy(batch_of())
    assert len(copies) >= 14  # seven matrices of each layer
    assert scores.logit.requires_grad
    assert not [copy for copy in copies if copy() is not None]
