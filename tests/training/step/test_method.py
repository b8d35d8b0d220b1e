"""The training step through the real Trainer: what it asks the device for, and when."""

import threading
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback

from shiqrun.batching import prefetch
from shiqrun.batching.data_module import LoggedData
from shiqrun.errors import TrainingError
from shiqrun.settings import STAMP
from shiqrun.training.callbacks import Checkpoints
from shiqrun.training.signals import Signals, Stopped
from tests.training.step.fitting import BATCH, ROW, SaveAt, asked, fit, given, method, packed, weights


@pytest.fixture
def loading_threads():
    """The names of loaders' threads, but for those that another test has left to be collected."""
    before = set(threading.enumerate())
    return lambda: [t.name for t in threading.enumerate() if t.name.startswith(prefetch.THREAD) and t not in before]


@pytest.mark.parametrize("loss", ["shiq", "shiq_ms", "shiq_tk", "dro"])
def test_no_step_between_logged_ones_waits_for_the_device(monkeypatch, loss):
    assert not asked(monkeypatch, *packed(method(loss, steps=9, reads_late=True), given()))


def test_nor_with_an_anchor_drawn_from_the_policy(monkeypatch):
    made = method(steps=9, reads_late=True, anchor=1.0, anchor_from="policy")
    assert not asked(monkeypatch, *packed(made, given()))


def test_what_compares_completions_asks_in_its_loss_alone(monkeypatch):
    found = asked(monkeypatch, *packed(method("dpo", steps=9, reads_late=True), given(together=True)))
    assert set(found) <= {"pairs.py", "preference.py"}


def test_the_questions_are_seen_where_there_are_any(monkeypatch):
    assert asked(monkeypatch, method(steps=9, reads_late=False), given())["sums.py"] == 5
    assert asked(monkeypatch, method(steps=9, reads_late=True), given(), logged=True)["sums.py"] > 3


def test_metrics_are_computed_at_logged_steps_alone(monkeypatch):
    from shiqrun.training.step import batch_metrics

    calls = []
    monkeypatch.setattr(batch_metrics, "log_ratios", lambda *a: calls.append(1) or torch.zeros(()))
    made = method(steps=9, log_every=4)
    data = LoggedData(given(), batch_size=BATCH, micro_batch_tokens=24, seed=0)
    data.train_dataloader()
    fit(made)
    assert len(calls) == sum(len(data.steps.rows_of(step - 1)) for step in (1, 4, 8, 9))
    batch = given().train.collate([0, 1])
    assert set(made.terms(batch, measure=False)[1]) == {"loss"}
    assert {"loss", "reward", "logratio_abs", "residual_abs"} <= set(made.terms(batch)[1])


# ------------------------------------------------------------------ reading late changes no number
def test_reading_late_gives_the_same_bits_and_the_same_rows():
    rows, ends = [], []
    for late in (False, True):
        kept, made = [], method(steps=9, reads_late=late)
        fit(made, kept=kept)
        rows.append([(s, {k: v for k, v in m.items() if "per_second" not in k}) for s, m in kept])
        ends.append(weights(made))
    assert rows[0] == rows[1]
    assert [step for step, _ in rows[0]] == [1, 4, 8, 9]
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_the_gradient_is_that_of_the_sum_over_the_step_divided_by_its_units_once():
    kept, encoded, made = [], given(), method(steps=1)
    fit(made, encoded, kept=kept)
    twin = method()
    data = LoggedData(encoded, batch_size=BATCH, micro_batch_tokens=10**6, seed=0)
    data.train_dataloader()
    (whole,) = next(iter(data.steps))
    terms, _ = twin.terms(whole)
    gradients = torch.autograd.grad(
        terms.total / int(encoded.train.actions[data.steps.rows_of(0)[0]].sum()), list(twin.policy.parameters())
    )
    norm = sum(float(g.double().square().sum()) for g in gradients) ** 0.5
    assert kept[0][1]["train/grad_norm"] == pytest.approx(norm, rel=1e-5)


@pytest.mark.parametrize("late", [False, True])
def test_the_tokens_of_a_checkpoint_between_logged_steps_are_those_of_its_steps(tmp_path, late):
    made, encoded = method(steps=7, reads_late=late), given()
    fit(made, encoded, callbacks=[SaveAt(tmp_path / "a.ckpt", 6)])
    data = LoggedData(encoded, batch_size=BATCH, micro_batch_tokens=24, seed=0)
    data.train_dataloader()
    tokens = [int(encoded.train.lengths[list(chain(*data.steps.rows_of(step)))].sum()) for step in range(7)]
    saved = torch.load(tmp_path / "a.ckpt", weights_only=False)
    assert saved[STAMP]["num_tokens"] == sum(tokens[:6])
    assert made.num_tokens == sum(tokens)


# ------------------------------------------------------------------ the thread that makes batches
def test_no_thread_is_left_after_a_run(loading_threads):
    seen = []

    class Look(Callback):
        def on_train_batch_end(self, *_):
            seen.extend(loading_threads())

    fit(method(steps=3), callbacks=[Look()])
    assert len(set(seen)) == 1
    assert not loading_threads()


def test_no_thread_is_left_after_a_signal_or_an_error(tmp_path, loading_threads):
    checkpoints = Checkpoints(tmp_path, 1000)
    signals = Signals(checkpoints)
    signals.received = 15
    with pytest.raises(Stopped, match="after step 1"):
        fit(method(steps=7), callbacks=[signals])
    signals.restore()
    assert not loading_threads()
    with pytest.raises(TrainingError):
        fit(method(steps=7), given(nonsense=ROW))
    assert not loading_threads()


def test_an_error_in_the_thread_ends_the_run_with_its_message(loading_threads):
    encoded = given()
    encoded.train.trajectories[ROW] = replace(encoded.train.trajectories[ROW], rewards=np.zeros(99, np.float32))
    with pytest.raises(ValueError, match="99"):
        fit(method(steps=7), encoded)
    assert not loading_threads()
