"""What a model or its chat template cannot do is said once before training, and not where it does not hold."""

import json

import pytest
from transformers import LlamaConfig, MixtralConfig

from shiqrun.cli import main
from tests.support.helpers import CHATML, model, tokenizer

WORDS_ALONE = (
    "{% for m in messages %}{{ m.role + ':' }}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{{ '\\n' + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0}


def said(workplace, capfd, config, template, **more):
    """What a dry run says of a model, on one line."""
    made = tokenizer(template)
    rows = [{"prompt": f"hello {i}", "completion": "fine, thank you " * 3, "reward": i % 2} for i in range(8)]
    (workplace / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model(config(**(SIZES | {"vocab_size": len(made), "max_position_embeddings": 256} | more))).save_pretrained("model")
    made.save_pretrained("model")
    words = ("data=jsonl", "data.path=data.jsonl", "model=hf", "model.path=model", "eval.every=0", "logger=none")
    capfd.readouterr()
    assert main(["train", "dry_run=true", "trainer.max_steps=2", *words]) == 0
    return " ".join("".join(capfd.readouterr()).split())


@pytest.mark.parametrize(("template", "times"), [(WORDS_ALONE, 1), (CHATML, 0)])
def test_marks_around_the_words_alone(workplace, capfd, template, times):
    out = said(workplace, capfd, LlamaConfig, template)
    assert out.count("completions ends with a token that stops sampling") == times


@pytest.mark.parametrize(("context", "times"), [(24, 1), (256, 0)])
def test_positions_that_are_scaled_by_the_length(workplace, capfd, context, times):
    more = {"rope_scaling": DYNAMIC | {"original_max_position_embeddings": context}}
    out = said(workplace, capfd, LlamaConfig, CHATML, **more)
    assert out.count(f"more than its original context of {context}") == times


def test_a_mixture_of_experts(workplace, capfd):
    more = {"num_local_experts": 2, "num_experts_per_tok": 1, "num_key_value_heads": 2}
    out = said(workplace, capfd, MixtralConfig, CHATML, **more)
    assert out.count("the auxiliary loss of its router (router_aux_loss_coef=") == 1
