"""An `Outline` is a model whose weights are still in their files, so that each rank reads the rows that it holds."""

import contextlib
import copy
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from shiqrun.models.head import give_float32_logits
from shiqrun.models.policy import Policy
from shiqrun.models.sharding import first_row
from shiqrun.models.weight_files import WeightFiles


class Outline:
    """An `Outline` holds a model with memory that nobody has touched, so that it takes no room, and its weights' files.

    Args:
        model: its parameters hold no numbers yet.
        files: with a tensor for each parameter.

    Raises:
        KeyError: a parameter is in no file under one of its names and with its shape; the message names it.
    """

    def __init__(self, model: PreTrainedModel, files: WeightFiles) -> None:
        self.model, self.files = model, files
        saved: dict[
            int, str
        ] = {}  # names in the files; a parameter with several names, as a tied head, may be there under any of them
        for name, p in model.named_parameters(remove_duplicate=False):
            if files.shapes.get(name) == tuple(p.shape):
                saved.setdefault(id(p), name)
        everything = dict(model.named_parameters(remove_duplicate=False))
        if lacking := [name for name, p in everything.items() if id(p) not in saved]:
            raise KeyError(lacking[0])
        self.names = {name: saved[id(p)] for name, p in everything.items()}
        # Modules stay the same objects when they are wrapped and sharded, while their names and parameters change
        self._owners = [
            (module, key, self.names[f"{prefix}.{key}".lstrip(".")])
            for prefix, module in model.named_modules()
            for key, p in module._parameters.items()
            if p is not None
        ]
        self._body = next(name for name, module in model.named_modules() if module is model.base_model)

    def fingerprint(self) -> str:
        """Return the hash that `weights_fingerprint` returns of the model with its weights, which are read in parts."""
        digest = hashlib.blake2b(digest_size=16)
        for name, x in sorted(self.model.state_dict().items()):
            digest.update(f"{name}{tuple(x.shape)}{x.dtype}".encode())
            parts = self.files.chunks(self.names[name]) if name in self.names else iter([x])
            for part in parts:
                digest.update(part.to(x.dtype).reshape(-1).contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    @staticmethod
    def copied(model: PreTrainedModel) -> PreTrainedModel:
        """Return a copy of the model, in memory that is not touched either; `fill` reads it, too."""
        fresh: dict[int, Any] = {
            id(p): nn.Parameter(torch.empty_like(p), requires_grad=p.requires_grad) for p in model.parameters()
        }
        copied: PreTrainedModel = copy.deepcopy(model, fresh)
        return copied

    @torch.no_grad()
    def fill(self, policy: Policy) -> None:
        """Read the weights of a policy that was made of this model and then sharded; a rank reads the rows it holds."""
        done: set[int] = set()
        for module, key, name in self._owners:
            p = module._parameters[key]
            if id(p) not in done:
                self._read(p, name)
            done.add(id(p))
        if policy.value is not None and policy.value.body is not None:  # a network of its own, with a copy of the body
            for name, p in policy.value.body.named_parameters():
                self._read(p, self.names[f"{self._body}.{name}".lstrip(".")])

    def _read(self, p: Any, name: str) -> None:
        """Copy a tensor's rows, as many as this rank holds, from the files, in the dtype of the parameter."""
        sharded = isinstance(p, DTensor)
        rows: Tensor = p.to_local() if sharded else p
        if not rows.ndim:
            rows.copy_(next(self.files.chunks(name)))
            return
        at = 0
        for part in self.files.chunks(name, first_row(p) if sharded else 0, len(rows)):
            rows[at : at + len(part)].copy_(part)
            at += len(part)


def build_outline(choice: Any, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype) -> Outline | None:
    """Build what `build_model` does with its weights still in their files, None where the choice has no such files.

    Args:
        choice: built from a `conf/model/*.yaml`.
        tokenizer: of the model.
        dtype: float32 or bfloat16.
    """
    make = getattr(choice, "outline", None)
    found: Outline | None = None if make is None else make(tokenizer, dtype)
    if found is not None and dtype != torch.float32:
        give_float32_logits(found.model)
    return found


def outline_of(config: Any, dtype: torch.dtype, files: Sequence[Path], *, trust_remote_code: bool) -> Outline:
    """Return the outline of a causal language model, whose weights will be in `dtype`.

    Args:
        config: of the model.
        dtype: of its parameters; the files may have another.
        files: of safetensors, all of the model.
        trust_remote_code: whether to run Python code that comes with the model.

    Raises:
        ValueError: the files do not have the parameters one by one; the message says why.
    """
    if not files:
        raise ValueError("its weights are in no file of safetensors")
    model = untouched_model(config, dtype, trust_remote_code=trust_remote_code)
    if dtype != torch.float32 and (model._keep_in_fp32_modules or model._keep_in_fp32_modules_strict):
        raise ValueError(f"{type(model).__name__} keeps some weights in float32")
    with contextlib.suppress(OSError):  # there may be none
        model.generation_config = GenerationConfig.from_pretrained(config.name_or_path)
    try:
        return Outline(model, WeightFiles(files))
    except KeyError as lacking:
        raise ValueError(f"the files have another form of {lacking.args[0]}") from None


def untouched_model(config: Any, dtype: torch.dtype, **options: Any) -> PreTrainedModel:
    """Build a causal language model of a config in eval mode, its parameters in memory that is not touched yet.

    Such memory takes no room. Buffers, such as rotary tables, are in no file and hold their numbers.
    """
    with torch.random.fork_rng(devices=[]), _without_weights():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype, **options)
    give_memory(model)
    model.eval()
    return model


def give_memory(module: nn.Module, device: Any = "cpu") -> None:
    """Give each parameter without a device memory that holds no numbers yet; tied ones stay tied."""
    known: dict[int, nn.Parameter] = {}
    for owner in module.modules():
        for key, p in owner._parameters.items():
            if p is not None and p.is_meta:
                fresh = known.setdefault(
                    id(p), nn.Parameter(torch.empty_like(p, device=device), requires_grad=p.requires_grad)
                )
                owner._parameters[key] = fresh


@contextlib.contextmanager
def _without_weights() -> Iterator[None]:
    """Register parameters without memory inside the block; a model's initialisation then does nothing."""
    register = nn.Module.register_parameter

    def register_without_memory(module: nn.Module, name: str, p: nn.Parameter | None) -> None:
        register(module, name, p)
        if p is not None and not p.is_meta:
            module._parameters[name] = nn.Parameter(p.data.to("meta"), requires_grad=p.requires_grad)

    nn.Module.register_parameter = register_without_memory  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]
