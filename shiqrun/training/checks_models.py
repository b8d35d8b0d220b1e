"""These rules say before training what a model or its chat template cannot do as the losses take for granted.

As in `checks_warnings.py`, a rule returns what is unusual and what to change, or None.
"""

from typing import Any

from shiqrun.sampling.prompts import stop_tokens
from shiqrun.training.plan import Run

CHECKED = 200
"""Number of training trajectories whose last action is looked at."""
ROPES_OF_LENGTH = ("dynamic", "longrope")
"""Kinds of position scaling whose frequencies change with the length of the sequence, beyond the original context."""


def turn_ends_are_actions(run: Run) -> str | None:
    """The token that ends a completion should be an action of the logged trajectories."""
    plan = run.plan
    if "score" in plan.needs or plan.source.evaluated_exactly or plan.data.train_on != "assistant":
        return None
    ends = set(stop_tokens(run.tokenizer, run.policy.model))
    first = run.encoded.train.trajectories[:CHECKED]
    if not ends or not len(first) or any(int(t.input_ids[t.action_index[-1]]) in ends for t in first):
        return None
    names = ", ".join(map(str, run.tokenizer.convert_ids_to_tokens(sorted(ends))))
    return (
        f"none of the first {len(first)} completions ends with a token that stops sampling ({names}), so the policy "
        "learns nothing about where to end; if the chat template marks the assistant's words alone, let its "
        "{% generation %} block include the token that closes the turn"
    )


def positions_do_not_depend_on_the_length(run: Run) -> str | None:
    """Frequencies that grow with the sequence make a cached token's logits other than those of the whole sequence."""
    config: Any = run.policy.causal_lm.config.get_text_config()
    scaling = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kind = scaling.get("rope_type", scaling.get("type"))
    original = (
        scaling.get("original_max_position_embeddings")
        or getattr(config, "original_max_position_embeddings", None)
        or getattr(config, "max_position_embeddings", None)
    )
    longest = _longest(run)
    if kind not in ROPES_OF_LENGTH or original is None or longest <= original:
        return None
    return (
        f"this model scales positions by {kind}, and sequences have up to {longest} tokens, more than its original "
        f"context of {original}: what is sampled with a cache has other log-probabilities than what is scored at once; "
        f"set data.max_length={original} and fewer max_new_tokens, or give it another rope_scaling"
    )


def _longest(run: Run) -> int:
    """Return the largest number of tokens of a logged trajectory, or of a prompt with a sampled completion."""
    plan, rows = run.plan, run.encoded.train
    room = plan.eval.max_new_tokens if run.evaluator is not None else 0
    room = max(room, plan.rollout.max_new_tokens if plan.rollout is not None else 0)
    prompt = max((int(t.action_index[0]) for t in rows.trajectories), default=0) if room else 0
    return max(int(rows.lengths.max(initial=0)), prompt + room)


def router_is_balanced(run: Run) -> str | None:
    """A mixture of experts is pretrained with an auxiliary loss that balances its router, which no method here adds."""
    config: Any = run.policy.causal_lm.config.get_text_config()
    weight = getattr(config, "router_aux_loss_coef", None)
    if not weight:
        return None
    return (
        f"this model is a mixture of experts; the auxiliary loss of its router (router_aux_loss_coef={weight:g}) is "
        "not added to the method's loss, so that the load of its experts may drift"
    )


RULES = (turn_ends_are_actions, positions_do_not_depend_on_the_length, router_is_balanced)
"""The rules about models and templates, in the order in which their messages are logged."""
