"""Sampled trajectories are stored as rows of a Parquet file, whose columns `data=jsonl` reads, too."""

import json
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shiqrun.data.message_columns import PROMPT, messages_array, messages_in
from shiqrun.errors import InputError
from shiqrun.rollout.trajectory import SampledTrajectory

NAMES = {"messages": "prompt", "answer": "answer_json"}
"""Columns whose names differ from the attributes of `SampledTrajectory`, because `data=jsonl` expects them."""
TYPES: dict[str, pa.DataType] = {
    "prompt": PROMPT,
    "completion": pa.string(),
    "reward": pa.float64(),
    "prompt_id": pa.string(),
    "answer_json": pa.string(),
    "uid": pa.string(),
    "group": pa.string(),
    "input_ids": pa.list_(pa.int32()),
    "start": pa.int32(),
    "behaviour_logp": pa.list_(pa.float32()),
    "policy_logp": pa.list_(pa.float32()),
    "ended": pa.bool_(),
    "version": pa.int64(),
    "temperature": pa.float64(),
    "top_p": pa.float64(),
    "source": pa.string(),
    "time": pa.float64(),
}
ARRAYS = {"input_ids": np.int32, "behaviour_logp": np.float32, "policy_logp": np.float32}
ATTRIBUTE_OF = {NAMES.get(field, field): field for field in SampledTrajectory.__dataclass_fields__}
"""The `SampledTrajectory` attribute of each column."""


def to_parquet(trajectories: Sequence[SampledTrajectory]) -> bytes:
    """Return the content of a Parquet file with one row a trajectory.

    Raises:
        InputError: messages have further keys, with values that Parquet would not give back as they are.
    """
    columns = {name: _column(name, [getattr(t, ATTRIBUTE_OF[name]) for t in trajectories]) for name in TYPES}
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink, write_page_checksum=True)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _column(name: str, values: Sequence[Any]) -> pa.Array:
    if name == "prompt":
        return _prompts(values)
    if name == "answer_json":
        values = [None if v is None else json.dumps(v, ensure_ascii=False, default=str) for v in values]
    if name in ARRAYS:
        ends = np.cumsum([0, *map(len, values)], dtype=np.int32)
        flat = np.concatenate([np.asarray(v, ARRAYS[name]) for v in values])
        return pa.ListArray.from_arrays(pa.array(ends), pa.array(flat))
    return pa.array(values, TYPES[name])


def _prompts(values: Sequence[Sequence[dict[str, Any]]]) -> pa.Array:
    try:
        return messages_array(values)
    except ValueError as error:
        raise InputError(f"a prompt's {error}; give prompts of role, content, tools and tool_calls") from None


def from_parquet(table: pa.Table) -> Iterator[SampledTrajectory]:
    """Yield the trajectory of each row of a table with all columns of `TYPES`."""
    columns: dict[str, Sequence[Any]] = {}
    for name in TYPES:
        column = table[name].combine_chunks()
        if name in ARRAYS:
            flat, ends = column.values.to_numpy(), column.offsets.to_numpy()
            # Copies: a view would keep the whole shard in memory.
            columns[name] = [flat[a:b].copy() for a, b in pairwise(ends)]
        else:
            columns[name] = messages_in(column) if name == "prompt" else column.to_pylist()
    columns["answer_json"] = [None if v is None else json.loads(v) for v in columns["answer_json"]]
    for row in zip(*columns.values(), strict=True):
        yield SampledTrajectory(**{ATTRIBUTE_OF[name]: value for name, value in zip(columns, row, strict=True)})
