"""Prompt values that the ranks of a run sample together: real processes in a group over gloo."""

from dataclasses import replace

import pytest
import torch

from shiqrun.estimates.value_cache import cached_prompt_rewards
from tests.estimates.test_prompt_values import ASKED, POLICY, PROMPTS, REWARD, TOKENIZER
from tests.support.ranks import on_ranks

FEW = replace(ASKED, samples=2100)  # of each prompt a portion of its own


def valued(rank, directory):
    """(prompts sampled now, completions that this rank drew, rewards of each prompt), twice."""
    drawn, found = [], []
    POLICY.register_forward_hook(lambda module, given, out: drawn.append(1))
    POLICY.causal_lm.base_model.register_forward_hook(lambda module, given, out: drawn.append(1))
    where = {"reference": "me", "cache_dir": directory, "device": torch.device("cpu")}
    for _ in range(2):
        before = len(drawn)
        known, _, new = cached_prompt_rewards(POLICY, PROMPTS, TOKENIZER, REWARD, FEW, **where)
        found.append((new, len(drawn) > before, {name: k.rewards.tolist() for name, k in known.items()}))
    return found


@pytest.mark.slow
def test_ranks_share_the_prompts_and_write_the_bytes_of_one_process(tmp_path):
    alone = valued(0, tmp_path / "alone")
    first, second = on_ranks(2, valued, tmp_path / "cache")
    assert [new for new, _, _ in alone] == [len(PROMPTS), 0]
    assert first == second == alone
    [one], [other] = (list((tmp_path / name / "values").glob("*.jsonl")) for name in ("alone", "cache"))
    assert one.read_bytes() == other.read_bytes()
