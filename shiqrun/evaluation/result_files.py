"""`write_results` writes an evaluation's completions or episodes to files, for programs and for reading."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.table import Table

from shiqrun.console import number
from shiqrun.data.message_columns import PROMPT, TEXTS, messages_array
from shiqrun.evaluation.episodes import EpisodeEvaluation, EpisodeResult
from shiqrun.evaluation.evaluator import CompletionEvaluation, EvaluationResult
from shiqrun.sampling.sampler import SampledCompletion
from shiqrun.util.intervals import HALF, bounds, is_bound

COLUMNS = pa.schema(
    {
        "prompt_id": pa.string(),
        "sample": pa.int64(),
        "messages": PROMPT,  # and `tools` and `tool_calls` as JSON, where messages have them
        "prompt": pa.string(),
        "completion": pa.string(),
        "token_ids": pa.list_(pa.int64()),
        "ended": pa.bool_(),
        "reward": pa.float64(),
        "log_ratio": pa.float64(),
        "entropy": pa.float64(),
        "ref_completion": pa.string(),
        "ref_reward": pa.float64(),
    }
)


def write_results(directory: Path, result: EvaluationResult) -> None:
    """Write the completions of an evaluation by completions, or the dialogues of one by episodes."""
    if isinstance(result, CompletionEvaluation):
        write_completions(directory, result)
    else:
        assert isinstance(result, EpisodeEvaluation)
        write_episodes(directory, result.played)


def write_episodes(directory: Path, played: Sequence[EpisodeResult]) -> None:
    """Write `episodes.jsonl`, one episode a line, and `episodes.md`, largest return first, for reading."""
    with (directory / "episodes.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(p.row(), ensure_ascii=False) + "\n" for p in played)
    ranked = sorted(played, key=lambda p: -sum(p.rewards))
    text = "\n".join(line for p in ranked for line in _readable_episode(p))
    (directory / "episodes.md").write_text(text, encoding="utf-8")


def _readable_episode(p: EpisodeResult) -> Iterator[str]:
    """Yield the lines of a dialogue, each of the environment's remarks before the message that it names."""
    yield from (f"## {p.task} ({p.info.label})" if p.info.label else f"## {p.task}", "")
    remarks = list(p.info.remarks) or _rewards_as_remarks(p)
    for n, message in enumerate(p.messages):
        yield from (line for place, text in remarks if place == n for line in (f"*{text}*", ""))
        text = str(message["content"])
        yield from (f"> {text}" if message["role"] == "tool" else f"**{message['role']}** {text}", "")
    yield from (line for place, text in remarks if place >= len(p.messages) for line in (f"*{text}*", ""))
    if p.truncated and not p.info.remarks:
        yield from (f"*cut off: {p.truncated}*", "")


def _rewards_as_remarks(p: EpisodeResult) -> list[tuple[int, str]]:
    """Return the reward of each message of the policy, to be shown behind it."""
    places = [n + 1 for n, message in enumerate(p.messages) if message["role"] == "assistant"]
    return [(n, f"reward {reward:g}") for n, reward in zip(places, p.rewards, strict=False)]


def write_completions(directory: Path, evaluation: CompletionEvaluation) -> None:
    """Write `completions.parquet`, a row a completion, and `completions.md`, best reward first, for reading."""
    others: Sequence[SampledCompletion | None] = evaluation.reference or [None] * len(evaluation.samples)
    rows = [
        {
            "prompt_id": s.prompt.prompt_id,
            "sample": s.index,
            "messages": s.prompt.messages,
            "prompt": s.prompt.text,
            "completion": s.text,
            "token_ids": s.tokens.tolist(),
            "ended": s.ended,
            "reward": s.reward,
            "log_ratio": s.log_ratio,
            "entropy": s.entropy,
            "ref_completion": other and other.text,
            "ref_reward": other and other.reward,
        }
        for s, other in zip(evaluation.samples, others, strict=True)
    ]
    chats = [[{k: m[k] for k in ("role", "content", *TEXTS) if k in m} for m in row["messages"]] for row in rows]
    place = COLUMNS.get_field_index("messages")
    table = pa.Table.from_pylist(rows, COLUMNS).set_column(place, "messages", messages_array(chats))
    pq.write_table(table, directory / "completions.parquet")
    ranked = sorted(rows, key=lambda r: -(r["reward"] or 0.0))
    (directory / "completions.md").write_text("\n".join(map(_readable, ranked)), encoding="utf-8")


def _readable(row: dict[str, Any]) -> str:
    head = f"## prompt {row['prompt_id']}, sample {row['sample'] + 1}"
    parts = [
        head,
        _quote(row["prompt"]),
        f"**policy**{_score_text(row['reward'], row['log_ratio'])}",
        _quote(row["completion"]),
    ]
    if row["ref_completion"] is not None:
        parts += [f"**reference**{_score_text(row['ref_reward'], None)}", _quote(row["ref_completion"])]
    return "\n\n".join(parts) + "\n"


def _score_text(reward: float | None, log_ratio: float | None) -> str:
    said = [f"reward {number(reward)}"] * (reward is not None) + [f"log-ratio {number(log_ratio)} nats"] * (
        log_ratio is not None
    )
    return f" ({', '.join(said)})" if said else ""


def _quote(text: str) -> str:
    return "\n".join(f"> {line}" for line in text.splitlines()) or "> (empty)"


FIRST = ("reward", "reward_per_turn", "regularised_return", "regret", "kl", "logratio_sum", "win_rate", "pass@1")
"""The metrics that people look for in an evaluation, in the order in which its table begins."""


def result_table(metrics: dict[str, float], title: str) -> Table:
    """Return a table of metrics with their 95 % intervals."""
    table = Table(title=title, title_justify="left")
    for column in ("metric", "value", "95 % interval"):
        table.add_column(column, justify="left" if column == "metric" else "right")
    names = [name for name in metrics if not is_bound(name)]
    first = {f"eval/{name}": place for place, name in enumerate(FIRST)}
    for name in sorted(names, key=lambda name: first.get(name, len(first))):
        table.add_row(name, number(metrics[name]), spread(metrics, name))
    return table


def spread(metrics: Mapping[str, float], name: str) -> str:
    """Return a metric's 95 % interval as text: `± 0.1`, or `[0.2, 0.5]` if lopsided; empty where it has none."""
    half, ends = metrics.get(name + HALF, math.nan), bounds(metrics, name)
    if math.isfinite(half):
        return f"± {half:.2g}"
    return "" if ends is None else f"[{', '.join(map(number, ends))}]"
