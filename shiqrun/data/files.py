"""`read_rows` streams the rows of data files, each with its place (`file:line`) for messages.

Files are JSON lines, Parquet, Arrow, CSV or TSV; a directory that `datasets` saved (`save_to_disk`) is its Arrow files.
"""

import gzip
import json
import re
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from shiqrun.data.csv_rows import csv_rows
from shiqrun.data.sampled_files import check_sampled_files
from shiqrun.errors import InputError

Row = dict[str, Any]

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet", ".arrow", ".csv", ".tsv", ".csv.gz", ".tsv.gz")
SAVED, SAVED_SPLITS = "state.json", "dataset_dict.json"
"""What `datasets` writes beside the Arrow files of a saved split, and beside the directories of several."""
SPLIT_NAME = re.compile(r"(?:^|[-_.])(train|test|val|valid|validation|dev|eval)(?=[-_.])", re.IGNORECASE)
TABLE_ROWS = 512
ARROW = b"ARROW1"
"""The first bytes of an Arrow file with an index."""
HALF_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # or a whole pair: the row is looked at then


def data_files(path: str | Path) -> list[Path]:
    """Return the data files at a path, sorted by name: the file itself, or the files directly in a directory.

    Raises:
        InputError: the path does not exist or cannot be read, or the directory holds no data file, files of several
            splits, or a run's samples without a shard or with a changed one.
    """
    place = Path(path).expanduser()
    with _explained(place):
        if place.is_file() and not place.name.endswith(SUFFIXES):
            raise InputError(f"{place}: cannot tell the format from the name; expected one of {', '.join(SUFFIXES)}")
        if not place.is_dir():
            _expect_regular(place)
            return [place]
        if (place / SAVED).is_file() or (place / SAVED_SPLITS).is_file():
            return _saved_files(place)
        files = sorted(f for f in place.iterdir() if f.name.endswith(SUFFIXES) and f.name[0] != ".")
        if not files:
            there = ", ".join(sorted(f.name + "/" * f.is_dir() for f in place.iterdir())[:8]) or "nothing"
            raise InputError(f"{place}: no data file ({', '.join(SUFFIXES)}) directly in it; it holds {there}")
    for file in files:
        with _explained(file):
            _expect_regular(file)
    splits = {m[1].lower() for f in files for m in SPLIT_NAME.finditer(f.name)}
    if len(splits) > 1:
        names = ", ".join(f.name for f in files[:8])
        raise InputError(
            f"{place}: its files belong to different splits ({', '.join(sorted(splits))}): {names}; name one file, "
            "or move the files of each split to a directory of their own"
        )
    check_sampled_files(place)
    return files


