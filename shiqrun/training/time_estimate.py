"""`seconds_of_run` estimates how long a prepared run takes on this machine, from one micro-batch and one evaluation."""

import time
from collections.abc import Callable

import torch

from shiqrun.evaluation.evaluator import CompletionEvaluator
from shiqrun.models.policy import Policy
from shiqrun.sampling.sampler import CompletionSampler
from shiqrun.training.plan import Run

ANSWERED = 16
"""Prompts whose completions are timed on a CPU, where the time grows with their number."""


def seconds_of_run(run: Run) -> float:
    """Return about how many seconds the steps and evaluations of a run take; episodes are not counted.

    One micro-batch is scored and differentiated, and some prompts are answered, on the run's own device; the policy's
    weights stay as they are.
    """
    plan = run.plan
    device = plan.hardware.device()
    policy = run.policy.to(device)
    tokens = float(run.encoded.train.lengths.mean()) * plan.trainer.batch_size * plan.algo.epochs * run.max_steps
    training = _seconds_a_token(run, policy) * tokens
    looks = 0 if not plan.eval.every else 2 + (run.max_steps - 1) // plan.eval.every
    asked = plan.eval.samples_per_prompt * plan.eval.max_prompts
    tested = plan.eval.samples_per_prompt * plan.eval.test_prompts
    answering = _seconds_an_answer(run, policy) * ((looks + 1) * asked + 2 * tested)  # the reference answers once too
    exactly = _seconds_exactly(run, policy) * looks
    run.policy.cpu()
    return training + answering + exactly


def _timed(work: Callable[[], object]) -> float:
    """Return the seconds that some work takes the second time."""
    work()
    began = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def _seconds_a_token(run: Run, policy: Policy) -> float:
    """Return the time of scoring and differentiating one token."""
    rows, trainer = run.encoded.train, run.plan.trainer
    some = [rows.units[i] for i in range(min(rows.units_per_step(trainer.batch_size), len(rows.units)))]
    picked = rows.micro_batches(some, trainer.micro_batch_tokens)[0]
    batch = rows.collate(picked).to(run.plan.hardware.device())

    def differentiate() -> None:
        scores = policy(batch)
        (scores.logit - scores.log_partition).sum().backward()
        policy.zero_grad(set_to_none=True)

    return _timed(differentiate) / int(rows.lengths[picked].sum())


def _seconds_an_answer(run: Run, policy: Policy) -> float:
    """Return the time of sampling and measuring one completion; 0 where none is sampled."""
    if not isinstance(run.evaluator, CompletionEvaluator):
        return 0.0
    evaluator, on_cpu = run.evaluator, run.plan.hardware.device().type == "cpu"
    some = evaluator.prompts[: ANSWERED if on_cpu else run.plan.eval.batch_size]
    sampler = CompletionSampler(some, evaluator.tokenizer, evaluator.settings, evaluator.tokens)
    policy.eval()
    began = time.perf_counter()
    samples = sampler.measure(sampler.sample(policy), policy, None)
    policy.train()
    return (time.perf_counter() - began) / len(samples)


def _seconds_exactly(run: Run, policy: Policy) -> float:
    """Return the time of an exact evaluation; 0 where there is none."""
    if run.plan.beta is None or not run.plan.source.evaluated_exactly:
        return 0.0
    exact = run.plan.source.exact(run.tokenizer, split="val", beta=run.plan.beta)
    if exact is None:
        return 0.0
    exact.set_reference(policy.model)
    return _timed(lambda: exact.evaluate(policy.model))
