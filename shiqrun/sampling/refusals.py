"""A model is tried before it is sampled from: do its hidden states, read with a cache, equal those of whole texts?"""

import inspect
from collections.abc import Callable, Sequence
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from shiqrun.sampling.decoding_rows import DecodingRows
from shiqrun.sampling.kv_cache import SPANNED
from shiqrun.sampling.shared_rows import SharedRows


@torch.no_grad()
def decode_refusal(model: PreTrainedModel) -> str | None:
    """Return why `decode` cannot be used with this model, or None if it can.

    It cannot where the model's cache has another form than keys and values, or where hidden states read with the cache
    differ from those read without.
    """
    layers = DynamicCache(config=model.config).layers
    odd = sorted({type(x).__name__ for x in layers if type(x) not in (DynamicLayer, DynamicSlidingWindowLayer)})
    if odd or getattr(model, "_is_stateful", False):
        return f"its cache is not of keys and values alone{f' ({odd[0]})' if odd else ''}"
    ids = np.arange(5) % model.config.get_text_config().vocab_size

    def read() -> Tensor:
        rows = DecodingRows(model, [ids[:3], ids[:1]], 1)
        rows.read(torch.from_numpy(ids[[3, 1]]).to(model.device))
        return rows.hidden

    return _difference(model, [ids[:4], ids[:2]], read)


def _difference(model: PreTrainedModel, texts: Sequence[np.ndarray], read: Callable[[], Tensor]) -> str | None:
    """Return how hidden states read with a cache differ from those of whole texts, or None where they do not."""
    try:
        found = read()
        plain = [model.base_model(input_ids=torch.from_numpy(x)[None].to(model.device)) for x in texts]
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, NotImplementedError) as error:
        return f"{type(error).__name__}: {error}"
    expected = torch.cat([out.last_hidden_state[:, -1] for out in plain]).float()
    gap = float((found.float() - expected).norm() / expected.norm())
    tolerance = 1e-3 if found.dtype in (torch.float32, torch.float64) else 0.1
    return None if gap <= tolerance else f"its hidden states differ by {gap:.2g} where it reads from a cache"


_SHARES: WeakKeyDictionary[PreTrainedModel, dict[str, str | None]] = WeakKeyDictionary()
"""What `share_refusal` found out about each model, by its attention."""


@torch.no_grad()
def share_refusal(model: PreTrainedModel) -> str | None:
    """Return why completions of a prompt cannot share rows of this model's batches, or None if they can.

    They cannot where a layer has a window, where positions are not given to the model, and where hidden states differ.
    """
    found = _SHARES.setdefault(model, {})
    attention = str(model.config._attn_implementation)
    if attention not in found:
        found[attention] = _share_refusal(model)
    return found[attention]


def _share_refusal(model: PreTrainedModel) -> str | None:
    windows = [x for x in DynamicCache(config=model.config).layers if type(x) is not DynamicLayer]
    if model.config._attn_implementation != SPANNED or windows:
        return "its attention is not by keys and values of all tokens"
    if "position_ids" not in inspect.signature(model.base_model.forward).parameters:
        return "it takes no positions"
    size = model.config.get_text_config().vocab_size
    stem, steps = [0, 1, 2, 3], [[4, 4], [0, 4], [4, 1], [0, 4]]
    prompts = [np.array(x) % size for x in ([*stem, 1], [*stem, 2], [3])]  # the first two share what they begin with
    texts = [np.array([*prompts[p], *more]) % size for p, more in zip((0, 0, 1, 2), steps, strict=True)]

    def read() -> Tensor:
        rows = SharedRows(model, prompts, [2, 1, 1], size)
        for step in (0, 1):
            tokens = torch.tensor([more[step] % size for more in steps], device=model.device)
            rows.advance(tokens, torch.zeros_like(tokens, dtype=torch.bool))
        return rows.hidden[rows.row]

    return _difference(model, texts, read)
