"""What an evaluation leaves beside its figures: completions, or the dialogues of episodes."""

import json
from pathlib import Path

from shiqrun.evaluation.completion_files import write_completions
from shiqrun.evaluation.episodes import EpisodeEvaluation, EpisodeResult
from shiqrun.evaluation.evaluator import CompletionEvaluation, EvaluationResult


def write_answers(directory: Path, answers: EvaluationResult) -> None:
    """Completions of prompts as `write_completions` writes them; of episodes `episodes.jsonl` and `episodes.md`.

    `data=bfcl data.path=episodes.jsonl` reads the dialogues again.
    """
    if isinstance(answers, CompletionEvaluation):
        write_completions(directory, answers)
        return
    assert isinstance(answers, EpisodeEvaluation)
    with (directory / "episodes.jsonl").open("w", encoding="utf-8") as file:
        for p in answers.played:
            more = {"official": p.official, "log_ratio": p.log_ratio, "classes": p.classes}
            file.write(json.dumps(p.record | more, ensure_ascii=False) + "\n")
    ranked = sorted(answers.played, key=lambda p: -sum(p.rewards) / len(p.rewards))
    (directory / "episodes.md").write_text("\n".join(map(_readable, ranked)), encoding="utf-8")


def _readable(p: EpisodeResult) -> str:
    """A dialogue, with the verdict behind every turn."""
    verdicts = iter(zip(p.record["turn_rewards"], p.record["counted"], p.record["why"], strict=True))
    lines, started = [f"## {p.sample} ({', '.join(p.classes)})", ""], False
    for message in p.record["messages"]:
        if message["role"] == "user" and started:
            lines += [_verdict(*next(verdicts)), ""]
        started |= message["role"] == "user"
        text = str(message["content"])
        lines += [f"**{message['role']}** {text}" if message["role"] != "tool" else f"> {text}", ""]
    return "\n".join([*lines, *(_verdict(*v) + "\n" for v in verdicts)])


def _verdict(reward: float, counted: bool, why: str) -> str:
    said = "not counted" if not counted else f"reward {reward:g}"
    return f"*{said}{f': {why}' if why else ''}*"
