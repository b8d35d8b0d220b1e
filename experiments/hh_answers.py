"""`python -m experiments.hh_answers scored.jsonl POLICY...` prints the figures of docs/text.md on logged answers.

Printed are the correlation of score and length, the number of held-out prompts that share their first turn with a
training prompt, and the probability that each policy gives to tokens which no logged answer contains: whether a policy
drifts to them, and whether the anchor holds it. All policies have one tokenizer. For the probability, trajectories of
more than 256 tokens are left out, and 120 of the others are read.
"""

import sys
from collections import Counter

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from shiqrun.batching.encode import EncodedTrajectory, encode, with_template
from shiqrun.batching.logged_data import is_held_out
from shiqrun.data.jsonl import Jsonl
from shiqrun.types import Example

LONGEST, READ = 256, 120
"""Tokens of the longest trajectory that is read for the probability, and the number of trajectories read."""
HELD_OUT = 0.2
"""Share of the prompts that the study holds out, as conf/experiment/hh_small.yaml sets it."""


def main(data: str, *policies: str) -> None:
    """Print a line for each figure on logged answers and policies."""
    disable_progress_bar()
    examples = [*Jsonl(path=data, val_path=None, pair_rewards=None).load("train")]
    print_answers(examples)
    tokenizer = with_template(AutoTokenizer.from_pretrained(policies[0]))
    rows = [*encode(examples, tokenizer, Counter(), max_length=None)]
    seen = {int(token) for row in rows for token in row.input_ids[row.action_index]}
    unseen = torch.tensor([token for token in range(len(tokenizer)) if token not in seen])
    short = [row for row in rows if len(row.input_ids) <= LONGEST][:READ]
    print(f"{len(unseen)} of {len(tokenizer)} tokens occur in no logged answer; their probability:")
    for path in policies:
        print(f"{mean_probability(path, short, unseen):.5f}  {path}")


def print_answers(examples: list[Example]) -> None:
    """Print the correlation of answers' score and length, and the number of prompts with a shared first turn."""
    answers = [(c[-1]["content"], r) for e in examples for c, r in zip(e.completions, e.rewards or (), strict=True)]
    correlation = np.corrcoef([len(text) for text, _ in answers], [reward for _, reward in answers])[0, 1]
    print(f"{len(answers)} answers; correlation of score and characters {correlation:.2f}")
    sides: dict[bool, list[str]] = {True: [], False: []}
    for example in examples:
        sides[is_held_out(example.prompt_id, HELD_OUT)].append(example.messages[0]["content"])
    shared = sum(turn in set(sides[False]) for turn in sides[True])
    print(f"{shared} of {len(sides[True])} held-out prompts share their first turn with a training prompt")


@torch.no_grad()
def mean_probability(path: str, rows: list[EncodedTrajectory], tokens: torch.Tensor) -> float:
    """Return the probability that a policy gives to any of some tokens, a mean over the actions of the trajectories."""
    model = AutoModelForCausalLM.from_pretrained(path).eval()
    total = actions = 0.0
    for row in rows:
        states = torch.from_numpy(row.action_index).long() - 1
        logits = model(torch.from_numpy(row.input_ids).long()[None]).logits[0, states]
        total += float(logits.softmax(-1)[:, tokens].sum())
        actions += len(states)
    return total / actions


if __name__ == "__main__":
    main(*sys.argv[1:])
