"""`python -m bench.unseen scored.jsonl POLICY...`: probability of tokens that no logged answer shows, on logged states.

For docs/text.md: whether a policy drifts to tokens without data, and whether the anchor holds it. All policies have one
tokenizer; rows longer than 256 tokens are left out, the first 120 trajectories are read.
"""

import sys
from collections import Counter

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from shiqrun.data.encode import encode, with_template
from shiqrun.data.jsonl import Jsonl

LONGEST, READ = 256, 120


def main(data: str, *policies: str) -> None:
    """Prints a line a policy."""
    disable_progress_bar()
    tokenizer = with_template(AutoTokenizer.from_pretrained(policies[0]))
    examples = Jsonl(path=data, val_path=None, pair_rewards=None).load("train")
    rows = [*encode(examples, tokenizer, Counter(), max_length=None)]
    seen = {int(token) for row in rows for token in row.input_ids[row.action_index]}
    unseen = torch.tensor([token for token in range(len(tokenizer)) if token not in seen])
    short = [row for row in rows if len(row.input_ids) <= LONGEST][:READ]
    print(f"{len(unseen)} of {len(tokenizer)} tokens occur in no logged answer")
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
