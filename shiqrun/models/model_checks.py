"""`check_model` finds out before a run whether a model's scores are its own, and whether it reads packed batches.

Few tokens are enough: a wrong mask, position or scale shows in any row. A sliding window alone shows only in a row that
is longer than the window, which one row then is. What was found is kept in the cache, so that the next run with the
same weights, rows, settings and versions reads it instead.
"""

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

import shiqrun
from shiqrun.batching.encode import EncodedTrajectory
from shiqrun.batching.rows import Rows
from shiqrun.errors import InputError
from shiqrun.models.adapter import is_quantized
from shiqrun.models.attention import use_packed_attention, use_padded_attention
from shiqrun.models.head import HALF, head_of
from shiqrun.models.policy import Policy
from shiqrun.types import Trajectories
from shiqrun.util import ranks
from shiqrun.util.kept_facts import KeptFacts

CHECKED = 12
"""Tokens of a row that is scored, a third of them after its prompt."""
BEYOND = 32
"""Tokens by which the longest row exceeds a sliding window, if it is so long."""
WORTH_SECONDS = 1.0
"""Checks that took less are made anew by each run, so that runs of small models leave nothing in the cache."""
CODE = ("models", "batching", "layout.py", "types.py")
"""What the checks depend on: a change of it lets them be made anew."""
AGREEMENT = 1e-3
"""Nats by which rounding may let the padded and the packed score of an action differ in float32; a wrong mask lets
them differ by more."""
AGREEMENT_QUANTIZED = 0.2
"""The same for 4-bit weights, whose matrix products are bfloat16."""
AGREEMENT_HALF = 0.5
"""The same for bfloat16 weights: products of other shapes round otherwise, by up to 0.2 nats in 24 layers; a wrong mask
moved scores of a trained model by 4 nats."""


def check_model(policy: Policy, rows: Rows, weights: str, kept: KeptFacts, device: torch.device) -> str | None:
    """Check head and packing of a policy, or read what an earlier run found; return why batches are padded, else None.

    The policy reads packed batches afterwards if it can.

    Args:
        policy: its model lies where it was loaded.
        rows: of training, a few of which are scored.
        weights: fingerprint of the model.
        kept: what earlier runs found.
        device: where the rows are scored, if the model has room there.

    Raises:
        InputError: scores differ from the model's own logits.
    """
    few, place = _few(policy, rows), _place(policy, device)
    key = _key(policy, few, weights, place)
    found = ranks.broadcast_object(
        kept.read(key)
    )  # ranks that share the weights make the checks together, or none does
    if found is not None and isinstance(why := found.get("padded_because"), str | None):
        if why is None:
            for body in _bodies(policy):
                use_packed_attention(body)
        return why
    began = time.perf_counter()
    with _moved(policy, place):
        check_head(policy, rows_cut(rows, [int(rows.lengths.argmin())]).collate([0]))
        why = enable_packing(policy, few.with_layout(packed=False, device=place.type))
    if time.perf_counter() - began > WORTH_SECONDS:
        kept.write(key, {"padded_because": why})
    return why