def _saved_files(folder: Path) -> list[Path]:
    """Return the Arrow files of a directory that `datasets` saved, in their order.

    Raises:
        InputError: it holds several splits, or what it lists is not there.
    """
    listing = folder / SAVED
    if not listing.is_file():
        names = sorted(f.name for f in folder.iterdir() if (f / SAVED).is_file())
        raise InputError(
            f"{folder}: a saved data set of the splits {', '.join(names)}; name one: {folder / (names or ['train'])[0]}"
        )
    try:
        files = [folder / entry["filename"] for entry in json.loads(listing.read_bytes())["_data_files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{listing}: not as `save_to_disk` writes it ({error!r}); save the data set again") from None
    if missing := [file.name for file in files if not file.is_file()]:
        raise InputError(f"{folder}: {missing[0]} is missing, which {listing.name} lists; save the data set again")
    return files


def _expect_regular(place: Path) -> None:
    """Check that a path is a file that can be read again and again; a pipe would hang or be empty the second time."""
    if not stat.S_ISREG(place.stat().st_mode):
        raise InputError(f"{place}: not a regular file (a pipe, device or directory); write the rows to a file first")


def read_rows(path: str | Path, *, any_text: bool = False) -> Iterator[tuple[str, Row]]:
    """Yield (place, row) of each row of a file, or of each file of a directory, in order.

    Args:
        any_text: whether strings may hold half of a surrogate pair, for data sets that drop and count such texts.

    Raises:
        InputError: a file cannot be read or holds no row, or a row is no JSON object; the message names file and line.
    """
    for file in data_files(path):
        empty = True
        for place, row in _file_rows(file, any_text):
            empty = False
            yield place, row
        if empty:
            raise InputError(f"{file}: the file is empty; expected one row per line")


def _file_rows(file: Path, any_text: bool) -> Iterator[tuple[str, Row]]:
    kind = file.name.removesuffix(".gz").rpartition(".")[2]
    if kind in ("parquet", "arrow"):
        return _table_rows(file, _parquet_batches if kind == "parquet" else _arrow_batches)
    return _csv_rows(file, "\t" if kind == "tsv" else ",") if kind in ("csv", "tsv") else _json_rows(file, any_text)


@contextmanager
def _explained(file: Path) -> Iterator[None]:
    """Turn I/O errors and errors of a file format inside the block into an InputError that names the file."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{file}: no such file or directory (looked from {Path.cwd()})") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{file}: broken gzip file ({error}); fetch or compress it again") from None
    except pa.ArrowException as error:
        raise InputError(f"{file}: broken {file.suffix[1:].capitalize()} file ({error})") from None
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror or error}") from None


def _table_rows(file: Path, batches: Callable[[Path], Iterator[pa.RecordBatch]]) -> Iterator[tuple[str, Row]]:
    with _explained(file):
        number = 0
        for batch in batches(file):
            for row in _python_rows(batch, file, number):
                number += 1
                yield f"{file} row {number}", row


def _parquet_batches(file: Path) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(file, page_checksum_verification=True) as table:
        yield from table.iter_batches(batch_size=TABLE_ROWS)


def _arrow_batches(file: Path) -> Iterator[pa.RecordBatch]:
    """Yield the batches of an Arrow file of either format: a stream, as `datasets` writes it, or one with an index."""
    with pa.memory_map(str(file)) as mapped:
        indexed = file.stat().st_size >= len(ARROW) and mapped.read(len(ARROW)) == ARROW
        mapped.seek(0)
        opened = pa.ipc.open_file(mapped) if indexed else pa.ipc.open_stream(mapped)
        with opened as reader:
            for batch in map(reader.get_batch, range(reader.num_record_batches)) if indexed else reader:
                yield from (batch.slice(at, TABLE_ROWS) for at in range(0, len(batch), TABLE_ROWS))


def _csv_rows(file: Path, separator: str) -> Iterator[tuple[str, Row]]:
    with _explained(file), _open(file) as lines:
        yield from csv_rows((_decoded(line, f"{file}:{n}") for n, line in enumerate(lines, start=1)), file, separator)


def _python_rows(batch: pa.RecordBatch, file: Path, before: int) -> list[Row]:
    """Return the rows of a batch as Python objects; `before` rows of the file came before it."""
    try:
        return cast(list[Row], batch.to_pylist())
    except (ValueError, OverflowError, ArithmeticError):
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            for at, value in enumerate(column, start=before + 1):
                _expect_readable(value, f"{file} row {at}: column '{name}'")
        raise


def _expect_readable(value: pa.Scalar, place: str) -> None:
    try:
        value.as_py()
    except UnicodeDecodeError as error:
        raise InputError(f"{place} is not UTF-8 (byte {error.start + 1} of the text); write the file again") from None
    except (ValueError, OverflowError, ArithmeticError) as error:
        raise InputError(f"{place} cannot be read ({error}); write it with another type") from None


def _json_rows(file: Path, any_text: bool) -> Iterator[tuple[str, Row]]:
    with _explained(file), _open(file) as lines:
        for number, line in enumerate(lines, start=1):
            place = f"{file}:{number}"
            text = _decoded(line, place)
            if text.strip():
                yield place, _parsed(text, place, any_text)


def _open(file: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(file, "rb")) if file.name.endswith(".gz") else file.open("rb")


def _decoded(line: bytes, place: str) -> str:
    try:
        return line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{place}: not UTF-8 (byte {error.start + 1} of the line); convert the file") from None


class _RepeatedKeyError(Exception):
    """A `_RepeatedKeyError` says that a JSON object has a key twice; its text is the key."""


def _object(pairs: list[tuple[str, Any]]) -> Row:
    """Return a JSON object of which no key is repeated, since of two values one would be lost."""
    row = dict(pairs)
    if len(row) < len(pairs):
        raise _RepeatedKeyError(next(key for n, (key, _) in enumerate(pairs) if key in dict(pairs[:n])))
    return row


READER = json.JSONDecoder(object_pairs_hook=_object)
BOM = "\ufeff"


def _parsed(text: str, place: str, any_text: bool) -> Row:
    try:
        row = json.loads(text) if text.startswith(BOM) else READER.decode(text)
    except _RepeatedKeyError as error:
        raise InputError(f"{place}: the key '{error}' stands twice in one object; remove or rename one") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place}: broken JSON ({error}); expected one object per line, as in JSON lines") from None
    if not isinstance(row, dict):
        kind = type(row).__name__
        raise InputError(f"{place}: expected a JSON object with named columns, found a {kind}; write one object a line")
    if not any_text and HALF_SURROGATE.search(text):
        _expect_text(row, place)
    return row


def _expect_text(row: Row, place: str) -> None:
    """Check that no string of a row holds half of a surrogate pair, which JSON can spell but no file can hold."""
    for name, value in row.items():
        try:
            json.dumps({name: value}, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            shown = name.encode(errors="backslashreplace").decode()
            raise InputError(
                f"{place}: column '{shown}' holds half a surrogate pair, which is no text; mend its \\ud... escapes"
            ) from None
