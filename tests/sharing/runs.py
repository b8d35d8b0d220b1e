"""Finished runs with models that leave them: a Llama and a GPT-2 with adapters, both of rows with texts."""

import json

import torch
from transformers import AutoTokenizer, GPT2Config

from shiqrun.cli import main
from tests.support.helpers import model

ROWS = [
    {
        "prompt": f"Is {n} even? Say yes or no.",
        "completions": ["yes", "no"],
        "rewards": [1 - n % 2, n % 2],
        "answer": ["yes", "no"][n % 2],
    }
    for n in range(40)
]
LORA = ("model.lora_r=4", "algo.reference=adapter", "trainer.learning_rate=0.03", "trainer.warmup_steps=0")
SHORT = ("logger=none", "trainer.max_steps=3", "trainer.batch_size=8")
ANSWERS = ("eval.max_new_tokens=4", "eval.max_prompts=4")


def trained(*words, answers=True):
    """Exit code of a short training run on the rows."""
    short = (*SHORT, *ANSWERS) if answers else SHORT
    return main(["train", "data=jsonl", "data.path=rows.jsonl", "data.val_fraction=0.2", *short, *words])


def write_rows(folder):
    """The file of rows in a folder."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))


def llama_run(folder, name="llama", *words):
    """A run directory with a small Llama and an adapter; the folder is the working directory."""
    sizes = ("model=tiny", "model.hidden_size=32", "model.num_layers=2", "model.num_heads=4")
    assert trained(*sizes, *LORA, "eval.reward=exact_match", f"run_dir={name}", *words) == 0
    return folder / name


def gpt2_run(folder, llama):
    """A run directory with a small GPT-2 and an adapter, which reads the tokens of another run."""
    tokenizer = AutoTokenizer.from_pretrained(llama / "policy")
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=128)
    model(config).save_pretrained(folder / "start")
    tokenizer.save_pretrained(folder / "start")
    assert trained("model=hf", "model.path=start", *LORA, "run_dir=gpt2") == 0
    return folder / "gpt2"


@torch.no_grad()
def logits(causal_lm):
    """Of a few tokens that every model here knows, `[B, T, V]`."""
    return causal_lm.eval()(input_ids=torch.arange(24).reshape(2, 12) + 3).logits.float()
