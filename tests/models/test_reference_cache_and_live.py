"""Cached scores beside a live reference: what they spare in memory, and how far they are from it."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from shiqrun.batching.rows import Rows
from shiqrun.models.pretrained import Pretrained
from shiqrun.training.step.batch_metrics import STEP_ZERO_TOLERANCE
from tests.models.scored import policy_of, scores_of
from tests.support.command_line import SMALL
from tests.support.helpers import STORIES, encoded, example, needs_stories, rows

COUNT = """
import gc, json, sys
import torch
from shiqrun.cli import main
from shiqrun.training.step.method import Method

first = Method.training_step
def training_step(self, batches, index):
    if not self.global_step:
        gc.collect()
        tensors = [x for x in gc.get_objects() if issubclass(type(x), torch.Tensor)]
        alive = [x for x in tensors if x.device.type != "meta"]  # the memory estimate has some that hold no numbers
        held = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in alive}
        weights = {x.untyped_storage().data_ptr(): x.numel() for x in alive if type(x) is torch.nn.Parameter}
        own = sum(p.numel() for p in self.policy.parameters())
        print("counted", json.dumps([own, sum(weights.values()), sum(held.values())]))
    first(self, batches, index)

Method.training_step = training_step
sys.exit(main(sys.argv[1:]))
"""


def alive_in_a_run(reference, folder):
    """(the policy's parameters, all parameters, bytes of all tensors) before the first step of a real run."""
    words = [*SMALL, f"algo.reference={reference}", f"run_dir={folder / reference}", "trainer.max_steps=1"]
    process = subprocess.run(
        [sys.executable, "-c", COUNT, "train", *words, "model.hidden_size=128", f"cache_dir={folder / 'cache'}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    (line,) = (line for line in process.stdout.splitlines() if line.startswith("counted "))
    return json.loads(line.removeprefix("counted "))


@pytest.mark.slow
def test_with_cached_scores_no_run_holds_a_second_copy_of_the_model(tmp_path):
    own, weights, held = alive_in_a_run("cached", tmp_path)  # the scores are computed in this process
    assert own > 100_000
    assert weights == own
    _, weights_of_frozen, held_of_frozen = alive_in_a_run("frozen", tmp_path)
    assert weights_of_frozen == 2 * own
    assert held_of_frozen - held == pytest.approx(4 * own, rel=0.05)


def stories(autocast):
    choice = Pretrained(path=str(STORIES), trust_remote_code=False)
    made = choice.tokenizer(None, [])
    policy = policy_of(model=choice.build(made, 0), autocast=autocast)
    text = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park with her dog. "
    asked = [example(text * (n % 3 + 1), prompt=(text[n % 40 :],), prompt_id=f"p{n}") for n in range(12)]
    return policy, Rows(encoded(made, *asked)[0], pad=0)


MODELS = {
    "llama": lambda autocast: (policy_of(autocast=autocast), rows(count=60)),
    "stories": lambda autocast: stories(autocast),
}


def distance(policy, given, directory, *, packed):
    """|mean log-ratio|, mean |log-ratio| and the largest: of cached scores to live ones, in other batches."""
    given = given.with_layout(packed=packed)
    given = given.with_column("reference", scores_of(policy, given, directory, tokens=700).scores)
    order, gaps = np.random.default_rng(3).permutation(len(given)), []
    for k in range(0, len(given), 4):
        batch = given.collate(order[k : k + 4].tolist())
        with torch.no_grad():
            gaps.append((policy(batch).logp - batch.reference.logp)[batch.action_mask])
    gap = torch.cat(gaps)
    return float(gap.mean().abs()), float(gap.abs().mean()), float(gap.abs().max())


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", ["llama", pytest.param("stories", marks=needs_stories)])
def test_cached_scores_are_as_near_to_live_ones_as_a_run_asks_at_step_zero(tmp_path, name, autocast, packed):
    policy, given = MODELS[name](autocast)
    mean, absolute, largest = distance(policy.eval(), given, tmp_path, packed=packed)
    allowed = STEP_ZERO_TOLERANCE[autocast]
    assert mean <= allowed[0]
    assert absolute <= allowed[1]
    assert largest <= 20 * allowed[1]
