"""Completions, what is found on them, and the KL that they estimate, against dense computations of that model."""

import copy
import itertools
import math
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from shiqrun.data.message_columns import messages_in
from shiqrun.evaluation.evaluator import CompletionEvaluator
from shiqrun.evaluation.result_files import write_completions
from shiqrun.models.policy import Policy
from shiqrun.models.reference import FrozenReference
from shiqrun.rewards.exact_match import ExactMatch
from shiqrun.sampling.prompts import choose_prompts, stop_tokens
from shiqrun.sampling.sampler import CompletionSampler, score_completions
from tests.support.completions import sampling
from tests.support.helpers import CHATML, example, llama, tokenizer, user

TOKENIZER = tokenizer(CHATML)


def model(seed=0, **options):
    return llama(vocabulary=len(TOKENIZER), seed=seed, max_position_embeddings=256, **options)


def sharper(causal_lm):
    """A copy with larger logits."""
    moved = copy.deepcopy(causal_lm)
    with torch.no_grad():
        moved.lm_head.weight.mul_(1.5)
    return moved


def prompts(count=7, words="how are you"):
    talks = [example("x", prompt=(f"{words}{' today' * (n % 4)} {n}",), prompt_id=f"p{n}") for n in range(count)]
    return choose_prompts(talks, TOKENIZER, number=count, room=None)[0]


def answers(policy, asked, *, stream=0, **options):
    return CompletionSampler(asked, TOKENIZER, sampling(**options), 10_000).sample(policy, stream=stream)


@torch.no_grad()
def logp_of(causal_lm, prompt, tokens):
    """`[A, V]` float64 log-probabilities at every token of an answer, from one unpadded row."""
    ids = torch.tensor([[*prompt.tokens.tolist(), *tokens.tolist()]])
    logits = causal_lm(input_ids=ids, use_cache=False).logits[0].double()
    return logits.log_softmax(-1)[len(prompt.tokens) - 1 : -1]


@pytest.mark.parametrize("budget", [20, 60, 10_000])
def test_log_ratio_and_entropy_are_those_of_dense_log_probabilities(budget):
    policy, reference = Policy(model()), Policy(model(seed=1))
    sampler = CompletionSampler(prompts(), TOKENIZER, sampling(samples_per_prompt=2), budget)
    cut = [replace(s, tokens=s.tokens[: 1 + n % 6]) for n, s in enumerate(sampler.sample(policy))]
    found = sampler.measure(cut, policy, FrozenReference(reference))
    assert [len(s.tokens) for s in found] == [1 + n % 6 for n in range(14)]
    for s in found:
        ours, theirs = logp_of(policy.model, s.prompt, s.tokens), logp_of(reference.model, s.prompt, s.tokens)
        at = torch.arange(len(s.tokens)), torch.from_numpy(s.tokens)
        assert s.log_ratio == pytest.approx(float((ours[at] - theirs[at]).sum()), abs=1e-4)
        assert s.entropy == pytest.approx(float(-(ours.exp() * ours).sum(-1).mean()), abs=1e-5)


def test_without_a_reference_there_is_no_log_ratio():
    sampler, policy = CompletionSampler(prompts(), TOKENIZER, sampling(), 10_000), Policy(model())
    found = sampler.measure(sampler.sample(policy), policy, None)
    assert {s.log_ratio for s in found} == {None}
    assert all(s.entropy > 0 for s in found)


@pytest.mark.parametrize("training", [True, False])
def test_measuring_switches_dropout_off_puts_the_mode_back_and_keeps_no_gradient(training):
    sampler, policy = CompletionSampler(prompts(2), TOKENIZER, sampling(), 10_000), Policy(model(attention_dropout=0.5))
    found = sampler.measure(sampler.sample(policy), policy.train(training), FrozenReference(policy))
    assert {s.log_ratio for s in found} == {0.0}
    assert policy.training is training
    assert all(p.grad is None for p in policy.parameters())


def test_a_policy_is_no_nat_away_from_itself():
    sampler, policy = CompletionSampler(prompts(), TOKENIZER, sampling(), 60), Policy(model())
    assert {s.log_ratio for s in sampler.measure(sampler.sample(policy), policy, FrozenReference(policy))} == {0.0}


