"""The training step through the real Trainer: what it asks the device for, when, and what it does about nonsense."""

import functools
import sys
import threading
from collections import Counter
from dataclasses import replace
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

import shiqrun
from shiqrun import losses
from shiqrun.batching import prefetch
from shiqrun.batching.logged_data import Encoded, LoggedData
from shiqrun.batching.rows import Rows
from shiqrun.errors import TrainingError
from shiqrun.models.attention import use_packed_attention
from shiqrun.models.policy import Policy, ValueHead, enable_packing
from shiqrun.models.reference import Frozen
from shiqrun.settings import STAMP, AlgoSettings, TrainerSettings
from shiqrun.training.callbacks import Checkpoints, Signals, Stopped, Validation
from shiqrun.training.step.method import Method
from shiqrun.training.step.schedule import learning_rate_factor
from shiqrun.training.step.sums import PendingStep
from tests.support import helpers

BATCH = 3


def method(loss="shiq", *, steps=7, log_every=4, reads_late=None, wrapped=lambda loss: loss, **algo):
    settings = TrainerSettings(
        max_steps=steps,
        max_epochs=None,
        batch_size=BATCH,
        micro_batch_tokens=24,
        prompts_together=False,
        learning_rate=1e-2,
        weight_decay=0.01,
        warmup_steps=2,
        lr_schedule="linear",
        grad_clip=1.0,
        log_every=log_every,
        checkpoint_every=1000,
    )
    policy = Policy(helpers.llama(), value=ValueHead(16, "state") if loss == "ppo" else None)
    return Method(
        policy,
        Frozen(policy),
        wrapped(functools.partial(getattr(losses, loss), beta=0.5)),
        settings,
        max_steps=steps,
        seed=3,
        algo=AlgoSettings(**({"reference": "frozen", "reward_offset": "none"} | algo)),
        beta=0.5,
        reads_late=reads_late,
    )


def given(*, together=False, nonsense=None):
    """Twelve rows, sampled by nobody in particular; the reward of row `nonsense` is no number."""
    trajectories = list(helpers.rows(12).trajectories)
    if nonsense is not None:
        rewards = np.full_like(trajectories[nonsense].rewards, np.nan)
        trajectories[nonsense] = replace(trajectories[nonsense], rewards=rewards)
    made = Rows(trajectories, pad=0, together=together)
    logp = [np.random.default_rng(n).normal(-4, 0.5, k).astype(np.float32) for n, k in enumerate(made.actions)]
    made = made.with_column("behaviour_logp", logp)
    return Encoded(made, made, Counter(), "x")


def packed(made, encoded):
    """The same, with batches that are read without padding."""
    use_packed_attention(made.policy.causal_lm)
    made.reference = Frozen(made.policy)
    assert enable_packing(made.policy, encoded.train) is None
    rows = encoded.train.with_layout(packed=True)
    return made, replace(encoded, train=rows, val=rows)


def fit(made, encoded=None, *, callbacks=(), kept=None, tokens=24, checkpoint=None):
    data = LoggedData(encoded or given(), batch_size=BATCH, micro_batch_tokens=tokens, seed=0)
    off = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    trainer = Trainer(accelerator="cpu", max_steps=made.max_steps, max_epochs=-1, callbacks=list(callbacks), **off)
    if kept is not None:
        made.record = lambda metrics: kept.append((trainer.global_step, metrics))
    trainer.fit(made, datamodule=data, ckpt_path=checkpoint, weights_only=False)
    return trainer


def weights(made):
    return [p.detach().clone() for p in made.policy.parameters()]


@pytest.fixture
def loading_threads():
    """The names of loaders' threads, but for those that another test has left to be collected."""
    before = set(threading.enumerate())
    return lambda: [t.name for t in threading.enumerate() if t.name.startswith(prefetch.THREAD) and t not in before]


