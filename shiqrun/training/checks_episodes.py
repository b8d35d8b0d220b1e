"""This module has the rules on what a run samples: completions that a reward scores, or episodes of an environment.

See `checks.py`: a rule returns what is wrong and what to set instead, or None.
"""

from shiqrun.rollout.settings import RolloutSettings, VllmRollouts
from shiqrun.training.plan import Plan


def data_can_be_sampled(plan: Plan, rollout: RolloutSettings) -> str | None:
    """Rollouts are completions of prompts, or episodes of an environment, which a vLLM server cannot play."""
    data = plan.names["data"]
    if plan.source.answers_back() and plan.source.environment() is None:
        return f"rollout: data={data} is solved exactly and never sampled; set rollout=none, or see data=programs"
    if plan.source.environment() is not None and isinstance(rollout, VllmRollouts):
        return f"rollout=vllm samples single completions, and data={data} answers back; set rollout=local (or ray)"
    return None


def samples_have_a_reward(plan: Plan, rollout: RolloutSettings) -> str | None:
    """Sampled completions need a reward that scores them: that of the evaluation. An environment pays its own."""
    if plan.source.environment() is None:
        return None if plan.reward is not None else "rollout: what is sampled needs a reward; set eval.reward=NAME"
    if plan.reward is not None:
        return f"eval.reward: the environment of data={plan.names['data']} pays its own rewards; leave it out"
    return None


def episodes_need_no_prompt_values(plan: Plan, rollout: RolloutSettings) -> str | None:
    """What the reference earns on a prompt is estimated from single completions, which earn nothing in an episode."""
    if plan.source.environment() is not None and plan.reads_values:
        return (
            f"algo={plan.name} reads what the reference earns on each prompt by single completions, but "
            f"data={plan.names['data']} answers back over several turns; choose shiq, oreo, copg, ppo, grpo or rloo"
        )
    return None
