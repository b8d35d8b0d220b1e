"""These classes hold the settings of a run besides those of its loss, data set and model: one class a YAML node."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Le, Lt, MinLen

from shiqrun.batching.reward_offsets import Offset
from shiqrun.errors import InputError
from shiqrun.models.reference import Kind

Tracker = Literal["wandb", "tensorboard", "mlflow", "trackio"]
"""Experiment trackers that a run can write to beside another."""

Schedule = Literal["constant", "linear", "cosine"]
"""Schedules of the learning rate after its warm-up."""

STAMP = "shiqrun"
"""Key of a checkpoint that holds the fingerprints of its data, model and reward."""


@dataclass(frozen=True, kw_only=True)
class AlgoSettings:
    """`AlgoSettings` are those of a method besides its loss's hyperparameters (`algo:` in YAML, `conf/algo/*.yaml`).

    Attributes:
        reference: source of the reference's scores: cached (both numbers of every action are computed once and kept in
            `cache_dir`), frozen (a second copy of the model), adapter (the policy without its LoRA adapter), or none
            (for `sft` and `reward_model`).
        reference_every: optimiser steps after which the reference moves to the policy; None: it stays. Each move poses
            another problem: after m moves of which each was solved, the policy is the optimum at beta / (m + 1).
        reference_decay: share of its own weights that the reference keeps in a move; 0: it becomes the policy.
        reward_offset: subtracted from the reward of every trajectory's last action: a number in reward units, mean (of
            the training trajectories), group_mean (of the prompt's completions) or none. The optimal policy does not
            depend on it, but what finite data teach about actions that they never show does.
        same_unit: whether logged rewards are taken to have the unit of `eval.reward` without a check.
        anchor: weight kappa of `losses.anchor`; 0 turns it off.
        anchor_tokens: K, the number of tokens at each state whose logits the anchor holds at the reference's.
        anchor_from: distribution of these tokens: uniform (fixed by the seed and cached with the reference), or policy
            (drawn anew at each step, where the policy drifts to; needs a live reference).
        values: for losses that read prompt values: a file of `shiqrun values`; None estimates them first.
        value_beta: for losses that read prompt values: KL temperature of these, reward units per nat; None for beta.
        monte_carlo: for the same losses: weight of `losses.soft_policy.monte_carlo`; 0 turns it off.
        targets: the file of `shiqrun pivotal` with the estimates that this term reads.
        value: for losses with a value function: head (on the policy's features) or network (of its own).
        value_lr_ratio: learning rate of the value function divided by the policy's.
        epochs: for losses with a proximal policy: updates on each batch; together they are one optimiser step.
        grid: the values of each key of the method that `shiqrun compare` tries; training does not read it.
    """

    reference: Kind
    reward_offset: Offset
    reference_every: Annotated[int, Ge(1)] | None = None
    reference_decay: Annotated[float, Ge(0), Lt(1)] = 0.0
    same_unit: bool = False
    anchor: Annotated[float, Ge(0)] = 0.0
    anchor_tokens: Annotated[int, Gt(0)] = 4
    anchor_from: Literal["uniform", "policy"] = "uniform"
    values: str | None = None
    value_beta: Annotated[float, Gt(0)] | None = None
    monte_carlo: Annotated[float, Ge(0)] = 0.0
    targets: str | None = None
    value: Literal["head", "network"] | None = None
    value_lr_ratio: Annotated[float, Gt(0)] | None = None
    epochs: Annotated[int, Ge(1)] = 1
    grid: dict[str, Annotated[list[float | str], MinLen(1)]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TrainerSettings:
    """`TrainerSettings` configure the training loop and its optimiser (`trainer:` in `conf/train.yaml`).

    Attributes:
        max_steps: optimiser steps; None counts by epochs.
        max_epochs: passes over the training trajectories; read when max_steps is None.
        batch_size: trajectories of an optimiser step, over all ranks and micro-batches.
        micro_batch_tokens: tokens of one forward pass, padding included where the model reads no packed batches. It
            bounds memory and changes no number.
        prompts_together: put all trajectories of a prompt into one step, where the prompt is read once; losses that
            compare completions do so in any case. This changes which trajectories meet in a step.
        learning_rate: peak of the schedule.
        weight_decay: of AdamW, per step and unit of learning rate; it acts on norms, biases and embeddings as well.
        warmup_steps: optimiser steps in which the learning rate rises linearly from 0.
        lr_schedule: learning rate from the end of the warm-up until max_steps.
        grad_clip: largest L2 norm of the gradient; None for no limit.
        log_every: optimiser steps between logged rows; the first and the last step are always logged.
        checkpoint_every: optimiser steps between checkpoints; the last step always gets one.
        stop_metric: the metric (`val/`, `train/` or `rollout/NAME`) that ends the run where it no longer improves; None
            for none. Metrics of training are averaged over the rows that were logged since the last evaluation.
        stop_patience: evaluations without an improvement after which the run ends, or logged rows without evaluations.
        stop_min_delta: an improvement is larger than this, in the metric's unit.
        stop_mode: max if more of the metric is better, min if less is, auto for what its name says.
        optimizer: adamw (moments in the weights' precision), or adamw_8bit (moments of 8 bits, by `bitsandbytes`).
    """

    max_steps: Annotated[int, Gt(0)] | None
    max_epochs: Annotated[int, Gt(0)] | None
    batch_size: Annotated[int, Gt(0)]
    micro_batch_tokens: Annotated[int, Gt(0)]
    prompts_together: bool
    learning_rate: Annotated[float, Gt(0)]
    weight_decay: Annotated[float, Ge(0)]
    warmup_steps: Annotated[int, Ge(0)]
    lr_schedule: Schedule
    grad_clip: Annotated[float, Gt(0)] | None
    log_every: Annotated[int, Gt(0)]
    checkpoint_every: Annotated[int, Gt(0)]
    stop_metric: Annotated[str, MinLen(1)] | None = None
    stop_patience: Annotated[int, Gt(0)] = 3
    stop_min_delta: Annotated[float, Ge(0)] = 0.0
    stop_mode: Literal["auto", "max", "min"] = "auto"
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """`SamplingSettings` configure how a policy samples completions of validation prompts (`conf/_evaluation.yaml`).

    Attributes:
        max_prompts: prompts that are answered, always the same ones; 0 for none.
        samples_per_prompt: completions of each prompt.
        max_new_tokens: tokens after which a completion is cut off.
        temperature: sampling temperature; 0 takes the most likely token. Only at 1, with top_p 1, is the mean
            log-ratio of the samples a KL.
        top_p: share of the probability that is sampled from, most likely tokens first.
        batch_size: completions sampled together; bounds memory. It changes a completion only where rounding decides
            which token a random number falls on: about one in a hundred completions in float32, most in bfloat16.
        seed: seed of the sampling only.
    """

    max_prompts: Annotated[int, Ge(0)]
    samples_per_prompt: Annotated[int, Gt(0)]
    max_new_tokens: Annotated[int, Gt(0)]
    temperature: Annotated[float, Ge(0)]
    top_p: Annotated[float, Gt(0), Le(1)]
    batch_size: Annotated[int, Gt(0)]
    seed: Annotated[int, Ge(0)]


@dataclass(frozen=True, kw_only=True)
class EvalSettings(SamplingSettings):
    """`EvalSettings` configure the evaluations during training (`eval:` in `conf/train.yaml`).

    Attributes:
        every: optimiser steps between evaluations; 0 for none.
        reward: the node of a reward (`conf/reward/*.yaml`); None for none.
        test_prompts: prompts of the test split that are answered after the last step; 0 for none.
    """

    every: Annotated[int, Ge(0)]
    reward: Any
    test_prompts: Annotated[int, Ge(0)] = 0


@dataclass(frozen=True, kw_only=True)
class AnswerSettings(SamplingSettings):
    """`AnswerSettings` configure `shiqrun eval` (`eval:` in `conf/eval.yaml`).

    Attributes:
        policy: model, or the name of a scripted policy of the data set's environment (data=bfcl has ground_truth,
            data=textworld_express and data=scienceworld gold and random), which checks everything but the model.
        split: split whose prompts are answered.
        beta: weight of the KL in the regularised return, reward units per nat; None for the run's.
        batch_tokens: tokens of one forward pass when log-probabilities are computed.
    """

    policy: Annotated[str, MinLen(1)]
    split: Literal["train", "val", "test"]
    beta: Annotated[float, Gt(0)] | None
    batch_tokens: Annotated[int, Gt(0)]


PRECISIONS = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class LoggerSettings:
    """`LoggerSettings` are those of every experiment tracker (`logger:` in `conf/train.yaml`, `conf/logger/*.yaml`).

    Attributes:
        name: the choice of `logger=`.
        also: further trackers, which share the settings that the first one has too.
    """

    name: str
    also: list[Tracker] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """`Hardware` holds the settings of the machine (`hardware:` in `conf/_command.yaml`, `conf/hardware/*.yaml`).

    Attributes:
        accelerator: cpu, gpu, or auto (a GPU where there is one), as Lightning names them.
        devices: number of processes on each node, one device each.
        num_nodes: number of machines, on each of which torchrun or srun starts the processes.
        strategy: auto, ddp (each process holds all weights) or fsdp (each holds a part).
        precision: fp32, bf16 (the body in bfloat16 under autocast; weights, scores and losses in float32), or auto.
        weights: fp32, or bf16 (weights, gradients and moments in bfloat16, updates rounded stochastically; adapters and
            value heads stay in float32).

    Raises:
        InputError: bfloat16 weights with another precision.
    """

    accelerator: Literal["cpu", "gpu", "auto"]
    devices: Annotated[int, Gt(0)]
    strategy: Literal["auto", "ddp", "fsdp"]
    precision: PRECISIONS
    weights: Literal["fp32", "bf16"] = "fp32"
    num_nodes: Annotated[int, Gt(0)] = 1

    def __post_init__(self) -> None:
        if self.weights == "bf16" and self.precision == "fp32":
            raise InputError("hardware.weights=bf16 computes in bfloat16; set hardware.precision=bf16, or weights=fp32")

    @property
    def processes(self) -> int:
        """Return the number of ranks, over all nodes."""
        return self.devices * self.num_nodes

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of the model's weights."""
        return torch.bfloat16 if self.weights == "bf16" else torch.float32

    def device(self) -> torch.device:
        """Return the device of the main process.

        Raises:
            InputError: a GPU is asked for, and torch sees none.
        """
        if self.accelerator == "gpu" and not torch.cuda.is_available():
            raise InputError("hardware.accelerator=gpu, but torch sees no GPU here; use hardware=cpu")
        on_gpu = self.accelerator == "gpu" or (self.accelerator == "auto" and torch.cuda.is_available())
        return torch.device("cuda" if on_gpu else "cpu")

    def autocast(self) -> torch.dtype | None:
        """Return the dtype of autocast: bfloat16 if asked for, or with `auto` if the GPU supports it; else None."""
        if self.weights == "bf16":
            return torch.bfloat16
        if self.precision == "auto":
            return torch.bfloat16 if self.device().type == "cuda" and torch.cuda.is_bf16_supported() else None
        return torch.bfloat16 if self.precision == "bf16" else None