def _key(policy: Policy, few: Rows, weights: str, place: torch.device) -> str:
    """Return a hash of all that the verdict on a model depends on."""
    config: Any = policy.causal_lm.config
    settings = {k: v for k, v in config.to_dict().items() if k not in ("_name_or_path", "transformers_version")}
    adapters = {name: str(value) for name, value in getattr(policy.model, "peft_config", {}).items()}
    words = [weights, type(policy.causal_lm).__name__, config._attn_implementation, settings, adapters]
    words += [str(policy.causal_lm.dtype), place.type, len(_bodies(policy)), torch.get_float32_matmul_precision()]
    words += [torch.__version__, transformers.__version__, shiqrun.__version__, code_digest()]
    words += [[t.input_ids.tolist(), t.action_index.tolist()] for t in few.trajectories]
    return hashlib.blake2b(json.dumps(words, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()


@cache
def code_digest(parts: tuple[str, ...] = CODE) -> str:
    """Return a hash of the code in some folders and files of the package, by default what the checks depend on."""
    folder, digest = Path(shiqrun.__file__).parent, hashlib.blake2b(digest_size=16)
    for part in parts:
        for path in sorted((folder / part).rglob("*.py")) or [folder / part]:
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _place(policy: Policy, device: torch.device) -> torch.device:
    """Return the device if the model has room there, else where the model is."""
    home = policy.causal_lm.device
    if device.type != "cuda" or home.type == "cuda":
        return home
    needed = sum(p.numel() * p.element_size() for p in policy.parameters())
    return device if 1.2 * needed + (1 << 30) < torch.cuda.mem_get_info(device)[0] else home


@contextmanager
def _moved(policy: Policy, place: torch.device) -> Iterator[None]:
    """Have a policy on a device inside the block, and back where it was after it."""
    home = policy.causal_lm.device
    if home.type == place.type:
        yield
        return
    policy.to(place)
    try:
        yield
    finally:
        policy.to(home)
        torch.cuda.empty_cache()


@torch.no_grad()
def check_head(policy: Policy, batch: Trajectories, tolerance: float = 1e-3) -> None:
    """Check that our scores of a trajectory's actions equal those from the model's own logits, without autocast.

    Args:
        policy: the policy to check.
        batch: its first row is scored.
        tolerance: largest difference, nats.

    Raises:
        InputError: they differ, for example because the model's head is no linear layer.
    """
    batch = batch.to(policy.causal_lm.device)
    ids, mask, at = batch.input_ids[:1], batch.attention_mask[:1], batch.action_index[:1]
    dense = policy.causal_lm(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits[0].float()
    taken = dense[at[0] - 1].gather(-1, ids[0, at[0]][:, None]).squeeze(-1)
    ours = Policy(policy.model)(Trajectories(ids, mask, at, batch.action_mask[:1], batch.rewards[:1], batch.group[:1]))
    keep = batch.action_mask[0]
    gaps = [(ours.logit[0] - taken)[keep], (ours.log_partition[0] - dense[at[0] - 1].logsumexp(-1))[keep]]
    gap = max(float(g.abs().max()) for g in gaps)
    if not gap <= tolerance:
        raise InputError(
            f"{type(policy.causal_lm).__name__}: scores differ from the model's own logits by {gap:.2g} nats; its head "
            "is no linear layer with the scale and the soft-cap of its config, and shiqrun scores no other"
        )


@torch.no_grad()
def enable_packing(policy: Policy, rows: Rows) -> str | None:
    """Let the policy read packed batches if its scores stay the same; return the reason if it cannot, else None.

    A few rows are scored padded and packed. Where the scores differ, or the model cannot read packed batches, its
    attention stays as it was.

    Args:
        policy: on the device where its model was loaded.
        rows: of which a few are scored both ways; some of one prompt are among them.
    """
    model, mode, why, bodies = policy.causal_lm, policy.training, None, _bodies(policy)
    if not all(map(use_packed_attention, bodies)):
        why = f"{type(model).__name__} with {model.config._attn_implementation} attention"
    policy.eval()
    try:
        gap = 0.0 if why else _packing_error(policy, rows)
        if not gap <= _agreement(policy):
            why = f"packed, its scores differ by {gap:.2g} nats"
    except Exception as error:  # code of any model: what it cannot read may raise anything
        why = f"{type(model).__name__}: {type(error).__name__}: {error}"
    finally:
        policy.train(mode)
        if why:
            for body in bodies:
                use_padded_attention(body)
    return why


def _agreement(policy: Policy) -> float:
    """Return the nats by which rounding may let the padded and the packed score of an action differ."""
    if is_quantized(policy.model):
        return AGREEMENT_QUANTIZED
    return AGREEMENT_HALF if head_of(policy.causal_lm).weight.dtype in HALF else AGREEMENT


def _bodies(policy: Policy) -> list[Any]:
    """Return the networks of a policy that read tokens: the model, and a value network of its own."""
    own = None if policy.value is None else policy.value.body
    return [policy.causal_lm] if own is None else [policy.causal_lm, own]


def _packing_error(policy: Policy, rows: Rows) -> float:
    """Return the largest difference between padded and packed scores of a few rows, nats, without autocast."""
    few, plain = _few(policy, rows), Policy(policy.model)
    short = np.flatnonzero(few.lengths <= CHECKED)
    long = np.flatnonzero(few.lengths > CHECKED)  # apart, so that the short ones are not padded to its length
    order = [*short.tolist(), *long.tolist()]

    def scored(picked: Sequence[int], *, packed: bool) -> list[Tensor]:
        batch = few.with_layout(packed=packed, device=rows.device).collate(list(picked))
        scores = plain(batch.to(policy.causal_lm.device))
        both = torch.stack([scores.logit, scores.log_partition], -1)
        return [row[mask] for row, mask in zip(both, batch.action_mask.to(both.device), strict=True)]

    padded = [x for part in (short, long) if len(part) for x in scored(part.tolist(), packed=False)]
    return float((torch.cat(padded) - torch.cat(scored(order, packed=True))).abs().max())


def _few(policy: Policy, rows: Rows) -> Rows:
    """Return a few rows, cut to `CHECKED` tokens: up to three of one prompt, the shortest and the longest.

    The longest keeps more tokens than the model's sliding window, if it has them.
    """
    order = np.argsort(rows.lengths, kind="stable")
    siblings = order[np.bincount(rows.prompt_number)[rows.prompt_number[order]] > 1]
    of_one_prompt = (
        siblings[rows.prompt_number[siblings] == rows.prompt_number[siblings[0]]] if len(siblings) else siblings
    )
    few = [int(i) for i in dict.fromkeys([*of_one_prompt[:3], order[0]]) if i != order[-1]]
    window = _window(policy.causal_lm.config.get_text_config())
    longest = window + BEYOND if window is not None and rows.lengths[order[-1]] > window else CHECKED
    return rows_cut(rows, [*few, int(order[-1])], last=max(longest, CHECKED))


def _window(config: Any) -> int | None:
    """Return the tokens that a layer of the model looks back, at most; None where all layers look back to the first."""
    if "sliding_attention" not in (getattr(config, "layer_types", None) or ["sliding_attention"]):
        return None
    sizes = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return min((size for size in sizes if size), default=None)


def rows_cut(rows: Rows, picked: Sequence[int], last: int = CHECKED) -> Rows:
    """Return the picked rows, cut around their first action to `CHECKED` tokens, and the last one to `last`."""
    sizes = [CHECKED] * (len(picked) - 1) + [last]
    cut = [_cut(rows.trajectories[row], size) for row, size in zip(picked, sizes, strict=True)]
    return type(rows)(cut, rows.pad, device=rows.device)


def _cut(row: EncodedTrajectory, size: int) -> EncodedTrajectory:
    """Return a trajectory around its first action: the end of its prompt, and what follows it, the last actions alone.

    Rows that share a prompt still do, unless `size` is that of a row that is longer than a window.
    """
    first, length = int(row.action_index[0]), len(row.input_ids)
    end = min(length, first + CHECKED // 3 if size == CHECKED else first + size - 1)
    start = max(0, first - 2 * CHECKED // 3 if size == CHECKED else end - size)
    kept = row.action_index[row.action_index < end][-(CHECKED // 3) :] - start
    return replace(row, input_ids=row.input_ids[start:end], action_index=kept, rewards=None)
