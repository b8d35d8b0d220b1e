"""`evaluator_of` decides whether a run samples completions or episodes to evaluate its policy, and by which reward."""

import logging
from collections.abc import Set
from dataclasses import replace
from typing import TYPE_CHECKING

from transformers import PreTrainedTokenizerBase

from shiqrun.batching.encoded_data import EncodedData
from shiqrun.batching.prompt_identity import rendered_prompt_keys
from shiqrun.batching.rows import Rows
from shiqrun.batching.splits import Split, examples_of
from shiqrun.data.chats import prompt_name
from shiqrun.errors import InputError
from shiqrun.evaluation.build import build_evaluator
from shiqrun.evaluation.evaluator import PolicyEvaluator
from shiqrun.losses.requirements import needs_of
from shiqrun.rewards.units import of_source, unit_of
from shiqrun.sampling.prompts import NoPrompts
from shiqrun.settings import SamplingSettings
from shiqrun.training.checks_units import OVERRIDE, logged_unit

if TYPE_CHECKING:
    from shiqrun.training.plan import Plan

log = logging.getLogger("shiqrun")


def evaluator_of(plan: "Plan", tokenizer: PreTrainedTokenizerBase, encoded: EncodedData) -> PolicyEvaluator | None:
    """Return what evaluates a run's policy by sampling; None where that is not asked for or would say nothing.

    Nothing is sampled where the optimum is known exactly, nor for reward models; for a method without a reference
    completions are sampled only if a reward scores them.

    Raises:
        InputError: a reward that would score nothing, no prompt to complete, or a reward model that was trained on one.
    """
    settings = plan.eval
    samples = "score" not in needs_of(plan.loss) and not plan.source.evaluated_exactly
    asked = bool(samples and settings.every and settings.max_prompts)
    scores_training = plan.reads_values or plan.rollout is not None
    if plan.reward is not None and not (scores_training or asked):
        raise InputError(
            f"eval.reward: nothing would be scored with data={plan.names['data']}, algo={plan.names['algo']}, "
            f"eval.every={settings.every}, eval.max_prompts={settings.max_prompts}; leave it out"
        )
    if not asked:
        return None
    if plan.source.environment() is not None:
        plan.source.expect_training()
    elif plan.algo.reference == "none" and plan.reward is None:
        return None
    try:
        return _on_split(plan, tokenizer, encoded, "selection" if settings.test_prompts else "val", settings)
    except NoPrompts as error:
        if plan.reward is not None:
            raise
        if error.left_out:
            log.warning("%s; the policy's KL is not measured", error)
        return None


def tester_of(plan: "Plan", tokenizer: PreTrainedTokenizerBase, encoded: EncodedData) -> PolicyEvaluator | None:
    """Return what evaluates the policy on the test split after the last step, for a run that samples completions.

    Raises:
        InputError: there is no prompt to answer, or a reward model was trained on one.
    """
    settings = replace(plan.eval, max_prompts=plan.eval.test_prompts)
    return _on_split(plan, tokenizer, encoded, "test", settings)


def _on_split(
    plan: "Plan", tokenizer: PreTrainedTokenizerBase, encoded: EncodedData, split: Split, settings: SamplingSettings
) -> PolicyEvaluator:
    """Return the evaluator of a held-out split; none of its prompts is trained on, and no test prompt validated on."""

    def seen() -> Set[str]:
        known = encoded.prompts | encoded.prompt_keys()
        if split == "test":
            others = {prompt_name(e.messages): e.messages for e in examples_of(plan.source, "selection", plan.data)}
            known = known | frozenset(others) | frozenset(rendered_prompt_keys(others.values(), tokenizer))
        return known

    return build_evaluator(
        plan.source,
        plan.data,
        tokenizer,
        settings,
        name=plan.names["data"],
        split=split,
        reward=plan.reward,
        beta=_beta_in_reward_units(plan, encoded.train),
        tokens=plan.trainer.micro_batch_tokens,
        context=plan.choice.context(),
        training_prompts=seen,
    )


def _beta_in_reward_units(plan: "Plan", logged: Rows) -> float | None:
    """Return the method's beta, or None where the evaluation's rewards may have another unit than the data's."""
    beta = plan.beta
    if "quantile" in plan.needs:
        log.info(f"algo={plan.name}: beta is in quantiles per nat, so there is no val/regularised_return")
        return None
    if plan.reward is None or plan.source.environment() is not None:
        return beta
    log.info("the reward of completions: %s", ", ".join(f"{k} {v}" for k, v in plan.reward.about().items()))
    if logged_unit(plan, logged) == "same":
        return beta
    rewards = of_source(plan.names["data"], plan.source, logged.returns)
    log.info(
        f"logged rewards are {str(rewards) or 'not there'}, those of eval.reward {unit_of(plan.reward)}, which is not "
        "known to be one unit (`shiqrun score` makes such data), so beta may have another: there is no "
        f"val/regularised_return, and the best checkpoint goes by val/reward; {OVERRIDE} says that they agree"
    )
    return None
