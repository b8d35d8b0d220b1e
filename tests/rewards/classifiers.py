"""Real sequence classifiers with random weights, saved to disk, and what they say of a text alone."""

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from shiqrun.rewards.model import RewardModel
from shiqrun.rewards.reward import Answered
from tests.support import helpers

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
ANSWERS = ["fine", "fine, thank you. And you?", "the weather is fine " * 4, "", "no", "\n\nhello there"]


def save(folder, *, template=helpers.CHATML, context=256, labels=1, **special):
    """A Llama classifier of 16 units with its tokenizer; `special` names the tokenizer's pad, bos or eos."""
    made = helpers.tokenizer(template, **special)
    config = LlamaConfig(
        **SIZES,
        vocab_size=len(made),
        max_position_embeddings=context,
        initializer_range=0.3,
        num_labels=labels,
        pad_token_id=made.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        LlamaForSequenceClassification(config).save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


def reward(folder, **options):
    """The reward of `conf/reward/model.yaml` on a directory."""
    plain = {"center": 0.0, "scale": 1.0, "batch_tokens": 8192, "trust_remote_code": False}
    return RewardModel(path=str(folder), **(plain | options))


def items(answers=ANSWERS, prompt="how are you"):
    return [
        Answered([helpers.user(f"{prompt} {n}")], [helpers.assistant(text)], source=f"file:{n + 1}")
        for n, text in enumerate(answers)
    ]


def tokens(folder, item):
    """The whole conversation, rendered by the saved tokenizer."""
    talk = [*item.prompt, *item.completion]
    return AutoTokenizer.from_pretrained(folder).apply_chat_template(talk, return_dict=False)


@torch.no_grad()
def head_at_the_end(folder, ids):
    """The score head on the hidden state of the last of these tokens, from the saved weights, one text at a time."""
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    hidden = model.model(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state
    return float(hidden[0, -1] @ model.score.weight[0])
