"""A plan becomes a run: data and models are loaded, and everything that can be found wrong is found before training."""

import copy
import logging
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from lightning.pytorch import seed_everything
from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, PreTrainedModel
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from shiqrun.batching.logged_data import Encoded, examples_of, load, set_offset
from shiqrun.batching.rows import Rows
from shiqrun.console import quiet_other_ranks, track
from shiqrun.errors import InputError
from shiqrun.losses.requirements import compares_completions, needs_of
from shiqrun.models.policy import Policy, ValueHead, cannot_pack, check_head, prepare
from shiqrun.models.reference import weights_fingerprint
from shiqrun.training.build_evaluator import evaluator_of
from shiqrun.training.checks import expect_fit, expect_values
from shiqrun.training.other_sources import further_rows
from shiqrun.training.plan import Plan, Run

log = logging.getLogger("shiqrun")


def ready(plan: Plan) -> Run:
    """Loads data and model and checks all that can be known before training.

    Raises:
        InputError: data or model that cannot be used, or that do not fit the method.
    """
    _check_settings(plan)
    if plan.algo.reference == "cached":
        _writable(plan.cache_dir)
    quiet_other_ranks()
    seed_everything(plan.seed, verbose=False)
    disable_progress_bar()
    set_verbosity_error()
    tokenizer = plan.choice.tokenizer(plan.source, examples_of(plan.source, "train", plan.data))
    encoded = load(
        plan.source,
        tokenizer,
        plan.data,
        context=plan.choice.context(),
        compared_by=plan.names["algo"] if compares_completions(plan.loss) else None,
        together=plan.trainer.prompts_together,
        progress=lambda items, what: track(items, what),
    )
    _check_needs(plan, encoded)
    if not len(encoded.val) and plan.eval.every:
        log.warning("no prompt fell to the validation split: nothing is evaluated; raise data.val_fraction")
    offset = set_offset(encoded, plan.algo.reward_offset)
    model = plan.choice.build(tokenizer, plan.seed)
    weights = weights_fingerprint(model)
    value = _value_head(plan, model)
    policy = Policy(prepare(model, plan.model), autocast=plan.hardware.autocast(), value=value)
    if plan.algo.anchor and plan.algo.anchor_from == "uniform":
        vocabulary = policy.causal_lm.get_output_embeddings().weight.shape[0]
        for rows in (encoded.train, encoded.val):
            rows.anchor = (plan.algo.anchor_tokens, vocabulary, plan.seed)
    check_head(policy, encoded.train.collate([int(encoded.train.lengths.argmin())]))
    _pack(policy, encoded, plan.hardware.device().type)
    evaluator = evaluator_of(plan, tokenizer, encoded)
    scored_by = None if plan.reward is None else plan.reward.fingerprint()
    steps, further = _steps(plan, encoded), further_rows(plan, tokenizer, encoded.train)
    if further is not None and "rewards" in needs_of(plan.loss):
        _expect_rewards(further, plan.names["algo"])
    return Run(plan, tokenizer, encoded, policy, weights, offset, steps, evaluator, scored_by, further)


def _pack(policy: Policy, encoded: Encoded, device: str) -> None:
    """Has both splits read without padding if the policy can, and says so once if it cannot."""
    why = cannot_pack(policy, encoded.train)
    for rows in (encoded.train, encoded.val):
        rows.packed, rows.device = why is None, device
    if why:
        log.info("batches are padded, longest together, and prompts repeated: %s reads no packed ones", why)


def _check_needs(plan: Plan, encoded: Encoded) -> None:
    wanted, name = needs_of(plan.loss), plan.names["algo"]
    if "rewards" in wanted:
        _expect_rewards(encoded.train, name)
        if plan.data.train_on != "assistant":
            raise InputError(
                f"data.train_on=response is for algo=sft: {name} would take the environment's tokens for actions"
            )
    if plan.algo.reward_offset == "group_mean" and encoded.train.group.max() + 1 == len(encoded.train):
        raise InputError(
            "algo.reward_offset=group_mean takes every prompt's mean return, but each prompt has one completion, so "
            "that all rewards would be 0; use mean or none"
        )
    if "rewards" in wanted:
        _warn_of_levels(plan, encoded.train)
    if "order" in wanted and not _decided(encoded.train):
        raise InputError(f"algo={name} needs a better and a worse completion, but every pair of the data is a tie")


