"""`model=hf` loads a pretrained causal language model of `transformers` from a local directory or the Hub."""

import importlib.util
import json
import logging
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge
from huggingface_hub import snapshot_download
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from shiqrun.batching.encode import with_template
from shiqrun.data.source import Source
from shiqrun.errors import InputError
from shiqrun.models.outline import Outline, outline_of
from shiqrun.models.reference import weights_fingerprint
from shiqrun.models.saved_files import check_saved_files, expected_fingerprint
from shiqrun.types import Example
from shiqrun.util.hub import expect_reachable, offline_hint

log = logging.getLogger("shiqrun")

NOISE = re.compile("dropout|pdrop|layerdrop|jitter")
"""Config keys of randomness in a forward pass, which is switched off."""
WEIGHTS = ("*.safetensors", "*.bin", "*.safetensors.index.json", "*.bin.index.json")


def check_model_path(path: str, option: str) -> None:
    """Check that a path is a whole model directory or a reachable Hub id, more clearly than `transformers` does.

    Args:
        path: a local directory or a Hub id.
        option: the option that has the path, for messages.

    Raises:
        InputError: the directory has no config or no weights, or is a PEFT adapter; or a run saved
            it, and it has changed since; or the Hub id cannot be reached.
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
        check_saved_files(path, option)
    elif folder.exists() or path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise InputError(f"{option}={path} is not a directory")
    else:
        expect_reachable(path, option)


def _refuse_adapter(folder: Path, option: str) -> None:
    """Raise InputError for a directory that holds a PEFT adapter; name the policy directory to pass instead."""
    merged = folder.resolve().parent / "policy"
    instead = "merge it first (PeftModel.merge_and_unload, then save_pretrained) and pass what that makes"
    if (merged / "config.json").is_file():
        instead = f"pass the policy that it is merged in: {option}={merged}"
    raise InputError(f"{option}={folder} is a PEFT adapter, not a model; {instead}")


def load_pretrained(auto: Any, path: str, what: str, option: str, **options: Any) -> Any:
    """Load a config, tokenizer or model from a path with an auto class of `transformers`.

    Args:
        auto: the auto class.
        path: a local directory or a Hub id.
        what: what is loaded, for messages.
        option: the option that has the path, for messages.
        options: of `from_pretrained`.

    Raises:
        InputError: it cannot be loaded.
    """
    try:
        return auto.from_pretrained(path, **options)
    except Exception as error:  # a damaged file may raise anything: each library has its own
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{option}={path}: its {what} cannot be loaded: {first}{offline_hint(path, option)}"
        ) from error


def four_bit_config() -> BitsAndBytesConfig:
    """Return the settings of QLoRA's 4-bit weights: NF4 for all linear layers but the head, bfloat16 products.

    Dettmers et al. 2023, arXiv 2305.14314.

    Raises:
        InputError: there is no CUDA GPU, or `bitsandbytes` is not installed.
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
    """A `Pretrained` loads a pretrained model and its tokenizer, by the keys of `conf/model/hf.yaml`.

    Attributes:
        path: a local directory or a Hub id.
        trust_remote_code: whether to run Python code that comes with the model.
        quantize: "nf4" for 4-bit weights, on a CUDA GPU only; None for none.
        lora_r: rank of the LoRA adapter, as in `ModelSettings`: 4-bit weights are only trained through an adapter.

    Raises:
        InputError: 4-bit weights without an adapter.
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
        self._check_path()
        config = self._load(AutoConfig, "configuration")
        for part in (config, config.get_text_config()):
            for key, value in part.to_dict().items():
                if NOISE.search(key) and isinstance(value, float):
                    setattr(part, key, 0.0)  # the reference must equal the policy at step 0
        return config

    def _check_path(self) -> None:
        check_model_path(self.path, "model.path")

    def _load(self, auto: Any, what: str, **options: Any) -> Any:
        return load_pretrained(auto, self.path, what, "model.path", trust_remote_code=self.trust_remote_code, **options)

    def tokenizer(self, source: Source, training: Iterable[Example]) -> PreTrainedTokenizerBase:
        """Load the model's tokenizer, with the plain chat template where it has none.

        Raises:
            InputError: it cannot be loaded, or is not a fast tokenizer.
        """
        self._check_path()
        tokenizer = self._load(AutoTokenizer, "tokenizer")
        if not tokenizer.is_fast:
            raise InputError(f"model.path={self.path}: its tokenizer is not a fast one, so spans cannot be traced")
        return with_template(tokenizer)

    def build(
        self, tokenizer: PreTrainedTokenizerBase, seed: int, dtype: torch.dtype = torch.float32
    ) -> PreTrainedModel:
        """Load the model without dropout on the CPU or, with `quantize`, with 4-bit weights on the GPU.

        Raises:
            InputError: weights are missing, do not fit or have changed since a run saved them, the head has fewer rows
                than the tokenizer has tokens, or 4-bit weights are wanted without a GPU or `bitsandbytes`.
        """
        options: dict[str, Any] = {"config": self._config, "dtype": dtype, "output_loading_info": True}
        if self.quantize:
            options |= {"quantization_config": four_bit_config(), "device_map": {"": torch.cuda.current_device()}}
        model: PreTrainedModel
        model, info = self._load(AutoModelForCausalLM, "weights", **options)
        if dtype == torch.float32:
            self._expect_saved_weights(lambda: weights_fingerprint(model))
        if info["missing_keys"]:
            some = ", ".join(sorted(info["missing_keys"])[:3])
            raise InputError(f"model.path={self.path}: the weights lack {some}; they would start at random")
        self._expect_head(model, tokenizer)
        return model

    def outline(self, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype) -> Outline | None:
        """Return the model with its weights still in their files; None where only `build` can read them.

        Raises:
            InputError: as `build`.
        """
        files = [] if self.quantize or hasattr(self._config, "quantization_config") else self._safetensors()
        try:
            found = outline_of(self._config, dtype, files, trust_remote_code=self.trust_remote_code)
        except ValueError as why:
            log.info("model.path=%s: every process loads the whole model, because %s", self.path, why)
            return None
        if dtype == torch.float32:
            self._expect_saved_weights(found.fingerprint)
        self._expect_head(found.model, tokenizer)
        return found

    def _safetensors(self) -> list[Path]:
        """Return the files of the weights, none where there are none of safetensors."""

        def found(name: str) -> str | None:
            path: str | None = cached_file(self.path, name, _raise_exceptions_for_missing_entries=False)
            return path

        self._check_path()
        if single := found(SAFE_WEIGHTS_NAME):
            return [Path(single)]
        index = found(SAFE_WEIGHTS_INDEX_NAME)
        names = sorted(set(json.loads(Path(index).read_text())["weight_map"].values())) if index else []
        return [Path(path) for name in names if (path := found(name))]

    def _expect_head(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        if model.get_output_embeddings() is None:
            raise InputError(f"model.path={self.path}: {type(model).__name__} has no output embeddings to score with")
        rows = model.get_output_embeddings().weight.shape[0]
        if rows < len(tokenizer):
            raise InputError(f"model.path={self.path}: {len(tokenizer)} tokens in the tokenizer but {rows} logits")

    def _expect_saved_weights(self, fingerprint: Callable[[], str]) -> None:
        """Compare the weights of a run of an earlier version, which has no checksums, with the run's fingerprint."""
        before = None if self.quantize else expected_fingerprint(self.path)
        if before is not None and before != fingerprint():
            raise InputError(
                f"model.path={self.path}: the weights have changed since the run saved them (fingerprint {before} in "
                "its summary.json); restore them, or copy the directory elsewhere to use it as it is"
            )

    def files(self) -> list[Path]:
        """Return the local files that the model is loaded from; an empty list where they are not known.

        The Hub's library keeps those of a downloaded model in one directory for each commit.
        """
        folder = Path(self.path)
        if not folder.is_dir():
            try:
                folder = Path(snapshot_download(self.path, local_files_only=True))
            except (OSError, ValueError):  # only a part was downloaded
                return []
        return sorted(path for path in folder.iterdir() if path.is_file())

    def context(self) -> int | None:
        """Return the context length of the model in tokens, or None where its config does not say."""
        text = self._config.get_text_config()
        length: int | None = getattr(text, "max_position_embeddings", None)
        return length