def test_answers_come_by_prompt_and_number():
    found = answers(Policy(model()), prompts(3), samples_per_prompt=2)
    assert [(s.prompt.name, s.index) for s in found] == [(p.name, k) for p in prompts(3) for k in (0, 1)]
    assert len({tuple(s.tokens) for s in found}) > 4


def test_an_answer_depends_on_its_prompt_number_seed_and_stream_alone():
    policy, asked = Policy(model()), prompts()
    every = {(s.prompt.name, s.index): s.tokens.tolist() for s in answers(policy, asked, samples_per_prompt=3)}
    some = answers(policy, asked[4:1:-1], samples_per_prompt=2, batch_size=1)
    assert all(every[s.prompt.name, s.index] == s.tokens.tolist() for s in some)
    for others in (answers(policy, asked, seed=1), answers(policy, asked, stream=1)):
        assert sum(every[s.prompt.name, 0] == s.tokens.tolist() for s in others) < len(asked) / 2


def test_the_text_is_that_of_the_tokens_without_what_ends_or_marks_them():
    stop = set(stop_tokens(TOKENIZER, model()))
    found = answers(Policy(model()), prompts(), samples_per_prompt=40, max_new_tokens=12)
    special = set(TOKENIZER.all_special_ids)
    assert {s.ended for s in found} == {True, False}
    for s in found:
        assert (int(s.tokens[-1]) in stop) == s.ended
        words = [int(t) for t in s.tokens if int(t) not in special]
        assert s.text == TOKENIZER.decode(words).strip()


def parrot(text):
    """A model that answers with `text` and ends its turn, whatever it is asked: a chain from each token to the next."""
    (only,) = prompts(1)
    said = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    chain = [int(only.tokens[-1]), *said, TOKENIZER.convert_tokens_to_ids("<|im_end|>")]
    assert len(set(chain)) == len(chain)
    size = len(TOKENIZER)
    causal_lm = llama(vocabulary=size, hidden_size=size, intermediate_size=2, num_attention_heads=1)
    with torch.no_grad():
        for parameter in causal_lm.parameters():
            parameter.zero_()
        causal_lm.model.norm.weight.fill_(1.0)
        causal_lm.model.embed_tokens.weight.copy_(torch.eye(size))
        for before, after in itertools.pairwise(chain):
            causal_lm.lm_head.weight[after, before] = 10.0
    return Policy(causal_lm)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_verifiable_reward_reads_what_the_policy_said(temperature):
    asked = [example("x", prompt=("hello",), prompt_id="p")]
    (prompt,), _ = choose_prompts(asked, TOKENIZER, number=1, room=None)
    for answer, right in (("fine", 1.0), ("fine today", 0.0)):
        told = replace(prompt, answer=answer)
        (s,) = answers(parrot(" fine"), [told], temperature=temperature)
        assert (s.text, s.ended, len(s.tokens)) == ("fine", True, 2)
        (scored,) = score_completions([s], ExactMatch(ignore_case=False))
        assert scored.reward == right


@torch.no_grad()
def exact_kl(policy, reference, asked):
    """E_pi[sum of at most two tokens' log-ratio], by enumeration, and the variance of one prompt's mean of one."""
    stop, means, squares = stop_tokens(TOKENIZER, policy), [], []
    for prompt in asked:
        head = prompt.tokens.tolist()
        rows = torch.tensor([[*head, token] for token in range(len(TOKENIZER))])
        ours, theirs = (m(input_ids=rows, use_cache=False).logits.double().log_softmax(-1) for m in (policy, reference))
        first, first_ref = ours[0, -2], theirs[0, -2]
        gap = first - first_ref
        second, later = ours[:, -1].exp(), ours[:, -1] - theirs[:, -1]
        later[stop] = 0
        total = gap[:, None] + later
        means.append(float((first.exp()[:, None] * second * total).sum()))
        squares.append(float((first.exp()[:, None] * second * total**2).sum()))
    variances = [square - mean**2 for square, mean in zip(squares, means, strict=True)]
    return math.fsum(means) / len(means), math.fsum(variances) / len(means) ** 2


