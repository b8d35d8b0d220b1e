"""`load_policy` builds the policy of a run: model, adapter, value head, on one process or on ranks that share it."""

import copy
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, PreTrainedModel, PreTrainedTokenizerBase

from shiqrun.errors import InputError
from shiqrun.models.early_sharding import share_empty
from shiqrun.models.known_fingerprint import KnownFingerprint
from shiqrun.models.outline import build_outline
from shiqrun.models.policy import Policy, ValueHead, prepare
from shiqrun.models.precision import build_model, half_weights
from shiqrun.models.pretrained import Pretrained
from shiqrun.training.plan import ModelChoice, Plan
from shiqrun.util import ranks
from shiqrun.util.kept_facts import KeptFacts

log = logging.getLogger("shiqrun")
Copier = Callable[[PreTrainedModel], PreTrainedModel]
"""Copies a model, for a value network that starts from the policy's weights."""


def load_policy(plan: Plan, tokenizer: PreTrainedTokenizerBase, kept: KeptFacts) -> tuple[Policy, str]:
    """Return the policy and the fingerprint of its weights; ranks that share the weights read a part of them each.

    Args:
        plan: of the run.
        tokenizer: of the model.
        kept: fingerprints that earlier runs have computed.

    Raises:
        InputError: the model cannot be loaded, or does not fit the method.
    """
    known = KnownFingerprint(_files(plan.choice), (plan.hardware.dtype, plan.choice), kept)
    shares = plan.hardware.strategy == "fsdp" and ranks.world() > 1
    outline = build_outline(plan.choice, tokenizer, plan.hardware.dtype) if shares else None
    if outline is None:
        model = build_model(plan.choice, tokenizer, plan.seed, plan.hardware.dtype)
        _expect_float32(plan, model)
        weights = known.of(model)
        return _build_policy(plan, model), weights
    weights = ranks.broadcast_object(known.of(outline.model, outline.fingerprint) if ranks.rank() == 0 else "")
    policy = _build_policy(plan, outline.model, outline.copied)
    share_empty(policy, outline.fill, plan.hardware.device())
    log.info("each of %d processes reads its rows of the weights", ranks.world())
    return policy, weights


def _build_policy(plan: Plan, model: PreTrainedModel, copy_of: Copier = copy.deepcopy) -> Policy:
    """Return the policy around a model: adapters, checkpointing and the value head as the plan asks."""
    value = _value_head(plan, model, copy_of)
    return Policy(prepare(model, plan.model), autocast=plan.hardware.autocast(), value=value)


def _value_head(plan: Plan, model: PreTrainedModel, copy_of: Copier) -> ValueHead | None:
    """Return the head whose output the loss reads as `policy.value`, or None if it reads none.

    Raises:
        InputError: a reward model on an architecture that `transformers` cannot load as a classifier.
    """
    wanted = plan.needs
    width = model.get_output_embeddings().weight.shape[1]
    if "score" in wanted:
        if type(model.config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
            raise InputError(f"model: transformers has no sequence classifier on {type(model).__name__} to save")
        if not model.config.get_text_config().tie_word_embeddings:
            model.get_output_embeddings().requires_grad_(False)  # no loss reads it, and ranks exchange what is trained
        return ValueHead(width, "action")
    if "value" not in wanted:
        return None
    if plan.algo.value != "network":
        return ValueHead(width, "state")
    own = prepare(copy_of(model), replace(plan.model, lora_r=0)).base_model
    return ValueHead(width, "state", own, autocast=plan.hardware.autocast())


def _expect_float32(plan: Plan, model: PreTrainedModel) -> None:
    """Check that a model has 16-bit weights only where they are rounded stochastically.

    Raises:
        InputError: a `model` of the user's own has some, which AdamW would leave where they are.
    """
    half = half_weights(model)
    if half and (plan.hardware.weights != "bf16" or any(p.dtype == torch.float16 for p in model.parameters())):
        raise InputError(
            f"model: {len(half)} of its weights, {half[0]} among them, have 16 bits, and most would never move: at a "
            "learning rate of 1e-5 AdamW's updates are lost in rounding; build the model in float32, or with bfloat16 "
            "weights set hardware.weights=bf16, which rounds stochastically"
        )


def _files(choice: ModelChoice) -> list[Path]:
    """Return the files that a model is loaded from, where the choice knows them."""
    return choice.files() if isinstance(choice, Pretrained) else []
