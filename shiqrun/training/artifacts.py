"""A finished run writes its artifacts: `policy/` and `adapter/` with model cards, `summary.json`."""

import copy
import importlib.metadata
import json
import platform
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

import shiqrun
from shiqrun.models.adapter import has_adapter, is_quantized, merge_adapter, save_adapter
from shiqrun.models.policy import Policy
from shiqrun.models.reference import weights_fingerprint
from shiqrun.rewards import provenance as trained_on
from shiqrun.util.atomic import atomic_directory, write_atomic
from shiqrun.util.code_version import git_commit
from shiqrun.util.quoting import near_or_portable

LIBRARIES = ("torch", "transformers", "lightning", "hydra-core", "peft", "bitsandbytes")

CARD = """\
---
library_name: {library}
tags: [shiqrun, {algo}]
---
# A model trained by shiqrun

`{algo}` on `{data}`, {steps} optimiser steps, starting from `{base}`, which is also its reference.

| setting | value |
|---|---|
{settings}

| metric, at the end | value |
|---|---|
{metrics}
{about}
Made by shiqrun {version}. The chat template in the tokenizer is the one that the policy was trained with.

{load}"""

LOAD = """\
    # in the run's directory
    from transformers import {auto}, AutoTokenizer
    model = {auto}.from_pretrained("{path}")
    tokenizer = AutoTokenizer.from_pretrained("{path}")
"""

LOAD_ADAPTER = """\
    # in the run's directory
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer
    base = AutoModelForCausalLM.from_pretrained("{base}")
    model = PeftModel.from_pretrained(base, "{path}")
    tokenizer = AutoTokenizer.from_pretrained("{path}")
"""

ADAPTER = """
This is the LoRA adapter alone, for `peft`, on the base model `{base}`; `../policy` has it merged.
"""

QUANTIZED = """
The adapter was trained on 4-bit weights (nf4). In `policy` it is added to the base model's own weights, in float32, so
its logits differ from those of training by the rounding to 4 bits.
"""

SCORES = """
The score of a conversation is read at the last token of the assistant's last turn: give the model the tokens up to
that one, itself included. It was trained on the pairs of {count} prompts; `{file}` holds their names (fingerprint
`{fingerprint}`), so that `shiqrun` refuses to evaluate with it on any of them. `val/accuracy` above, where there is
one, is the share of held-out pairs, of other prompts, in which it scores the chosen completion higher.
"""


def save_policy(policy: Policy, tokenizer: PreTrainedTokenizerBase, directory: Path, card: dict[str, Any]) -> str:
    """Save the policy as a directory that `AutoModelForCausalLM` loads with the same logits.

    A LoRA adapter is merged into it, and is also saved by itself, in `adapter/` beside it.

    Args:
        policy: the policy.
        tokenizer: of the policy, with the chat template that it was trained with.
        directory: replaced as a whole.
        card: what the model card says.

    Returns:
        The fingerprint of the saved weights.
    """
    about = QUANTIZED if is_quantized(policy.model) else ""
    if has_adapter(policy.model):
        apart = directory.parent / "adapter"
        base = save_adapter(policy.model, apart)
        named = near_or_portable(base, directory.parent)
        tokenizer.save_pretrained(apart)
        load = LOAD_ADAPTER.format(base=named, path=apart.name)
        _write_card(apart, card, load, library="peft", about=ADAPTER.format(base=named) + about)
    model = merge_adapter(policy.model)
    with atomic_directory(directory) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        _write_card(folder, card, LOAD.format(auto="AutoModelForCausalLM", path=directory.name), about=about)
    return weights_fingerprint(model)


def save_reward_model(
    policy: Policy,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    card: dict[str, Any],
    seen: trained_on.Provenance,
) -> None:
    """Save a reward model as a directory that `AutoModelForSequenceClassification` loads, with one label: the score.

    `shiqrun.json` in it names the prompts that the model was trained on.

    The classifier reads the last token that is not padding; training reads the last action. So give it the tokens up
    to and with the end of the assistant's turn. The padding token saved in its config is never EOS, even where the
    tokenizer's is, so that an EOS there is not taken for padding.

    Raises:
        ValueError: the policy has no score head, or `transformers` has no such model on this body.
    """
    model = merge_adapter(policy.model)
    config = copy.deepcopy(model.config)
    config.num_labels, config.pad_token_id = 1, _pad_that_ends_no_text(tokenizer)
    scorer = AutoModelForSequenceClassification.from_config(config)
    if policy.value is None or not hasattr(scorer, "score"):
        raise ValueError(f"{type(scorer).__name__}: no score head to save")
    scorer.base_model.load_state_dict(model.base_model.state_dict())
    scorer.score.load_state_dict(policy.value.linear.state_dict())
    about = SCORES.format(count=f"{len(seen.names):,}", fingerprint=seen.fingerprint, file=trained_on.FILE)
    load = LOAD.format(auto="AutoModelForSequenceClassification", path=directory.name)
    with atomic_directory(directory) as folder:
        scorer.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_json(folder / trained_on.FILE, seen.file_content())
        _write_card(folder, card, load, about=about)


def _pad_that_ends_no_text(tokenizer: PreTrainedTokenizerBase) -> int | None:
    ids = (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id)
    return next((i for i in ids if i is not None and i != tokenizer.eos_token_id), None)


def _write_card(
    directory: Path, card: dict[str, Any], load: str, *, library: str = "transformers", about: str = ""
) -> None:
    rows = {name: "\n".join(f"| {k} | {v} |" for k, v in card[name].items()) for name in ("settings", "metrics")}
    text = CARD.format(**{**card, **rows}, about=about, version=shiqrun.__version__, library=library, load=load)
    (directory / "README.md").write_text(text, encoding="utf-8")


def provenance() -> dict[str, Any]:
    """Return what one needs to reproduce a run: versions, shiqrun's git commit, the thread count."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[f"version/{name}"] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "version/shiqrun": shiqrun.__version__,
        "version/python": platform.python_version(),
        **versions,
        "git_commit": git_commit(),
        "threads": torch.get_num_threads(),
    }


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write values to a JSON file, which is replaced as a whole."""
    write_atomic(path, json.dumps(values, indent=2, default=str) + "\n")