def test_the_sampled_kl_is_the_exact_one_within_its_interval_and_one_from_the_wrong_samples_is_not():
    causal_lm = model()
    other, each, asked = sharper(causal_lm), 100, prompts(12)
    kl, variance = exact_kl(causal_lm, other, asked)
    deviation = math.sqrt(variance / each)
    asking = sampling(samples_per_prompt=each, max_new_tokens=2, batch_size=1200)
    evaluator = CompletionEvaluator(asked, TOKENIZER, asking, tokens=9000, reward=None, beta=None)
    evaluator.begin(FrozenReference(Policy(other)), torch.device("cpu"))
    found = evaluator.run(Policy(causal_lm)).metrics
    assert found["kl"] == pytest.approx(kl, abs=3 * deviation)
    assert found["kl"] == pytest.approx(kl, abs=found["kl_ci95"])

    sampler = evaluator.sampler
    theirs = sampler.measure(sampler.sample(Policy(other)), Policy(causal_lm), FrozenReference(Policy(other)))
    assert abs(np.mean([s.log_ratio for s in theirs]) - kl) > 10 * deviation


def evaluated(asked, policy, reference, reward=None, **options):
    made = CompletionEvaluator(asked, TOKENIZER, sampling(**options), tokens=9000, reward=reward, beta=0.5)
    made.begin(None if reference is None else FrozenReference(reference), torch.device("cpu"))
    return made.run(policy)


def test_policy_and_reference_answer_apart_and_rows_say_what_is_known():
    asked = [replace(p, answer="fine") for p in prompts(4)]
    found = evaluated(asked, Policy(model()), Policy(model()), ExactMatch(ignore_case=False), samples_per_prompt=2)
    rows = found.rows(7)
    assert [r["prompt_id"] for r in rows] == [p.prompt_id for p in asked for _ in (0, 1)]
    assert {r["step"] for r in rows} == {7}
    assert {type(r["reward"]) for r in rows} == {type(r["reference_reward"]) for r in rows} == {float}
    assert sum(r["completion"] == r["reference_completion"] for r in rows) < 4
    assert found.metrics["kl"] == 0
    assert found.metrics["regularised_return"] == found.metrics["reward"]
    assert found.metrics["pass@2"] >= found.metrics["pass@1"] == found.metrics["reward"]


def test_without_reward_or_reference_rows_hold_nothing_of_them():
    rows = evaluated(prompts(2), Policy(model()), None).rows(0)
    names = ("reward", "kl", "reference_completion", "reference_reward")
    assert [[r[name] for name in names] for r in rows] == [[None] * 4] * 2
    rows = evaluated(prompts(2), Policy(model()), Policy(model(1))).rows(0)
    assert all(r["kl"] and r["reference_completion"] is not None and r["reward"] is None for r in rows)


def test_completions_are_written_with_their_tokens_and_the_best_is_first_to_read(tmp_path):
    asked = [replace(p, answer=a) for p, a in zip(prompts(2), ("fine", "no"), strict=True)]
    found = evaluated(asked, parrot(" fine"), Policy(model(1)), ExactMatch(ignore_case=False))
    write_completions(tmp_path, found)
    rows = pq.read_table(tmp_path / "completions.parquet").to_pylist()
    assert [r["prompt_id"] for r in rows] == [p.prompt_id for p in asked]
    assert rows[0]["messages"] == asked[0].messages
    assert [(r["completion"], r["reward"], r["ended"]) for r in rows] == [("fine", 1.0, True), ("fine", 0.0, True)]
    assert [TOKENIZER.decode(r["token_ids"]) for r in rows] == [" fine<|im_end|>"] * 2
    assert all(isinstance(r["log_ratio"], float) and r["ref_completion"] is not None for r in rows)
    text = (tmp_path / "completions.md").read_text()
    assert text.index(asked[0].prompt_id) < text.index(asked[1].prompt_id)
    assert text.count("> fine\n") == 2
    assert text.index("(reward 1, log-ratio") < text.index("(reward 0, log-ratio")


def test_completions_of_tool_calls_of_any_shape_are_written(tmp_path):
    calls = [[{"name": "f", "arguments": {"x": 1}}], [{"name": "g", "arguments": "y"}]]
    talks = [[user("go"), {"role": "assistant", "content": "", "tool_calls": c}, user("on")] for c in calls]
    asked = [replace(p, messages=m) for p, m in zip(prompts(2), talks, strict=True)]
    write_completions(tmp_path, evaluated(asked, Policy(model()), None))
    table = pq.read_table(tmp_path / "completions.parquet")
    assert messages_in(table["messages"]) == talks
    assert table["reward"].to_pylist() == [None, None]
