"""`python -m bench.text scored.jsonl POLICY...`: what docs/text.md says of logged answers and policies.

The correlation of score and length, held-out prompts that share their first turn with a training prompt, and the
probability of tokens that no logged answer shows: whether a policy drifts to them, and whether the anchor holds it. All
policies have one tokenizer; for the last, trajectories of more than 256 tokens are left out and 120 of the others read.
"""

import sys
from collections import Counter

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from shiqrun.batching.encode import encode, with_template
from shiqrun.batching.logged_data import held_out
from shiqrun.data.jsonl import Jsonl

LONGEST, READ, HELD_OUT = 256, 120, 0.2


def main(data: str, *policies: str) -> None:
    """Prints a line a figure."""
    disable_progress_bar()
    examples = [*Jsonl(path=data, val_path=None, pair_rewards=None).load("train")]
    answers = [(c[-1]["content"], r) for e in examples for c, r in zip(e.completions, e.rewards, strict=True)]
    correlation = np.corrcoef([len(text) for text, _ in answers], [reward for _, reward in answers])[0, 1]
    print(f"{len(answers)} answers; correlation of score and characters {correlation:.2f}")
    sides: dict[bool, list[str]] = {True: [], False: []}
    for e in examples:
        sides[held_out(e.prompt_id, HELD_OUT)].append(e.messages[0]["content"])
    shared = sum(turn in set(sides[False]) for turn in sides[True])
    print(f"{shared} of {len(sides[True])} held-out prompts share their first turn with a training prompt")
    tokenizer = with_template(AutoTokenizer.from_pretrained(policies[0]))
    rows = [*encode(examples, tokenizer, Counter(), max_length=None)]
    seen = {int(token) for row in rows for token in row.input_ids[row.action_index]}
    unseen = torch.tensor([token for token in range(len(tokenizer)) if token not in seen])
    short = [row for row in rows if len(row.input_ids) <= LONGEST][:READ]
    print(f"{len(unseen)} of {len(tokenizer)} tokens occur in no logged answer; their probability:")
    for path in policies:
        print(f"{mass(path, short, unseen):.5f}  {path}")


@torch.no_grad()
def mass(path: str, rows: list, unseen: torch.Tensor) -> float:
    """Mean over actions of the probability of the unseen tokens."""
    model = AutoModelForCausalLM.from_pretrained(path).eval()
    total = actions = 0.0
    for row in rows:
        states = torch.from_numpy(row.action_index).long() - 1
        logits = model(torch.from_numpy(row.input_ids).long()[None]).logits[0, states]
        total += float(logits.softmax(-1)[:, unseen].sum())
        actions += len(states)
    return total / actions


if __name__ == "__main__":
    main(*sys.argv[1:])
