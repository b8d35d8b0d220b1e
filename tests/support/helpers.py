"""Small real tokenizers, models and rows, built on the spot, and the pretrained model of the test data."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from shiqrun.batching.encode import EncodedTrajectory, encode, with_template
from shiqrun.batching.rows import Rows
from shiqrun.models.policy import ModelSettings
from shiqrun.types import Example

DATA = Path(os.environ.get("SHIQRUN_TEST_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
STORIES = DATA / "stories260K"
needs_stories = pytest.mark.skipif(not STORIES.is_dir(), reason=f"no pretrained model in {STORIES}")

CORPUS = [
    "User: hello there, how are you today?",
    "Assistant: fine, thank you. And you?",
    "the weather\n\n\nis fine",
] * 9

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""No generation marks, no BOS; a turn ends with a special token and a newline."""

MARKED_EOS_OUTSIDE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role + ':' }}"
    "{% if m.role == 'assistant' %}{% generation %}{{ ' ' + m.content }}{% endgeneration %}{{ eos_token }}"
    "{% else %}{{ ' ' + m.content + '\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
"""Generation marks around the words alone; the end-of-sequence token follows directly."""

BARE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
"""No generation marks, and nothing special behind a turn."""


def tokenizer(template=None, *, bos="<s>", eos="</s>", pad="<pad>", context=10**6):
    """A byte-level BPE tokenizer trained on CORPUS."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special = [t for t in dict.fromkeys([pad, bos, eos, "<|im_start|>", "<|im_end|>"]) if t]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(CORPUS, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        extra_special_tokens=["<|im_start|>", "<|im_end|>"],
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = template
    return with_template(fast)


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def tool(text):
    return {"role": "tool", "content": text}


def example(*completions, prompt=("hello",), rewards=None, prompt_id="p", source="file:1"):
    """An Example; completions are lists of messages, or strings for one assistant turn."""
    asked = [m if isinstance(m, dict) else user(m) for m in prompt]
    answers = [[assistant(c)] if isinstance(c, str) else list(c) for c in completions]
    return Example(messages=asked, completions=answers, rewards=rewards, prompt_id=prompt_id, source=source)


def encoded(made, *examples, **options):
    """(trajectories, dropped) of the examples under a tokenizer."""
    dropped = Counter()
    return list(encode(examples, made, dropped, **({"max_length": None} | options))), dropped


def model(config, seed=0):
    """The causal language model of a config, float32, from seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config).eval()


def llama(vocabulary=48, seed=0, **options):
    """A Llama of two layers."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    settings = {"max_position_embeddings": 64, "initializer_range": 0.3, "tie_word_embeddings": False}
    return model(LlamaConfig(**(sizes | settings | {"vocab_size": vocabulary} | options)), seed)


def settings(**options):
    """ModelSettings, by default of plain full training."""
    plain = {"gradient_checkpointing": False, "attn_implementation": None}
    lora = {"lora_r": 0, "lora_alpha": 8.0, "lora_target_modules": None}
    return ModelSettings(**(plain | lora | options))


def trajectory(number, *, tokens, action_index, rewards=None, prompt_id=None):
    """An EncodedTrajectory of the given numbers."""
    placed = None if rewards is None else np.array(rewards, np.float32)
    index, ids = np.array(action_index, np.int32), np.array(tokens, np.int32)
    return EncodedTrajectory(
        ids, index, placed, prompt_id or f"p{number}", number, 0, f"file:{number + 1}", prompt_id or f"p{number}"
    )


def rows(count=12, vocabulary=48, seed=0):
    """Rows of random tokens: 4 to 12 of them, a random half of which are actions; pad token 0."""
    rng = np.random.default_rng(seed)
    made = []
    for n in range(count):
        length = int(rng.integers(4, 13))
        index = np.sort(rng.choice(np.arange(1, length), size=length // 2, replace=False))
        ids, rewards = rng.integers(1, vocabulary, length), rng.normal(size=len(index))
        made.append(trajectory(n, tokens=ids, action_index=index, rewards=rewards, prompt_id=f"p{n // 2}"))
    return Rows(made, pad=0)


def dense_scores(causal_lm, batch):
    """(logit, log_partition) of every action, `[B, A]`, from the model's own logits; zero where there is no action."""
    logits = causal_lm(input_ids=batch.input_ids, attention_mask=batch.attention_mask.long(), use_cache=False).logits
    before = batch.action_index - 1
    state = logits.gather(1, before[..., None].expand(-1, -1, logits.shape[-1]))
    taken = state.gather(-1, batch.input_ids.gather(1, batch.action_index)[..., None]).squeeze(-1)
    keep = batch.action_mask
    return taken.masked_fill(~keep, 0), state.logsumexp(-1).masked_fill(~keep, 0)
