"""What evaluates the policy of a run by its own answers: prompts, or episodes against functions."""

import logging
from typing import TYPE_CHECKING

from transformers import PreTrainedTokenizerBase

from shiqrun.batching.logged_data import Encoded, examples_of
from shiqrun.console import track
from shiqrun.data.bfcl import Bfcl
from shiqrun.data.treasure import Treasure
from shiqrun.errors import InputError
from shiqrun.evaluation.episodes import EpisodeEvaluator, chosen_dialogues
from shiqrun.evaluation.evaluator import CompletionEvaluator, PolicyEvaluator
from shiqrun.losses.requirements import needs_of
from shiqrun.rewards.labels import in_one_unit
from shiqrun.sampling.prompts import choose_prompts, expect_prompts, fits_reward

if TYPE_CHECKING:
    from shiqrun.training.plan import Plan

log = logging.getLogger("shiqrun")


def evaluator_of(plan: "Plan", tokenizer: PreTrainedTokenizerBase, encoded: Encoded) -> PolicyEvaluator | None:
    """What lets the policy answer validation prompts or play episodes; None where that is not asked or says nothing.

    Not on treasure, which is evaluated exactly, nor for reward models; for a method without a reference only with a
    reward.

    Raises:
        InputError: no prompt to answer, or a reward model that was trained on one.
    """
    settings, answers = plan.eval, not {"score"} & needs_of(plan.loss) and not isinstance(plan.source, Treasure)
    valued = "prompt_value" in needs_of(plan.loss) or plan.rollout is not None  # by this reward
    if plan.reward is not None and not (valued or (answers and settings.every and settings.max_prompts)):
        raise InputError(
            f"eval.reward: nothing would be scored with data={plan.names['data']}, algo={plan.names['algo']}, "
            f"eval.every={settings.every}, eval.max_prompts={settings.max_prompts}; leave it out"
        )
    if not answers or not (settings.every and settings.max_prompts):
        return None
    if isinstance(plan.source, Bfcl):
        return _episodes(plan, plan.source, tokenizer)
    if plan.algo.reference == "none" and plan.reward is None:
        return None
    limit = plan.data.max_length or plan.choice.context()
    prompts, left_out = choose_prompts(
        track(examples_of(plan.source, "val", plan.data), "reading validation prompts"),
        tokenizer,
        number=settings.max_prompts,
        room=None if limit is None else limit - settings.max_new_tokens,
        seen=encoded.prompts,
        fits=fits_reward(plan.reward, settings.max_new_tokens),
    )
    try:
        expect_prompts(prompts, left_out, settings.max_new_tokens)
    except InputError as error:
        if plan.reward is not None:
            raise
        if left_out:
            log.warning("%s; the policy's KL is not measured", error)
        return None
    if plan.reward is not None:
        plan.reward.refuse_seen([p.messages for p in prompts])
        log.info("the reward of answers: %s", ", ".join(f"{k} {v}" for k, v in plan.reward.about().items()))
    beta, tokens = plan.loss.keywords.get("beta"), plan.trainer.micro_batch_tokens
    if plan.reward is not None and not in_one_unit(plan.source, plan.reward):
        log.info(
            "the data's rewards are not known to be those of eval.reward (`shiqrun score` makes such data), so beta "
            "may have another unit: there is no val/regularised_return, and the best checkpoint goes by val/reward"
        )
        beta = None
    return CompletionEvaluator(prompts, tokenizer, settings, tokens=tokens, reward=plan.reward, beta=beta)


def _episodes(plan: "Plan", source: Bfcl, tokenizer: PreTrainedTokenizerBase) -> EpisodeEvaluator:
    if plan.reward is not None:
        raise InputError("eval.reward: data=bfcl judges every turn by its functions; leave it out")
    if source.split != "test":
        raise InputError(
            f"data.split={source.split}: a run is evaluated on the test samples while it trains; leave it out, and ask "
            f"`shiqrun eval run=RUN_DIR data.split={source.split}` afterwards"
        )
    return EpisodeEvaluator(
        chosen_dialogues(source.evaluated(), plan.eval.max_prompts, plan.data.limit),
        source.rules,
        tokenizer,
        plan.eval,
        tokens=plan.trainer.micro_batch_tokens,
        context=plan.choice.context(),
        beta=plan.loss.keywords.get("beta"),
    )
