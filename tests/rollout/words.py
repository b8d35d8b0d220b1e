"""A language of seven words and a random model of it, small enough to enumerate what it says."""

from collections import Counter

import torch

from shiqrun.models.policy import Policy
from shiqrun.models.tiny import Tiny


class Words:
    splits, dropped = ("train",), Counter()
    vocabulary = ("<pad>", "<bos>", "<eos>", "a", "b", "c", "d")
    chat_template = (
        "<bos>{% for message in messages %}{{ ' ' }}{% if message['role'] == 'assistant' %}"
        "{% generation %}{{ message['content'] }}{% endgeneration %}{% else %}{{ message['content'] }}{% endif %}"
        "{% endfor %}"
    )


SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_layers": 2, "num_heads": 2, "max_position_embeddings": 64}
MODEL = Tiny(**SIZES, initializer_range=0.4, vocab_size=300)
TOKENIZER = MODEL.tokenizer(Words(), [])


def reference(seed=3):
    return Policy(MODEL.build(TOKENIZER, seed)).eval()


def continuations(policy, prompt, length):
    """The chance of every continuation of at most `length` tokens, by multiplication; a stop token ends it."""
    if not length:
        return {(): 1.0}
    with torch.no_grad():
        logits = policy.causal_lm(input_ids=torch.tensor([list(prompt)])).logits[0, -1]
    found = {}
    for token, p in enumerate(logits.double().softmax(-1).tolist()):
        if token == TOKENIZER.eos_token_id:
            found[(token,)] = p
            continue
        rest = continuations(policy, [*prompt, token], length - 1)
        found |= {(token, *more): p * q for more, q in rest.items()}
    return found


def said(tokens):
    return TOKENIZER.decode(tokens, skip_special_tokens=True).strip()
