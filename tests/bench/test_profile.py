"""The profile of a run gives every second to one stage, the innermost one."""

import pytest

from bench.profile import START, Stages, profile


def test_a_stage_inside_another_takes_its_time_from_it():
    seconds = iter(range(100))
    stages = Stages(lambda: float(next(seconds)), profiles=False)
    stages.enter("steps")
    stages.enter("checkpoints")
    stages.leave()
    stages.leave()
    assert stages.calls == {"steps": 1, "checkpoints": 1}
    assert stages.seconds == {"steps": 2.0, "checkpoints": 1.0}


@pytest.mark.slow
def test_a_run_is_divided_into_its_stages(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seconds = iter(range(10**6))
    words = ("data.problems=64", "data.val_problems=16", "eval.max_prompts=4", "eval.max_new_tokens=4")
    words = ("data=programs", "eval.reward=programs", "trainer.max_steps=2", "eval.every=2", "logger=none", *words)
    words = (*words, "run_dir=run", "cache_dir=cache")
    stages = profile(words, clock=lambda: float(next(seconds)), functions=0)
    assert {START, "steps", "reference pass", "evaluation: scoring", "export"} <= set(stages.seconds)
    assert stages.calls["steps"] == 2
    assert stages.calls["evaluation: measuring"] == 2
