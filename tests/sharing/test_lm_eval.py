"""lm-evaluation-harness reads an exported policy, and finds the answers that the policy itself prefers."""

import importlib.util
import json
import os
import shlex
import subprocess
import sys

import pytest
import torch
import yaml

import shiqrun
from shiqrun.cli import main
from tests.sharing.runs import ROWS

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="the extra `lm-eval` is not installed"
)
CHOICES = ["yes", "no"]


def preferred(run, prompt):
    """The answer with the larger log-likelihood after the prompt in the policy's chat template."""
    model, tokenizer = run.policy(), run.tokenizer()
    talk = [{"role": "user", "content": prompt}]
    before = tokenizer.apply_chat_template(talk, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(before, add_special_tokens=False)["input_ids"]
    scores = []
    for choice in CHOICES:
        answer = tokenizer(before + choice, add_special_tokens=False)["input_ids"][len(ids) :]
        logp = model(torch.tensor([ids + answer])).logits[0, len(ids) - 1 : -1].log_softmax(-1)
        scores.append(logp.gather(-1, torch.tensor(answer)[:, None]).sum().item())
    return CHOICES[scores[1] > scores[0]]


def test_the_printed_command_evaluates_the_policy(runs, tmp_path, capsys):
    assert main(["export", str(runs["llama"]), "--to", "merged", "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out.splitlines()[-1].removeprefix("next: ").partition(" (")[0]
    rows = [{"question": row["prompt"], "label": CHOICES.index(row["answer"])} for row in ROWS[:12]]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": "even",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": CHOICES,
        "doc_to_target": "{{label}}",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    }
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "even.yaml").write_text(yaml.safe_dump(task))
    program, *words = shlex.split(printed.replace("TASK", "even"))
    assert program == "lm_eval"
    more = ["--include_path", str(tmp_path / "tasks"), "--device", "cpu", "--output_path", str(tmp_path / "found.json")]
    done = subprocess.run(
        [sys.executable, "-m", "lm_eval", *words, *more],
        env=os.environ | {"HF_DATASETS_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(next(tmp_path.glob("found*.json")).read_text())
    run = shiqrun.load(runs["llama"])
    right = [preferred(run, row["prompt"]) == row["answer"] for row in ROWS[:12]]
    assert found["results"]["even"]["acc,none"] == pytest.approx(sum(right) / 12)
