"""`with_estimates` gives a run its prompt values and value targets, from files or estimated before training."""

import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from shiqrun.estimates.prompt_values import soft_values
from shiqrun.estimates.value_cache import cached_prompt_rewards, read_prompt_rewards, read_prompts
from shiqrun.estimates.value_file import PromptRewards
from shiqrun.estimates.value_targets import number_of_targets, read_targets
from shiqrun.training.checks_data import (
    prompts_have_values,
    raise_if_wrong,
    returns_have_the_unit_of_values,
    some_action_has_a_target,
    warning_of_values,
)
from shiqrun.training.plan import Run

log = logging.getLogger("shiqrun")


def with_estimates(run: Run) -> tuple[Run, dict[str, Any]]:
    """Return the run with the prompt values and value targets that its method reads, and the cost for the summary.

    Prompt values are read from `algo.values`, or the reference answers every prompt first.

    Raises:
        InputError: values or targets made with another reference or reward, or of other data; rewards of another unit.
    """
    plan = run.plan
    if not plan.reads_values:
        return run, {}
    began = time.perf_counter()
    known, sampled_now = _known_values(run)
    for rows in run.all_rows():
        raise_if_wrong(prompts_have_values(rows, known))
    raise_if_wrong(returns_have_the_unit_of_values(plan, run.all_rows(), known))
    if warning := warning_of_values(plan, run.all_rows(), known):
        log.warning(warning)
    cost = {
        "seconds/values": time.perf_counter() - began,
        "values/prompts": len(known),
        "values/prompts_computed": sampled_now,
    }
    targets = None if plan.algo.targets is None else read_targets(Path(plan.algo.targets), run.weights, plan.reward)
    assert plan.beta is not None
    facts = replace(
        run.facts, beta=plan.beta, targets=targets, prompt_values=soft_values(known, plan.algo.value_beta or plan.beta)
    )
    if "quantile" in plan.needs:
        facts = replace(facts, reference_rewards={name: found.rewards for name, found in known.items()})
    run = run.with_facts(facts)
    if plan.algo.targets is not None:
        number = number_of_targets(run.encoded.train.columns["value_target"])
        raise_if_wrong(some_action_has_a_target(plan, number))
        log.info("%s: targets at %d of %d actions", plan.algo.targets, number, run.encoded.train.actions.sum())
        cost["targets/actions"] = number
    return run, cost


def _known_values(run: Run) -> tuple[dict[str, PromptRewards], int]:
    """Return the rewards of each prompt's completions, and the number of prompts that were sampled just now."""
    plan = run.plan
    if plan.algo.values is not None:
        return read_prompt_rewards(Path(plan.algo.values), run.weights, plan.reward), 0
    assert plan.reward is not None
    room = (plan.values.max_new_tokens, plan.choice.context())
    splits = read_prompts(plan.source, plan.data, run.tokenizer, *room)
    found = cached_prompt_rewards(
        run.policy,
        [prompt for prompts in splits.values() for prompt in prompts],
        run.tokenizer,
        plan.reward,
        plan.values,
        reference=run.weights,
        cache_dir=plan.cache_dir,
        device=plan.hardware.device(),
    )
    return found.known, found.new
