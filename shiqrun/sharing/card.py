"""`model_card` writes the README of a model that leaves its run: what it is, how good, how it was made, what to cite.

It names no path of the machine that trained it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import yaml

from shiqrun.console import number
from shiqrun.evaluation.result_files import spread
from shiqrun.report.run_files import as_number
from shiqrun.sharing.citations import papers, software
from shiqrun.sharing.finished_run import FinishedRun, hub_id, public
from shiqrun.training.summary_tables import main_metrics
from shiqrun.training.verdict import verdict

Form = Literal["merged", "adapter", "gguf"]
"""What is exported: the whole model, its LoRA adapter alone, or one file for llama.cpp."""
NOT_SHOWN = ("algo.name", "algo._target_", "algo._partial_", "trainer.micro_batch_tokens", "trainer.log_every")
NODES = ("algo.", "trainer.", "model.lora_", "model.quantize")
"""What a reader must know to train such a model again begins with one of these."""
SOURCES = ("data.path", "data.val_path", "data.name")
CARD = """\
---
{metadata}---
# {title}

{what}{verdict}

| metric | reference | this model |
|---|---|---|
{metrics}

{intervals}

## Use

{use}

## Training

{how}

| setting | value |
|---|---|
{settings}

## Citation

{cite}

```bibtex
{entries}
```
"""
USE = {
    "policy": """\
    from transformers import AutoModelForCausalLM, AutoTokenizer
    model = AutoModelForCausalLM.from_pretrained("{place}")
    tokenizer = AutoTokenizer.from_pretrained("{place}")
    chat = [{{"role": "user", "content": "Hello"}}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    print(tokenizer.decode(model.generate(**inputs, max_new_tokens=64)[0]))""",
    "reward_model": """\
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    model = AutoModelForSequenceClassification.from_pretrained("{place}")
    tokenizer = AutoTokenizer.from_pretrained("{place}")

The score of a conversation is read at the last token of the assistant's last turn: give the model the tokens up to that
one, itself included.""",
    "adapter": """\
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer
    base = AutoModelForCausalLM.from_pretrained("{base}")
    model = PeftModel.from_pretrained(base, "{place}")
    tokenizer = AutoTokenizer.from_pretrained("{place}")""",
    "gguf": """\
    llama-cli -m {file} --jinja -p "Hello"

`{file}` holds weights, tokenizer and chat template for llama.cpp and the programs that build on it.""",
}


def model_card(run: FinishedRun, form: Form, title: str, *, place: str, base: str = "", file: str = "") -> str:
    """Return the Markdown text of a model card, without any path of this machine.

    Args:
        run: as it finished.
        form: what was exported.
        title: the first heading.
        place: directory or Hub id that loads the model.
        base: with an adapter, the directory or Hub id of its base model.
        file: with gguf, the name of the file.
    """
    after = {name: value for name, text in run.summary.items() if (value := as_number(text)) is not None}
    before, kind = run.before(), form
    said = verdict(before, after, int(after.get("trajectories/val", 0)) // 2)
    rows = [f"| {n} | {_reference(n, before, after)} | {_value(n, after)} |" for n in main_metrics(after)[0]]
    known = papers(run.config)
    entries = [*(known or []), software(run.summary.get("version/shiqrun", "unknown"), run.summary.get("git_commit"))]
    use = USE["reward_model" if run.is_reward_model else "policy" if kind == "merged" else kind]
    return CARD.format(
        metadata=yaml.safe_dump(_metadata(run, form), sort_keys=False),
        title=title,
        what=_what(run, form),
        verdict=f" {said.partition('; ')[0]}." if said else "",  # what follows is advice for whoever trains it
        metrics="\n".join(rows),
        intervals=_intervals(after),
        use=use.format(place=place, base=base, file=file),
        how="\n".join(_how(run)),
        settings="\n".join(f"| {key} | {value} |" for key, value in _settings(run)),
        cite=_cite(run, known),
        entries="\n".join(entries),
    )


def _metadata(run: FinishedRun, form: Form) -> dict[str, Any]:
    """Return what the Hub reads at the top of a card; only ids of the Hub are named there."""
    library = {"merged": "transformers", "adapter": "peft", "gguf": "gguf"}[form]
    base, data = hub_id(run.config.get("model.path")), hub_id(run.config.get("data.path"))
    return {
        "library_name": library,
        "pipeline_tag": "text-classification" if run.is_reward_model else "text-generation",
        "tags": ["shiqrun", str(run.summary.get("algo", run.config.get("algo.name"))), "reinforcement-learning"],
        **({"base_model": base} if base else {}),
        **({"datasets": [data]} if data else {}),
    }


def _what(run: FinishedRun, form: Form) -> str:
    kind = "reward model" if run.is_reward_model else "language model"
    what = {"merged": f"A {kind}", "adapter": "A LoRA adapter", "gguf": f"A {kind} for llama.cpp"}[form]
    algo, base = run.summary.get("algo"), run.config.get("model.path")
    start = f"`{public(base)}`, which is also its reference" if base else "random weights"
    return f"{what} trained by `{algo}` on `{_data(run)}`: {run.summary.get('steps')} optimiser steps from {start}."


def _data(run: FinishedRun) -> str:
    """Return the name of the data set; of files, their own name."""
    named = [public(run.config[key]) for key in SOURCES if run.config.get(key)]
    return named[0]


def _reference(name: str, before: dict[str, float], after: dict[str, float]) -> str:
    known = before.get(name, after.get(name.replace("val/", "val/reference_", 1)))
    return "" if known is None else number(known)


def _value(name: str, after: dict[str, float]) -> str:
    return f"{number(after[name])} {spread(after, name)}".strip()


def _intervals(after: dict[str, float]) -> str:
    count = after.get("val/prompts", after.get("val/episodes"))
    where = f" over {count:.0f} held-out prompts" if count else ""
    if any(name.startswith("val/") and "_ci95" in name for name in after):
        return f"Values after ± and in brackets are 95 % intervals{where}; `val/kl` is in nats an answer."
    return "Measured on held-out data, at the end of training."


def _how(run: FinishedRun) -> Iterator[str]:
    """Yield one line each about the code, the data and the seed."""
    said, commit = run.summary, run.summary.get("git_commit")
    names = ("torch", "transformers", "peft")
    versions = [f"{name} {said[f'version/{name}']}" for name in names if said.get(f"version/{name}")]
    code = f"shiqrun {said.get('version/shiqrun', '?')}" + (f" at git commit `{commit}`" if commit else "")
    yield f"* Code: {code}; {', '.join(versions)}. Seed {said.get('seed', '?')}."
    counts = f"{said.get('trajectories/train', '?')} trajectories, {said.get('trajectories/val', '?')} held out"
    yield f"* Data: `{_data(run)}`, {counts} (fingerprint `{said.get('fingerprint/data', '?')}`)."
    reward = next((run.config[k] for k in ("eval.reward.path", "eval.reward.name") if run.config.get(k)), None)
    if reward:
        yield f"* Rewards of the metrics: `{public(reward)}`."
    yield f"* Weights: fingerprint `{said.get('fingerprint/policy', '?')}`."


def _settings(run: FinishedRun) -> Iterator[tuple[str, str]]:
    for key, value in run.config.items():
        if key.startswith(NODES) and key not in NOT_SHOWN and value is not None:
            yield key, public(value)


def _cite(run: FinishedRun, known: list[str] | None) -> str:
    if known is None:
        target = run.config.get("algo._target_", "?")
        return f"The loss `{target}` is its author's own, and no paper of it is known here; shiqrun itself:"
    if not known:
        return "Supervised fine-tuning has no one paper; shiqrun itself:"
    return "The method, what it was combined with, and the software:"


def write_card(folder: Path, text: str) -> None:
    """Write a card into a model's directory, in the place of the one that its run wrote."""
    (folder / "README.md").write_text(text, encoding="utf-8")