# ------------------------------------------------------------------ what the device is asked for
READS = {"_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "equal", "_unique2", "unique_dim", "item"}
PACKAGE = str(Path(shiqrun.__file__).parent)


class Questions(TorchDispatchMode):
    """Counts what makes the host wait for a GPU, by the file of the package that asked."""

    def __init__(self):
        super().__init__()
        self.by_file, self.inside, self.steps = Counter(), False, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        masks = name in ("index", "index_put", "index_put_") and any(
            x is not None and x.dtype == torch.bool for x in args[1]
        )
        if name in READS or masks:
            self.note()
        return func(*args, **(kwargs or {}))

    def note(self):
        frame = sys._getframe(1)
        while frame is not None and not frame.f_code.co_filename.startswith(PACKAGE):
            frame = frame.f_back
        self.by_file["elsewhere" if frame is None else Path(frame.f_code.co_filename).name] += 1

    def noting(self, original):
        def noted(*args, **options):
            if self.inside and threading.current_thread() is threading.main_thread():
                self.note()
            return original(*args, **options)

        return noted


class Asking(Callback):
    """Asks at the steps without a row in the logs, or at the others."""

    def __init__(self, questions, logged):
        self.questions, self.logged = questions, logged

    def on_train_batch_start(self, trainer, pl_module, *_):
        if pl_module.logs_now(trainer.global_step + 1) == self.logged:
            self.questions.inside = True
            self.questions.steps += 1
            self.questions.__enter__()

    def on_train_batch_end(self, *_):
        if self.questions.inside:
            self.questions.inside = False
            self.questions.__exit__(None, None, None)


def asked(monkeypatch, made, encoded, *, logged=False):
    """Questions at the steps between logged ones, by file."""
    questions = Questions()
    with monkeypatch.context() as patch:
        for name in ("tolist", "numpy", "cpu"):  # on the CPU nothing that is dispatched
            patch.setattr(torch.Tensor, name, questions.noting(getattr(torch.Tensor, name)))
        fit(made, encoded, callbacks=[Asking(questions, logged)])
    assert questions.steps
    return questions.by_file


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


class SaveAt(Callback):
    def __init__(self, path, *steps):
        self.path, self.steps = path, steps

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step in self.steps:
            trainer.save_checkpoint(self.path)


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


# ------------------------------------------------------------------ several updates on a batch
def ppo(**options):
    return method("ppo", **({"epochs": 3, "steps": 5} | options))


def test_a_step_of_several_updates_does_not_depend_on_how_it_is_cut():
    one, many = ppo(), ppo()
    fit(one, tokens=10**6)
    fit(many, tokens=24)
    assert_close(weights(many), weights(one), rtol=0, atol=5e-6)  # float32, sums in another order
    assert not any(torch.equal(a, b) for a, b in zip(weights(one), weights(ppo()), strict=True))


def test_several_updates_are_those_of_a_loop_by_hand():
    made, twin, encoded = ppo(), ppo(), given()
    trainer = fit(made, encoded, tokens=10**6)
    assert trainer.global_step == made.global_step == 5
    data = LoggedData(encoded, batch_size=BATCH, micro_batch_tokens=10**6, seed=0)
    data.train_dataloader()
    head = list(twin.policy.value.parameters())
    body = list(twin.policy.model.parameters())
    optimiser = torch.optim.AdamW([{"params": body}, {"params": head}], weight_decay=0.01)
    for step, (batch,) in zip(range(5), data.steps, strict=False):
        proximal = None
        for _ in range(3):
            scores = twin.policy(batch)
            proximal = proximal or scores.fixed()
            terms = twin.loss(replace(batch, proximal=proximal), scores, twin.reference(batch))
            optimiser.zero_grad()
            (terms.total / terms.count).backward()
            for group in optimiser.param_groups:
                group["lr"] = 1e-2 * learning_rate_factor(step, "linear", 2, 5)
                torch.nn.utils.clip_grad_norm_(group["params"], 1.0)
            optimiser.step()
    assert_close(weights(made), weights(twin), rtol=0, atol=5e-6)  # one kernel for all of AdamW, or several


def test_the_policy_is_read_once_an_update_and_the_reference_once_a_batch():
    made, read = ppo(), Counter()
    made.policy.register_forward_hook(lambda *_: read.update(["policy"]))
    made.reference.policy.register_forward_hook(lambda *_: read.update(["reference"]))
    data = LoggedData(given(), batch_size=BATCH, micro_batch_tokens=24, seed=0)
    data.train_dataloader()
    batches = sum(len(data.steps.rows_of(step)) for step in range(5))
    fit(made)
    assert batches > 5
    assert read == {"policy": 3 * batches, "reference": batches}


def test_an_anchor_on_the_policys_tokens_reads_the_reference_at_every_update():
    made, read = ppo(anchor=1.0, anchor_from="policy", steps=2), []
    made.reference.policy.register_forward_pre_hook(lambda _, args: read.append(args[0].anchor_tokens))
    fit(made, tokens=10**6)
    assert len(read) == 6
    assert not any(torch.equal(a, b) for a, b in pairwise(read) if a.shape == b.shape)


def test_a_row_shows_what_a_step_found_and_what_its_last_update_measured():
    kept = []
    fit(ppo(log_every=1), kept=kept)
    rows = [row for _, row in kept]
    assert rows[0]["train/logratio_abs"] < 1e-5
    assert all(
        {"train/entropy", "train/reward", "train/value_loss", "train/importance_mean"} <= set(row) for row in rows
    )
    assert all(row["train/approx_kl"] > 1e-6 for row in rows)
    kept = []
    fit(ppo(log_every=1, epochs=1), kept=kept)
    assert all(row["train/approx_kl"] == 0 for _, row in kept)


def test_tokens_of_a_batch_are_counted_once():
    made, once = ppo(), ppo(epochs=1)
    fit(made)
    fit(once)
    assert made.num_tokens == once.num_tokens > 0


def test_no_step_of_several_updates_waits_for_the_device(monkeypatch):
    assert not asked(monkeypatch, *packed(ppo(steps=9, reads_late=True), given()))


def test_a_resumed_run_of_several_updates_goes_on_to_the_same_bits(tmp_path):
    whole, stopped, resumed = ppo(steps=6), ppo(steps=6), ppo(steps=6)
    fit(whole)
    fit(stopped, callbacks=[SaveAt(tmp_path / "a.ckpt", 3)])
    fit(resumed, checkpoint=tmp_path / "a.ckpt")
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))
    assert resumed.num_tokens == whole.num_tokens


