"""`load_classifier` reads a reward model from a directory or the Hub, and refuses any model that is none."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import cached_file

from shiqrun.batching.encode import with_template
from shiqrun.errors import InputError
from shiqrun.models.pretrained import check_model_path, load_pretrained
from shiqrun.rewards.provenance import FILE, Provenance, read_provenance

log = logging.getLogger("shiqrun")
OPTION = "reward.path"
MAKE_ONE = "`shiqrun train algo=reward_model` makes one in RUN_DIR/reward_model"
MEANINGLESS_LENGTH = 10**9
"""A tokenizer without a largest length states a number beyond this."""


@dataclass(frozen=True)
class Classifier:
    """A classifier is a sequence classifier with one label, its score, and all that reading the score needs.

    Attributes:
        model: in float32, in eval mode.
        tokenizer: with a chat template.
        head: the linear layer on a decoder's last hidden state; None where the model is called as a whole.
        pad: token id of padding, which the attention mask hides.
        context: largest number of tokens that it can read, None if unknown.
        adds_specials: whether the tokenizer's own special tokens go around the rendered text.
        provenance: the prompts it was trained on, where `shiqrun train algo=reward_model` made it, else None.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    head: nn.Linear | None
    pad: int
    context: int | None
    adds_specials: bool
    provenance: Provenance | None

    def tokenizer_text(self) -> str:
        """Return everything of the tokenizer that decides which tokens a conversation becomes, as JSON text."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        known = json.loads(backend.to_str()) if backend is not None else self.tokenizer.get_vocab()
        kept = {k: v for k, v in known.items() if k not in ("padding", "truncation")}  # set anew by every call
        rest = (self.tokenizer.special_tokens_map, self.tokenizer.chat_template, self.adds_specials)
        return json.dumps([kept, *rest], sort_keys=True, default=str)


def load_classifier(path: str, *, trust_remote_code: bool) -> Classifier:
    """Load the reward model of a directory or Hub id.

    Raises:
        InputError: it cannot be loaded, does not have one label, lacks weights, does not fit its tokenizer, or has no
            pad token where its kind of model needs one.
    """
    check_model_path(path, OPTION)
    trusted = {"trust_remote_code": trust_remote_code}
    config = load_pretrained(AutoConfig, path, "configuration", OPTION, **trusted)
    _expect_one_label(path, config)
    tokenizer = load_pretrained(AutoTokenizer, path, "tokenizer", OPTION, **trusted)
    options: Mapping[str, Any] = {"config": config, "dtype": torch.float32, "output_loading_info": True, **trusted}
    model, info = load_pretrained(AutoModelForSequenceClassification, path, "weights", OPTION, **options)
    _expect_weights(path, info)
    rows = model.get_input_embeddings().weight.shape[0]
    if rows < len(tokenizer):
        raise InputError(
            f"{OPTION}={path}: its tokenizer has {len(tokenizer)} tokens, its embedding {rows} rows; the tokenizer is "
            "another model's"
        )
    head = getattr(model, "score", None)
    head = head if isinstance(head, nn.Linear) else None
    bare = not tokenizer.chat_template
    if bare:
        log.info(f"{OPTION}={path}: its tokenizer has no chat template; texts are `User: ...`, `Assistant: ...`")
    return Classifier(
        model=model.eval().requires_grad_(False),
        tokenizer=with_template(tokenizer),
        head=head,
        pad=_pad(path, model, tokenizer, needed=head is None),
        context=_context(model, tokenizer, decoder=head is not None),
        adds_specials=bare and head is None,
        provenance=_provenance(path),
    )


def _expect_one_label(path: str, config: Any) -> None:
    if config.num_labels == 1:
        return
    named = ", ".join(config.architectures or ()) or "a model of unknown kind"
    if "SequenceClassification" not in named:
        raise InputError(f"{OPTION}={path}: is {named}, no reward model; {MAKE_ONE}")
    raise InputError(
        f"{OPTION}={path}: a classifier with {config.num_labels} labels; a reward model has 1, its score ({MAKE_ONE})"
    )


def _expect_weights(path: str, info: Mapping[str, Any]) -> None:
    missing = sorted({*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])})
    if missing:
        raise InputError(
            f"{OPTION}={path}: is no reward model: its weights lack {', '.join(missing[:3])}, which would start at "
            f"random; {MAKE_ONE}"
        )


def _pad(path: str, model: Any, tokenizer: PreTrainedTokenizerBase, *, needed: bool) -> int:
    ids = (tokenizer.pad_token_id, model.config.get_text_config().pad_token_id)
    pad = next((i for i in ids if i is not None), None)
    if pad is None and needed:
        raise InputError(
            f"{OPTION}={path}: {type(model).__name__} needs a pad token to read texts of several lengths, and its "
            "tokenizer has none; set pad_token in its tokenizer_config.json"
        )
    return pad or 0


def _context(model: Any, tokenizer: PreTrainedTokenizerBase, *, decoder: bool) -> int | None:
    """Return the most tokens a model reads: a decoder's config states it; an encoder's tokenizer may state less."""
    stated = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    limits = [stated if stated and stated > 0 else None]
    if not decoder and tokenizer.model_max_length < MEANINGLESS_LENGTH:
        limits.append(tokenizer.model_max_length)
    return min((n for n in limits if n is not None), default=None)


def _provenance(path: str) -> Provenance | None:
    if Path(path).is_dir():
        file = Path(path) / FILE
        return read_provenance(file, f"{OPTION}={path}") if file.is_file() else None
    quiet = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    found = cached_file(path, FILE, **quiet)
    return read_provenance(Path(found), f"{OPTION}={path}") if found else None
