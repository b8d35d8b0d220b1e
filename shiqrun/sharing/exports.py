"""`export` writes the model of a run: whole for `transformers`, its adapter for `peft`, or GGUF for llama.cpp."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch

from shiqrun.errors import InputError
from shiqrun.models.adapter import BASE
from shiqrun.models.saved_files import check_saved_files, has_checksums
from shiqrun.sharing.card import Form, model_card, write_card
from shiqrun.sharing.finished_run import FinishedRun, hub_id, load_model, load_tokenizer
from shiqrun.util.atomic import atomic_directory

Precision = Literal["fp32", "fp16", "bf16"]
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
ADAPTER_CONFIG, BASE_KEY = "adapter_config.json", "base_model_name_or_path"


def export(run: FinishedRun, form: Form, out: Path, precision: Precision, *, place: str, title: str) -> None:
    """Write the model of a run into a new directory, as a whole or not at all.

    Args:
        run: whose model is exported.
        form: merged, adapter or gguf.
        out: the directory, which must not be there yet.
        precision: of the saved numbers; an adapter stays in float32.
        place: directory or Hub id that the card's code loads the model from.
        title: of the card.

    Raises:
        InputError: `out` is there, or the run has nothing of this form.
    """
    with _new_directory(out) as folder:
        if form == "gguf":
            from shiqrun.sharing.gguf_file import write_gguf

            file = f"{title.rpartition('/')[2]}-{precision}.gguf"
            write_gguf(run, folder / file, precision)
            write_card(folder, model_card(run, form, title, place=place, file=file))
        elif form == "adapter":
            base = _copy_adapter(run, folder, out)
            write_card(folder, model_card(run, form, title, place=place, base=base))
        else:
            _save_merged(run, folder, precision)
            write_card(folder, model_card(run, form, title, place=place))


@contextmanager
def _new_directory(out: Path) -> Iterator[Path]:
    """Yield a hidden directory that becomes `out`.

    Raises:
        InputError: `out` is there, or cannot be made.
    """
    if out.exists():
        raise InputError(f"--out {out}: is there already; remove it, or give another --out")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_directory(out) as folder:
            yield folder
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        raise InputError(f"--out {out}: cannot be written ({error.strerror}); give another --out") from error


def _save_merged(run: FinishedRun, folder: Path, precision: Precision) -> None:
    """Copy the saved model, whose adapter the run has merged into it, or save it in half precision."""
    if precision == "fp32":
        shutil.copytree(run.model, folder, dirs_exist_ok=True)
        return
    load_model(run, DTYPES[precision]).save_pretrained(folder)
    load_tokenizer(run).save_pretrained(folder)
    for file in run.model.glob("shiqrun.json"):  # the prompts that a reward model has seen
        shutil.copy(file, folder)


def _copy_adapter(run: FinishedRun, folder: Path, out: Path) -> str:
    """Copy the adapter of a run; return what its card calls the base model.

    A base that the run saved beside its adapter is copied with it, and named by its new place.

    Raises:
        InputError: the run has no adapter, or its base model is gone.
    """
    adapter = run.directory / "adapter"
    if not (adapter / ADAPTER_CONFIG).is_file():
        raise InputError(f"{run.directory}: the run trained no adapter (model.lora_r=0); use --to merged")
    check_saved_files(str(adapter), "RUN")
    if not has_checksums(adapter):
        print(f"{adapter}: an older version saved it without checksums, so its files are taken as they are")
    shutil.copytree(adapter, folder, dirs_exist_ok=True)
    settings = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    base = str(settings[BASE_KEY])
    if (adapter / BASE).is_dir():
        base = settings[BASE_KEY] = str(out.resolve() / BASE)
        (folder / ADAPTER_CONFIG).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    elif Path(base).is_absolute() and not Path(base).is_dir():
        raise InputError(f"{adapter}: its base model {base} is gone; put it back, or use --to merged, which needs none")
    return base if hub_id(base) else Path(base).name
