"""Small training steps through the real Trainer, and what they ask the device for."""

import functools
import sys
import threading
from collections import Counter
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from torch.utils._python_dispatch import TorchDispatchMode

import shiqrun
from shiqrun import losses
from shiqrun.batching.data_module import LoggedData
from shiqrun.batching.logged_data import EncodedData
from shiqrun.batching.rows import Rows
from shiqrun.models.attention import use_packed_attention
from shiqrun.models.model_checks import enable_packing
from shiqrun.models.policy import Policy, ValueHead
from shiqrun.models.reference import FrozenReference
from shiqrun.settings import AlgoSettings, TrainerSettings
from shiqrun.training.step.method import Method
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
        FrozenReference(policy),
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
    return EncodedData(made, made, Counter(), "x")


def packed(made, encoded):
    """The same, with batches that are read without padding."""
    use_packed_attention(made.policy.causal_lm)
    made.reference = FrozenReference(made.policy)
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


class SaveAt(Callback):
    def __init__(self, path, *steps):
        self.path, self.steps = path, steps

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step in self.steps:
            trainer.save_checkpoint(self.path)


def ppo(**options):
    return method("ppo", **({"epochs": 3, "steps": 5} | options))


def broken(loss):
    """The loss, no number in the third update that is not the first one on its batch."""
    calls = []

    def nonsense(batch, *scores):
        terms = loss(batch, *scores)
        calls.append(batch.proximal is not None)
        return replace(terms, total=terms.total * float("nan")) if sum(calls) == 3 else terms

    return nonsense


def first_step_of(row):
    data = LoggedData(given(), batch_size=BATCH, micro_batch_tokens=24, seed=0)
    data.train_dataloader()
    return next(step for step in range(99) if row in list(chain(*data.steps.rows_of(step)))) + 1


ROW = next(row for row in range(12) if first_step_of(row) == 2)