def broken(loss):
    """The loss, no number in the third update that is not the first one on its batch."""
    calls = []

    def nonsense(batch, *scores):
        terms = loss(batch, *scores)
        calls.append(batch.proximal is not None)
        return replace(terms, total=terms.total * float("nan")) if sum(calls) == 3 else terms

    return nonsense


@pytest.mark.parametrize("late", [False, True])
def test_nonsense_in_a_later_update_is_named_with_it(late):
    made = ppo(wrapped=broken, reads_late=late, steps=7)
    with pytest.raises(TrainingError, match=r"step 2, update 2: the loss is nan on a micro-batch of 3 rows"):
        fit(made, tokens=10**6)
    assert all(torch.isfinite(w).all() for w in weights(made))


def test_data_that_nobody_sampled_are_validated_without_the_loss_that_samples_need():
    made = ppo()
    batch = given().val.collate([0, 1, 2])
    assert {"loss", "policy_loss", "reward", "logratio_mean"} <= set(made.validation_metrics(batch))
    assert set(made.validation_metrics(replace(batch, behaviour_logp=None))) == {
        "reward",
        "logratio_mean",
        "logratio_abs",
        "shifted_value",
    }


# ------------------------------------------------------------------ nonsense
def first_step_of(row):
    data = LoggedData(given(), batch_size=BATCH, micro_batch_tokens=24, seed=0)
    data.train_dataloader()
    return next(step for step in range(99) if row in list(chain(*data.steps.rows_of(step)))) + 1


ROW = next(row for row in range(12) if first_step_of(row) == 2)


