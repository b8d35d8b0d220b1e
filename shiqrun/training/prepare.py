"""`prepare_run` loads the data and models of a plan, and finds before training all that can be found wrong."""

import logging
import tempfile
from pathlib import Path

import torch
from lightning.pytorch import seed_everything
from transformers import PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from shiqrun.batching.columns import AnchorTokens
from shiqrun.batching.logged_data import EncodedData, examples_of, load
from shiqrun.batching.reward_offsets import offset_center
from shiqrun.batching.row_store import RowStore
from shiqrun.batching.rows import Rows
from shiqrun.console import quiet_other_ranks, track, waiting
from shiqrun.errors import InputError
from shiqrun.models.model_checks import check_model
from shiqrun.models.policy import Policy
from shiqrun.models.sharding import in_step
from shiqrun.rollout.other_sources import load_further_rows
from shiqrun.training.annotate import RunFacts
from shiqrun.training.build_evaluator import evaluator_of, tester_of
from shiqrun.training.checks import check_settings
from shiqrun.training.checks_data import (
    check_data,
    every_trajectory_has_a_reward,
    raise_if_wrong,
    warning_of_levels,
)
from shiqrun.training.checks_units import unit_is_mixed
from shiqrun.training.checks_vllm import server_is_there
from shiqrun.training.checks_warnings import warnings_of
from shiqrun.training.load_policy import load_policy
from shiqrun.training.plan import Plan, Run
from shiqrun.util.kept_facts import KeptFacts

log = logging.getLogger("shiqrun")


def prepare_run(plan: Plan, *, keeps_rows: bool = True) -> Run:
    """Load the data and the model of a plan, check all that can be known before training, and return the run.

    Args:
        plan: the settings.
        keeps_rows: encoded rows are written to `cache_dir`; a dry run only reads what is there.

    Raises:
        InputError: settings that contradict each other, data or a model that cannot be used, or that do not fit the
            method.
    """
    check_settings(plan)
    raise_if_wrong(server_is_there(plan))
    if plan.algo.reference == "cached":
        _expect_writable(plan.cache_dir)
    quiet_other_ranks()
    seed_everything(plan.seed, verbose=False)
    disable_progress_bar()
    set_verbosity_error()
    tokenizer = plan.choice.tokenizer(plan.source, examples_of(plan.source, "train", plan.data))
    encoded = _load_data(plan, tokenizer, RowStore(plan.cache_dir / "rows", keeps_rows))
    further = _load_further(plan, tokenizer, encoded.train)
    raise_if_wrong(unit_is_mixed(plan, encoded.train, further))
    with waiting("loading the model, and checking how it reads batches"):
        kept = KeptFacts(plan.cache_dir / "models")
        policy, weights = load_policy(plan, tokenizer, kept)
        device = plan.hardware.device() if plan.hardware.devices == 1 else torch.device("cpu")
        with in_step(policy):
            why_padded = check_model(policy, encoded.train, weights, kept, device)
        facts = _facts(plan, policy, encoded.train, why_padded)
    evaluator = evaluator_of(plan, tokenizer, encoded)
    tests = plan.eval.test_prompts and evaluator is not None
    run = Run(
        plan,
        tokenizer,
        encoded,
        policy,
        weights,
        facts,
        max_steps=plan.trainer.max_steps or _steps_of_epochs(plan, encoded.train),
        evaluator=evaluator,
        scored_by=None if plan.reward is None else plan.reward.fingerprint(),
        further=further,
        tester=tester_of(plan, tokenizer, encoded) if tests else None,
    )
    for warning in warnings_of(run):
        log.warning(warning)
    return run.with_facts(facts)


def load_for_any(plan: Plan, *, keeps_rows: bool = True) -> EncodedData:
    """Return a plan's data for no method in particular; see `of_method`.

    Raises:
        InputError: the data cannot be read, or no trajectory is left.
    """
    disable_progress_bar()
    set_verbosity_error()
    tokenizer = plan.choice.tokenizer(plan.source, examples_of(plan.source, "train", plan.data))
    store = RowStore(plan.cache_dir / "rows", keeps_rows)
    context = plan.choice.context()
    return load(
        plan.source, tokenizer, plan.data, context=context, store=store, progress=lambda items, what: track(items, what)
    )


def _load_data(plan: Plan, tokenizer: PreTrainedTokenizerBase, store: RowStore) -> EncodedData:
    """Read and encode the data set, and check that the method can learn from it.

    Raises:
        InputError: no trajectory is left, or the method reads what the data do not have.
    """
    encoded = load(
        plan.source,
        tokenizer,
        plan.data,
        context=plan.choice.context(),
        compared_by=plan.compared_by,
        together=plan.trainer.prompts_together,
        store=store,
        progress=lambda items, what: track(items, what),
    )
    check_data(plan, encoded)
    if warning := warning_of_levels(plan, encoded.train):
        log.warning(warning)
    if not len(encoded.val) and plan.eval.every:
        log.warning("the validation split has no prompt, so nothing is evaluated; raise data.val_fraction")
    return encoded


def _load_further(plan: Plan, tokenizer: PreTrainedTokenizerBase, logged: Rows) -> Rows | None:
    """Return the rows of the file `rollout.path` that rollouts are mixed with, or None without one.

    Raises:
        InputError: it cannot be read, no trajectory is left, or one lacks a reward that the method reads.
    """
    if plan.rollout is None or plan.rollout.path is None:
        return None
    rows = load_further_rows(
        plan.rollout.path,
        plan.source,
        plan.data,
        tokenizer,
        context=plan.choice.context(),
        compared_by=plan.compared_by,
        together=logged.together,
    )
    raise_if_wrong(every_trajectory_has_a_reward(plan, rows))
    return rows


def _facts(plan: Plan, policy: Policy, logged: Rows, why_padded: str | None) -> RunFacts:
    """Return what the run knows of its rows before prompt values are, and why batches are padded, if they are."""
    anchor = None
    if plan.algo.anchor and plan.algo.anchor_from == "uniform":
        vocabulary = policy.causal_lm.get_output_embeddings().weight.shape[0]
        anchor = AnchorTokens(plan.algo.anchor_tokens, vocabulary, plan.seed)
    if why_padded:
        log.info("batches are padded and repeat shared prompts, because packed ones cannot be read: %s", why_padded)
    return RunFacts(
        packed=why_padded is None,
        device=plan.hardware.device().type,
        anchor=anchor,
        reward_offset=plan.algo.reward_offset,
        center=offset_center(logged, plan.algo.reward_offset),
        mismatched="kl_estimate" in plan.needs,
    )


def _steps_of_epochs(plan: Plan, logged: Rows) -> int:
    return (plan.trainer.max_epochs or 0) * logged.steps_per_epoch(plan.trainer.batch_size)


def _expect_writable(directory: Path) -> None:
    """Check that files can be written in a directory, which is made if need be.

    Raises:
        InputError: they cannot.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise InputError(
            f"cache_dir={directory}: cannot be written ({error.strerror}); give another cache_dir"
        ) from error
