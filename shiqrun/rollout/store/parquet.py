"""Sampled trajectories are stored as rows of a Parquet file, whose columns `data=jsonl` reads, too.

The rows of a file are completions of prompts, or all of them episodes: these have a list of messages as their
completion, a list of rewards, and the columns of `EPISODE`.
"""

import json
import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shiqrun.data.message_columns import PROMPT, messages_array, messages_in
from shiqrun.data.token_columns import SPANS
from shiqrun.errors import InputError
from shiqrun.rollout.trajectory import SampledTrajectory, Turns

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
EPISODE: dict[str, pa.DataType] = {
    "rewards": pa.list_(pa.float64()),
    SPANS: pa.list_(pa.list_(pa.int32())),
    "truncated": pa.string(),
}
"""Columns of episodes, in the place of `reward`."""
ARRAYS = {"input_ids": np.int32, "behaviour_logp": np.float32, "policy_logp": np.float32}
ATTRIBUTE_OF = {NAMES.get(field, field): field for field in SampledTrajectory.__dataclass_fields__}
"""The `SampledTrajectory` attribute of each column."""


def to_parquet(trajectories: Sequence[SampledTrajectory]) -> bytes:
    """Return the content of a Parquet file with one row a trajectory.

    Raises:
        InputError: messages have further keys, with values that Parquet would not give back as they are.
    """
    episodes = [t.turns for t in trajectories if t.turns is not None]
    names = [name for name in TYPES if not episodes or name not in ("completion", "reward")]
    columns = {name: _column(name, [getattr(t, ATTRIBUTE_OF[name]) for t in trajectories]) for name in names}
    if episodes:
        columns |= _episode_columns(episodes)
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


def _episode_columns(episodes: Sequence[Turns]) -> dict[str, pa.Array]:
    try:
        said = messages_array([turns.messages for turns in episodes])
    except ValueError as error:
        raise InputError(f"an episode's {error}; answer with messages of role and content") from None
    values = {
        "rewards": [[*map(float, turns.rewards)] for turns in episodes],
        SPANS: [[[*span] for span in turns.spans] for turns in episodes],
        "truncated": [turns.truncated for turns in episodes],
    }
    return {"completion": said} | {name: pa.array(values[name], kind) for name, kind in EPISODE.items()}


def _turns_of(table: pa.Table) -> list[Turns]:
    """Return the turns of each row of a table of episodes."""
    messages = messages_in(table["completion"].combine_chunks())
    rewards, spans, truncated = (table[name].to_pylist() for name in EPISODE)
    rows = zip(messages, spans, rewards, truncated, strict=True)
    return [Turns(said, tuple((a, b) for a, b in at), tuple(paid), why) for said, at, paid, why in rows]


def from_parquet(table: pa.Table) -> Iterator[SampledTrajectory]:
    """Yield the trajectory of each row of a table with all columns of `TYPES`, or those of episodes."""
    columns: dict[str, Sequence[Any]] = {}
    if SPANS in table.column_names:
        columns["turns"] = turns = _turns_of(table)
        columns["completion"] = ["\n\n".join(one.said) for one in turns]
        columns["reward"] = [math.fsum(one.rewards) for one in turns]
    for name in TYPES.keys() - columns.keys():
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
