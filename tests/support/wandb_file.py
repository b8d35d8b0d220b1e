"""Reads the file of an offline W&B run: what a dashboard would know of it.

The file is a LevelDB log: a 7-byte header, then blocks of 32 KiB with records of checksum, length, kind and payload;
a payload (joined over its parts) is one protobuf `Record`.
"""

import json
import struct
from pathlib import Path

from wandb.proto import wandb_internal_pb2

BLOCK, HEADER = 32 * 1024, 7
FULL, LAST = 1, 4


def records(path: Path):
    data, at, parts = path.read_bytes(), HEADER, b""
    while at + HEADER <= len(data):
        room = BLOCK - at % BLOCK
        if room < HEADER:
            at += room
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        if not kind:
            at += room
            continue
        parts += data[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (FULL, LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def table(path: Path, run: dict, key: str) -> list[dict]:
    """The rows of the last table logged under a key; its file lies beside the run's."""
    last = [row for row in run["history"] if f"{key}.path" in row][-1][f"{key}.path"]
    content = json.loads((path.parent / "files" / last).read_text())
    return [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]


def pairs(items) -> dict:
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


def read(path: Path) -> dict:
    run = {"history": [], "config": {}, "summary": {}, "metrics": [], "axes": {}, "hidden": set(), "exit_code": None}
    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind == "history":
            run["history"].append(pairs(record.history.item))
        elif kind == "summary":
            run["summary"] |= pairs(record.summary.update)
        elif kind == "config":
            run["config"] |= pairs(record.config.update)
        elif kind == "metric":
            run["metrics"].append(record.metric.name or record.metric.glob_name)
            run["axes"][run["metrics"][-1]] = record.metric.step_metric
            run["hidden"] |= {run["metrics"][-1]} if record.metric.options.hidden else set()
        elif kind == "run":
            run |= {"id": record.run.run_id, "project": record.run.project, "group": record.run.run_group}
            run |= {"job_type": record.run.job_type}
            run |= {"tags": list(record.run.tags), "name": record.run.display_name}
            run["config"] |= pairs(record.run.config.update)
        elif kind == "exit":
            run["exit_code"] = record.exit.exit_code
    return run
