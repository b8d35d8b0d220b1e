"""What the YAML of a run may set beside its losses, data sets and models: one frozen class a node."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Le, MinLen

from shiqrun.batching.reward_offsets import Offset
from shiqrun.errors import InputError
from shiqrun.models.reference import Kind

Schedule = Literal["constant", "linear", "cosine"]
"""What follows the warm-up of the learning rate."""

STAMP = "shiqrun"
"""Where a checkpoint says what it was made of: fingerprints of data, model and reward."""


@dataclass(frozen=True, kw_only=True)
class AlgoSettings:
    """What every method understands beside its own hyperparameters (`conf/algo/*.yaml`).

    Attributes:
        reference: cached (both numbers of every action computed once and kept in `cache_dir`), frozen (a second
            copy), adapter (the policy without its LoRA adapter), or none (for `sft` and `reward_model`).
        reward_offset: none, mean, group_mean or a number: taken from the reward of every trajectory's last action.
            pi* stays, but what a finite data set makes of actions it never shows does not.
        anchor: kappa of `losses.anchor`, 0 for none.
        anchor_tokens: K, tokens a state that it holds at the reference's logit.
        anchor_from: where they come from: uniform (fixed by the seed, cached with the reference) or policy (drawn anew
            at each step, where drift goes; needs a live reference).
        values: for methods that read prompt values: a file of `shiqrun values`, None to make them first.
        monte_carlo: for the same methods: weight of `losses.soft_policy.monte_carlo`, 0 for none.
        targets: the estimates that this term reads, a file of `shiqrun pivotal`.
        value: for methods with a value function: a head on the policy's features, or a network of its own.
        value_lr_ratio: its learning rate over the policy's.
        epochs: updates of the policy on each batch, for methods with a proximal policy; they are one optimiser step.
    """

    reference: Kind
    reward_offset: Offset
    anchor: Annotated[float, Ge(0)] = 0.0
    anchor_tokens: Annotated[int, Gt(0)] = 4
    anchor_from: Literal["uniform", "policy"] = "uniform"
    values: str | None = None
    monte_carlo: Annotated[float, Ge(0)] = 0.0
    targets: str | None = None
    value: Literal["head", "network"] | None = None
    value_lr_ratio: Annotated[float, Gt(0)] | None = None
    epochs: Annotated[int, Ge(1)] = 1


@dataclass(frozen=True, kw_only=True)
class TrainerSettings:
    """Keys of `trainer:` in `conf/train.yaml`.

    Attributes:
        max_steps: optimiser steps, None to count by epochs.
        max_epochs: passes over the training trajectories, read when max_steps is None.
        batch_size: trajectories of an optimiser step, over all ranks and micro-batches.
        micro_batch_tokens: tokens of one forward pass, as they are read: packed, or padded where the model reads no
            packed batches; bounds memory, changes no number.
        prompts_together: trajectories of a prompt are never in different steps, and in a micro-batch it is read once;
            methods that compare them have it so anyway. It changes which trajectories meet in a step.
        learning_rate: peak of the schedule.
        weight_decay: AdamW's.
        warmup_steps: optimiser steps of linear warm-up from 0.
        lr_schedule: what follows the warm-up, until max_steps.
        grad_clip: largest gradient norm, None to leave gradients alone.
        log_every: optimiser steps between logged rows; the first and the last step are always logged.
        checkpoint_every: optimiser steps between checkpoints; the last step is always saved.
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


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """How a policy is made to answer prompts: keys of `eval:` in `conf/train.yaml` and `conf/eval.yaml`.

    Attributes:
        max_prompts: validation prompts that are answered, always the same ones; 0 for none.
        samples_per_prompt: completions of each.
        max_new_tokens: tokens after which a completion is cut off.
        temperature: of sampling, 0 for the most likely token. Only at 1, with top_p 1, is the mean log-ratio a KL.
        top_p: share of probability that is sampled from.
        batch_size: completions sampled together; bounds memory. It changes an answer only where rounding decides which
            token a random number falls on: about one in a hundred answers in float32, most in bfloat16.
        seed: of the sampling alone.
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
    """Keys of `eval:` in `conf/train.yaml`.

    Attributes:
        every: optimiser steps between evaluations, 0 for none.
        reward: the node of `conf/reward/*.yaml`, None for none.
    """

    every: Annotated[int, Ge(0)]
    reward: Any


@dataclass(frozen=True, kw_only=True)
class AnswerSettings(SamplingSettings):
    """Keys of `eval:` in `conf/eval.yaml`.

    Attributes:
        policy: model, or a scripted policy of the data set's environment (data=bfcl has ground_truth): a check of
            everything but the model.
        split: whose prompts are answered.
        beta: KL temperature of the regularised return, None for the run's.
        batch_tokens: tokens of one forward pass when answers are measured.
    """

    policy: Annotated[str, MinLen(1)]
    split: Literal["train", "val"]
    beta: Annotated[float, Gt(0)] | None
    batch_tokens: Annotated[int, Gt(0)]


PRECISIONS = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """Keys of `conf/hardware/*.yaml`.

    Attributes:
        accelerator: as Lightning names it: cpu, gpu, auto.
        devices: processes, one device each.
        strategy: as Lightning names it: auto, ddp.
        precision: fp32, bf16 (body in bfloat16 under autocast; weights, scores and losses in float32), or auto.
    """

    accelerator: Literal["cpu", "gpu", "auto"]
    devices: Annotated[int, Gt(0)]
    strategy: Literal["auto", "ddp"]
    precision: PRECISIONS

    def device(self) -> torch.device:
        """Where the main process computes.

        Raises:
            InputError: a GPU is asked for and there is none.
        """
        if self.accelerator == "gpu" and not torch.cuda.is_available():
            raise InputError("hardware.accelerator=gpu, but torch sees no GPU here; use hardware=cpu")
        on_gpu = self.accelerator == "gpu" or (self.accelerator == "auto" and torch.cuda.is_available())
        return torch.device("cuda" if on_gpu else "cpu")

    def autocast(self) -> torch.dtype | None:
        """bfloat16 if asked, or if `auto` and the GPU computes in it; None for float32."""
        if self.precision == "auto":
            return torch.bfloat16 if self.device().type == "cuda" and torch.cuda.is_bf16_supported() else None
        return torch.bfloat16 if self.precision == "bf16" else None