def _expect_rewards(rows: Rows, name: str) -> None:
    bare = [t.source for t in rows.trajectories if t.rewards is None]
    if bare:
        raise InputError(
            f"algo={name} needs rewards, but {len(bare)} of {len(rows)} trajectories have none, first "
            f"{bare[0]}; add a column `reward` or `rewards`, or set data.pair_rewards=[1,-1] for pairs"
        )


def _warn_of_levels(plan: Plan, rows: Rows) -> None:
    """The level of rewards changes what finite data teach ShiQ about actions that they never show."""
    level, name = rows.returns, plan.names["algo"]
    if name.startswith("shiq") and plan.algo.reward_offset == "none" and level.max() <= 0 and level.min() < 0:
        log.warning(
            "no return is above 0 (mean %.3g): negative returns push the probability of %s to tokens without data; "
            "think of algo.reward_offset=mean or algo.anchor, and watch train/logratio_mean",
            level.mean(),
            name,
        )


def _decided(rows: Rows) -> bool:
    """Whether some prompt has completions of different return."""
    level = rows.returns
    return any(np.ptp(level[unit]) > 1e-6 * np.abs(level[unit]).sum() for unit in rows.units)


def _value_head(plan: Plan, model: PreTrainedModel) -> ValueHead | None:
    """The head that the loss reads as `policy.value`, if it reads one.

    Raises:
        InputError: a reward model on an architecture that `transformers` cannot load as a classifier.
    """
    wanted = needs_of(plan.loss)
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
    own = prepare(copy.deepcopy(model), replace(plan.model, lora_r=0)).base_model
    return ValueHead(width, "state", own, autocast=plan.hardware.autocast())


def _writable(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise InputError(
            f"cache_dir={directory}: cannot be written ({error.strerror}); give another cache_dir"
        ) from error


def _check_settings(plan: Plan) -> None:
    """Settings that do not fit the method.

    Raises:
        InputError: naming the setting and what to set instead.
    """
    wanted, name, algo = needs_of(plan.loss), plan.names["algo"], plan.algo
    expect_fit(plan)
    if algo.reference == "adapter" and not plan.model.lora_r:
        raise InputError(
            "algo.reference=adapter needs a LoRA adapter to switch off; set model.lora_r=16, or reference=cached"
        )
    quantize = getattr(plan.choice, "quantize", None)
    if quantize and plan.hardware.device().type != "cuda":
        raise InputError(f"model.quantize={quantize} needs a CUDA GPU; set hardware=gpu")
    if "prompt_value" in wanted:
        expect_values(plan)
    elif algo.monte_carlo or algo.targets or algo.values:
        raise InputError(
            f"algo.values, algo.targets and algo.monte_carlo are for methods with prompt values, not {name}"
        )
    if algo.reference == "none" and wanted and "score" not in wanted:
        raise InputError(f"algo.reference=none is for algo=sft; {name} needs cached, frozen or adapter")
    if "value" not in wanted and (algo.value or algo.value_lr_ratio):
        raise InputError(f"algo.value and algo.value_lr_ratio are for methods with a value function; {name} has none")
    if "proximal" not in wanted and algo.epochs > 1:
        raise InputError(f"algo.epochs={algo.epochs}: several updates on a batch are for ppo, not {name}; leave it out")
    if algo.anchor and (algo.reference == "none" or "beta" not in plan.loss.keywords):
        raise InputError(f"algo.anchor holds logits at a reference's, and {name} has none")
    if algo.anchor and algo.anchor_from == "policy" and algo.reference == "cached":
        raise InputError(
            "algo.anchor_from=policy draws new tokens at each step, which no cache has; set algo.reference=frozen "
            "(or adapter), or algo.anchor_from=uniform"
        )


def _steps(plan: Plan, encoded: Encoded) -> int:
    t = plan.trainer
    if t.max_steps is None and t.max_epochs is None:
        raise InputError("trainer.max_steps and trainer.max_epochs are both null; set one")
    return t.max_steps or (t.max_epochs or 0) * encoded.train.steps_per_epoch(t.batch_size)
