"""This table holds the names that other tools give to settings, for messages about unknown keys and choices."""

from collections.abc import Collection
from typing import NamedTuple


class Here(NamedTuple):
    """A `Here` is the key that does here what another tool's setting does, and what differs.

    Attributes:
        key: of the config.
        note: what else to know, behind the suggestion.
    """

    key: str
    note: str = ""


_STEP = Here(
    "trainer.batch_size", "trajectories of an optimiser step; trainer.micro_batch_tokens bounds a forward pass"
)
_MODEL, _DATA = Here("model.path", "with model=hf"), Here("data.path", "with data=jsonl")
_LENGTH, _NEW = Here("data.max_length"), Here("eval.max_new_tokens")
KEYS = {
    "algorithm": Here("algo"),
    "attn_implementation": Here("model.attn_implementation"),
    "batch_size": _STEP,
    "bf16": Here("hardware.precision", "bf16, fp32 or auto"),
    "dataset": _DATA,
    "dataset_name": _DATA,
    "dataset_path": _DATA,
    "device": Here("hardware.accelerator"),
    "early_stopping_patience": Here("trainer.stop_patience", "with trainer.stop_metric"),
    "early_stopping_threshold": Here("trainer.stop_min_delta", "with trainer.stop_metric"),
    "epochs": Here("trainer.max_epochs"),
    "eval_steps": Here("eval.every"),
    "evaluation_strategy": Here("eval.every", "in optimiser steps; 0 for none"),
    "fp16": Here("hardware.precision", "bf16, fp32 or auto"),
    "gradient_accumulation_steps": _STEP,
    "gradient_checkpointing": Here("model.gradient_checkpointing"),
    "kl_coef": Here("algo.beta"),
    "learning_rate": Here("trainer.learning_rate"),
    "logging_steps": Here("trainer.log_every"),
    "lora_alpha": Here("model.lora_alpha"),
    "lora_rank": Here("model.lora_r"),
    "lora_r": Here("model.lora_r"),
    "loss_type": Here("algo"),
    "lr": Here("trainer.learning_rate"),
    "lr_scheduler_type": Here("trainer.lr_schedule"),
    "max_completion_length": _NEW,
    "max_grad_norm": Here("trainer.grad_clip"),
    "max_length": _LENGTH,
    "max_new_tokens": _NEW,
    "max_prompt_length": _LENGTH,
    "max_response_length": _NEW,
    "max_seq_length": _LENGTH,
    "max_steps": Here("trainer.max_steps"),
    "metric_for_best_model": Here("trainer.stop_metric", "ends a run that no longer improves"),
    "micro_batch_size": Here("trainer.micro_batch_tokens", "in tokens"),
    "model_name": _MODEL,
    "model_name_or_path": _MODEL,
    "n_gpus_per_node": Here("hardware.devices", "with hardware=ddp"),
    "nnodes": Here("hardware.num_nodes"),
    "num_epochs": Here("trainer.max_epochs"),
    "num_generations": Here("rollout.samples_per_prompt"),
    "num_machines": Here("hardware.num_nodes"),
    "num_processes": Here("hardware.devices", "with hardware=ddp"),
    "num_train_epochs": Here("trainer.max_epochs"),
    "optim": Here("trainer.optimizer", "adamw or adamw_8bit"),
    "output_dir": Here("run_dir"),
    "per_device_eval_batch_size": Here("eval.batch_size"),
    "per_device_train_batch_size": _STEP,
    "precision": Here("hardware.precision"),
    "report_to": Here("logger"),
    "resume_from_checkpoint": Here("resume", "a run directory"),
    "reward_model": Here("eval.reward"),
    "reward_model_path": Here("eval.reward"),
    "save_steps": Here("trainer.checkpoint_every"),
    "temperature": Here("eval.temperature", "of evaluation; rollout.temperature of sampling while it trains"),
    "torch_dtype": Here("hardware.weights", "fp32 or bf16"),
    "total_epochs": Here("trainer.max_epochs"),
    "train_batch_size": _STEP,
    "use_vllm": Here("rollout", "rollout=vllm"),
    "vllm_server_base_url": Here("rollout.base_url", "with rollout=vllm"),
    "vllm_server_timeout": Here("rollout.start_timeout", "with rollout=vllm"),
    "warmup_ratio": Here("trainer.warmup_steps", "in optimiser steps"),
    "warmup_steps": Here("trainer.warmup_steps"),
    "weight_decay": Here("trainer.weight_decay"),
}
"""Settings of TRL, transformers, axolotl and verl by their last name, and ours."""
POLICY_GRADIENTS = ("gspo", "reinforce")
"""Names of policy gradients of other tools, for which the choice with the nearest spelling is another method."""
FILES = ("arrow", "csv", "json", "parquet", "text", "trl", "tsv", "local", "custom")
"""What people call a data set of their own."""
NEEDED = {"rollout": "rollout=local", "model": "model=hf", "data": "data=jsonl"}
"""The choice of a group that has the keys of the table."""


def name_here(key: str, known: Collection[str]) -> str:
    """Return "; here it is KEY" for another tool's name of a setting that this command has, else an empty text.

    Args:
        key: what the user typed, alone or under a node.
        known: every valid dotted key, with the keys of other choices of a group.
    """
    found = KEYS.get(key.rpartition(".")[2].removeprefix("--").replace("-", "_"))
    if found is None or found.key == key:
        return ""
    node = found.key.partition(".")[0]
    if found.key not in known:
        if node not in NEEDED or node not in known:
            return ""
        note = found.note or f"with {NEEDED[node]}"
    else:
        note = found.note
    return f"; here it is {found.key}" + f" ({note})" * bool(note)


def choice_here(group: str, option: str) -> str:
    """Return "; ...: KEY=VALUE" for a choice that is meant as a file, model or method of another name, else nothing."""
    whole = f"{group}/{option}"
    if group.startswith("model/") or (group == "model" and ("." in option or "~" in option)):
        return f"; a model of your own: model=hf model.path={whole.partition('/')[2]}"
    if group.startswith("data/") or (group == "data" and "." in option):
        return f"; data of your own: data=jsonl data.path={whole.partition('/')[2]}"
    if group == "data" and option in FILES:
        return "; data of your own, also CSV, Parquet and Arrow: data=jsonl data.path=FILE_OR_DIRECTORY_OR_HUB_ID"
    if group == "algo" and option in POLICY_GRADIENTS:
        return "; policy gradients here are algo=grpo, ppo and rloo"
    return ""
