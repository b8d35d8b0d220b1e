"""What the step bench compares: the same pairs in the same order, counted alike, between the same two moments."""

import random

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from bench import ours
from bench.clock import StepClock
from bench.order import Pair, counts, pairs_in_order, sort_by_length
from bench.show import ratios
from bench.step import Side, summary, summary_rows
from bench.work import SHAPES, Shape, make_pairs, prepare, talk, tokenizer_of
from shiqrun.batching.steps import Steps

TINY = Shape(hidden=16, layers=1, heads=2, intermediate=24, vocabulary=400, pairs=0)


def pair(prompt, chosen, rejected):
    return Pair([], [], [], ([1] * prompt, [2] * chosen, [3] * rejected))


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    draw = random.Random(0)
    prepare(folder, TINY, [talk(5 + k, [3 + k % 4, 2 + k % 3], draw) for k in range(24)], pairs=24)
    return folder


def test_pairs_come_in_the_order_in_which_shiqrun_trains(work):
    encoded = ours.encode_rows(ours.Settings(folder=str(work), steps=3))
    pairs = pairs_in_order(work, encoded, seed=0, pairs=8, steps=3)
    steps = Steps(encoded.train, batch_size=16, micro_batch_tokens=8192, seed=0, start=0, rank=0, world=1)
    for step in range(3):
        read = {tuple(encoded.train.trajectories[i].input_ids) for b in steps.rows_of(step) for i in b}
        given = pairs[8 * step : 8 * step + 8]
        assert read == {tuple(p.ids[0] + answer) for p in given for answer in p.ids[1:]}


def test_a_pair_has_the_better_answer_first_and_its_chats_have_its_tokens(work):
    encoded, tokenizer = ours.encode_rows(ours.Settings(folder=str(work), steps=3)), tokenizer_of(work)
    reward = {tuple(t.input_ids): float(t.rewards.sum()) for t in encoded.train.trajectories}
    for p in pairs_in_order(work, encoded, seed=0, pairs=8, steps=3):
        chosen, rejected = (tuple(p.ids[0] + answer) for answer in p.ids[1:])
        assert (reward[chosen], reward[rejected]) == (1.0, -1.0)
        for chat, ids in ((p.chosen, chosen), (p.rejected, rejected)):
            assert tuple(tokenizer.apply_chat_template(p.prompt + chat, tokenize=True)["input_ids"]) == ids


def test_presorting_leaves_the_warm_up_and_loses_no_pair():
    pairs = [pair(n, 1, 2) for n in (9, 4, 7, 3, 8, 5)]
    made = sort_by_length(pairs, 2, 1)
    assert made[:2] == pairs[:2]
    assert [p.padded_length for p in made[2:]] == [5, 7, 9, 10]


def test_tokens_by_hand():
    pairs = [pair(10, 3, 2), pair(4, 1, 6)]
    assert counts(pairs, 2) == {"pairs": 2, "useful": 40, "shared_prompt": 26, "actions": 12, "padded": 4 * 13}
    assert counts(pairs, 1)["padded"] == 2 * 13 + 2 * 10


def test_minimal_flops_count_every_matrix_of_the_model(work):
    model = AutoModelForCausalLM.from_pretrained(work / "model")
    body = sum(p.numel() for n, p in model.model.layers.named_parameters() if p.ndim == 2)
    assert TINY.minimal_flops(7, 3) == 6 * body * 7 + 6 * model.lm_head.weight.numel() * 3


def test_model_sizes():
    assert [round((SHAPES[s].body() + SHAPES[s].hidden * SHAPES[s].vocabulary) / 1e6, 1) for s in "AB"] == [11.4, 29.5]


def test_the_clock_runs_from_the_warm_up_to_the_last_step():
    embedding = nn.Embedding(5, 2)
    optimizer = torch.optim.AdamW(embedding.parameters())
    clock = StepClock(warmup=1, steps=3, device="cpu")
    clock.watch(embedding)
    clock.begin()
    kept = []
    for tokens in (7, 2, 4, 9):  # the first is warm-up, the last comes after the run
        embedding(torch.zeros(tokens, dtype=torch.long)).sum().backward()
        if tokens == 4:
            kept.append(torch.ones(1 << 24))  # 64 MiB
        optimizer.step()
    found = clock.result()
    assert found["body_tokens"] == 6
    assert 60 < found["memory_mib"] < 128  # not the hundreds that were resident before
    assert found["wall"] > 0


def test_a_run_of_another_length_is_no_measurement():
    clock = StepClock(warmup=1, steps=3, device="cpu")
    with pytest.raises(SystemExit, match="0 optimiser steps, expected 3"):
        clock.result()


def test_made_pairs_are_a_function_of_the_seed():
    assert [*make_pairs(3)] == [*make_pairs(3)] != [*make_pairs(3, seed=1)]


def test_too_few_pairs_are_refused(tmp_path):
    with pytest.raises(SystemExit, match="1 pairs of at most 1024 tokens, 2 are needed"):
        prepare(tmp_path, TINY, [talk(5, [3, 3], random.Random(0))], pairs=2)


def test_ratios_compare_equal_precision_and_an_untuned_shiqrun():
    result = {"cpu": 8.0, "wall": 9.0, "memory_mib": 800.0, "body_tokens": 1, "once": {"cpu": 0.0, "wall": 0.0}}
    sides = [Side("trl", "fp32", presort=True), Side("ours", "fp32"), Side("ours", "fp32", tuned=True)]
    found = {
        s.label: {"side": s.__dict__, "1": [{**result, "cpu": result["cpu"] / k, "memory_mib": 800.0 / k}]}
        for k, s in zip((1, 4, 8), sides, strict=True)
    }
    peak = {"1": {"fp32": {"cpu": 1e9, "wall": 1e9}}}
    rows = summary_rows("A", {"shared_prompt": 100, "actions": 10}, found, peak)
    assert ratios(rows) == ["TRL best, fp32 takes 4.0x CPU time, 4.0x memory of shiqrun dpo, fp32"]
    assert rows[1]["peak_share_1"] == pytest.approx(SHAPES["A"].minimal_flops(100, 10) / 2 / 1e9)


def test_a_summary_is_median_least_and_most():
    assert summary([3.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 3.0}