@pytest.mark.parametrize("late", [False, True])
def test_a_loss_that_is_no_number_is_named_with_its_step_and_rows_and_changes_no_weight(late):
    made = method(steps=7, reads_late=late)
    with pytest.raises(TrainingError) as error:
        fit(made, given(nonsense=ROW))
    assert "step 2: the loss is nan on a micro-batch of" in str(error.value)
    assert "nothing was updated" in str(error.value)
    assert f"file:{ROW + 1}" in str(error.value)
    assert made.global_step == (3 if late else 1)  # it is read at step 4, before that step's update

    class Stop(Callback):
        def on_train_batch_end(self, trainer, *_):
            trainer.should_stop = True

    whole = method(steps=7)
    fit(whole, callbacks=[Stop()])
    assert whole.global_step == 1
    assert all(torch.equal(a, b) for a, b in zip(weights(made), weights(whole), strict=True))


def cliff(loss):
    """The loss, whose gradient is infinite in the third call: its value is finite."""
    calls = []

    def steep(*args):
        terms = loss(*args)
        calls.append(1)
        edge = terms.total - terms.total.detach()
        return replace(terms, total=terms.total + edge.sqrt()) if len(calls) == 3 else terms

    return steep


@pytest.mark.parametrize("late", [False, True])
def test_a_gradient_that_is_no_number_changes_no_weight(late):
    made, still = method(steps=7, reads_late=late, wrapped=cliff), []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            still.append(weights(pl_module))

    with pytest.raises(TrainingError, match=r"step \d: the gradient norm is \[(nan|inf)\]; nothing was updated"):
        fit(made, callbacks=[Watch()])
    assert all(torch.isfinite(w).all() for w in weights(made))
    assert not late or all(torch.equal(a, b) for a, b in zip(still[-1], weights(made), strict=True))


def endless(loss):
    """The loss, infinite from the third call on: its gradient is as it was."""
    calls = []

    def grown(*args):
        terms = loss(*args)
        calls.append(1)
        return replace(terms, total=terms.total + float("inf")) if len(calls) > 2 else terms

    return grown


@pytest.mark.parametrize("late", [False, True])
def test_a_loss_without_end_is_refused_though_its_gradient_is_finite(late):
    with pytest.raises(TrainingError, match=r"step \d: the loss is inf on a micro-batch"):
        fit(method(steps=7, reads_late=late, wrapped=endless))


def test_no_checkpoint_is_written_of_what_was_not_finite(tmp_path):
    made = method(steps=7, log_every=100, reads_late=True)
    with pytest.raises(TrainingError, match="step 2: the loss is nan"):
        fit(made, given(nonsense=ROW), callbacks=[SaveAt(tmp_path / "a.ckpt", 3)])
    assert not list(tmp_path.iterdir())
    assert made.global_step == 3


def test_nor_is_it_evaluated(tmp_path):
    made, kept = method(steps=7, log_every=100, reads_late=True), []
    validation = Validation(3, Checkpoints(tmp_path, 1000))
    with pytest.raises(TrainingError, match="step 2: the loss is nan"):
        fit(made, given(nonsense=ROW), callbacks=[validation], kept=kept)
    assert [step for step, metrics in kept if any("val/" in name for name in metrics)] == [0]


def test_another_ranks_nonsense_is_called_that():
    nan, one = torch.tensor(float("nan")), torch.ones(())
    said = PendingStep(5, 1, [one], nan, one.view(1), one).error(sources=None)
    assert said == "step 5: the loss is not finite on another rank; nothing was updated"


def test_a_wrong_start_stops_and_says_why():
    """A reference that is not the policy: the run must not go on as if its KL were zero."""
    made = method(steps=3)
    with torch.no_grad():
        made.reference.policy.causal_lm.get_output_embeddings().weight *= 1.1
    before = weights(made)
    with pytest.raises(TrainingError, match="differ before the first step"):
        fit(made)
    assert all(torch.equal(a, b) for a, b in zip(before, weights(made), strict=True))


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
    with pytest.raises(RuntimeError, match="99"):
        fit(method(steps=7), encoded)
    assert not loading_threads()
