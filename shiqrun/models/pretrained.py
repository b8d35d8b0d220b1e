"""`model=hf`: any causal language model of `transformers`, from a local directory or the Hub."""

import importlib.util
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from shiqrun.batching.encode import with_template
from shiqrun.data.source import Source
from shiqrun.errors import InputError
from shiqrun.types import Example
from shiqrun.util.hub import expect_reachable, offline_hint

NOISE = re.compile("dropout|pdrop|layerdrop|jitter")
WEIGHTS = ("*.safetensors", "*.bin", "*.safetensors.index.json", "*.bin.index.json")


def look(path: str, option: str) -> None:
    """Says what is wrong with a path before `transformers` takes it for something else.

    Raises:
        InputError: no directory with a config and weights, a PEFT adapter, or a Hub id that cannot be reached; it
            names the option.
    """
    folder = Path(path)
    if folder.is_dir():
        if (folder / "adapter_config.json").is_file():
            _refuse_adapter(folder, option)
        if not (folder / "config.json").is_file():
            inside = [name for name in ("policy", "reward_model") if (folder / name / "config.json").is_file()]
            instead = " or ".join(f"{option}={folder / name}" for name in inside)
            raise InputError(
                f"{option}={path}: no config.json in it; pass {instead or 'a directory made by save_pretrained'}"
            )
        if not any(p for pattern in WEIGHTS for p in folder.glob(pattern)):
            raise InputError(f"{option}={path}: no weights in it ({', '.join(WEIGHTS[:2])})")
    elif folder.exists() or path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise InputError(f"{option}={path} is not a directory")
    else:
        expect_reachable(path, option)


def _refuse_adapter(folder: Path, option: str) -> None:
    merged = folder.resolve().parent / "policy"
    instead = "merge it first (PeftModel.merge_and_unload, then save_pretrained) and pass what that makes"
    if (merged / "config.json").is_file():
        instead = f"pass the policy that it is merged in: {option}={merged}"
    raise InputError(f"{option}={folder} is a PEFT adapter, not a model; {instead}")


def loaded(auto: Any, path: str, what: str, option: str, **options: Any) -> Any:
    """What an auto class of `transformers` makes of a path.

    Raises:
        InputError: it cannot be loaded; the message names the option and what was to be loaded.
    """
    try:
        return auto.from_pretrained(path, **options)
    except Exception as error:  # a damaged file may raise anything: each library has its own
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{option}={path}: its {what} cannot be loaded: {first}{offline_hint(path, option)}"
        ) from error


def four_bit() -> BitsAndBytesConfig:
    """Weights of linear layers but the head's as NF4 (Dettmers et al. 2023, arXiv 2305.14314), products in bfloat16.

    Raises:
        InputError: no GPU, or `bitsandbytes` is not installed.
    """
    if not torch.cuda.is_available():
        raise InputError("model.quantize=nf4 needs a CUDA GPU, and torch sees none here; use model.quantize=null")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError("model.quantize=nf4 needs the extra `4bit`: pip install 'shiqrun[4bit]'")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """Keys of `conf/model/hf.yaml`.

    Attributes:
        path: a local directory or a Hub id.
        trust_remote_code: run Python code that comes with the model.
        quantize: nf4 for 4-bit weights, on a GPU only.
        lora_r: as in `ModelSettings`: 4-bit weights are trained through an adapter or not at all.
    """

    path: str
    trust_remote_code: bool
    quantize: Literal["nf4"] | None = None
    lora_r: Annotated[int, Ge(0)] = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", os.path.expanduser(self.path))
        if self.quantize and not self.lora_r:
            raise InputError(
                f"model.quantize={self.quantize}: 4-bit weights cannot be trained; set model.lora_r=16 for an adapter"
            )

    @cached_property
    def _config(self) -> Any:
        self._look()
        config = self._load(AutoConfig, "configuration")
        for part in (config, config.get_text_config()):
            for key, value in part.to_dict().items():
                if NOISE.search(key) and isinstance(value, float):
                    setattr(part, key, 0.0)  # the reference must equal the policy at step 0
        return config

    def _look(self) -> None:
        look(self.path, "model.path")

    def _load(self, auto: Any, what: str, **options: Any) -> Any:
        return loaded(auto, self.path, what, "model.path", trust_remote_code=self.trust_remote_code, **options)

    def tokenizer(self, source: Source, training: Iterable[Example]) -> PreTrainedTokenizerBase:
        """The model's tokenizer, with the plain chat template where it has none."""
        self._look()
        tokenizer = self._load(AutoTokenizer, "tokenizer")
        if not tokenizer.is_fast:
            raise InputError(f"model.path={self.path}: its tokenizer is not a fast one, so spans cannot be traced")
        return with_template(tokenizer)

    def build(self, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
        """The model in float32 on the CPU, dropout off; with `quantize`, 4-bit linear layers, on the GPU.

        Raises:
            InputError: weights that are missing, do not fit, or have fewer rows than the tokenizer has tokens; 4 bits
                without a GPU or `bitsandbytes`.
        """
        options: dict[str, Any] = {"config": self._config, "dtype": torch.float32, "output_loading_info": True}
        if self.quantize:
            options |= {"quantization_config": four_bit(), "device_map": {"": torch.cuda.current_device()}}
        model, info = self._load(AutoModelForCausalLM, "weights", **options)
        if info["missing_keys"]:
            some = ", ".join(sorted(info["missing_keys"])[:3])
            raise InputError(f"model.path={self.path}: the weights lack {some}; they would start at random")
        if model.get_output_embeddings() is None:
            raise InputError(f"model.path={self.path}: {type(model).__name__} has no output embeddings to score with")
        rows = model.get_output_embeddings().weight.shape[0]
        if rows < len(tokenizer):
            raise InputError(f"model.path={self.path}: {len(tokenizer)} tokens in the tokenizer but {rows} logits")
        return model

    def context(self) -> int | None:
        """Tokens the model can read, where its config says so."""
        text = self._config.get_text_config()
        return getattr(text, "max_position_embeddings", None)
