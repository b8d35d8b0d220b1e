"""`python -m bench.sweep_peer SPEC` trains and evaluates policies by TRL's DPOTrainer, for `bench.sweep`."""

import json
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer

from bench.work import read_pairs


class Evaluate(TrainerCallback):
    """The Evaluate callback completes prompts by `generate` and scores them by a reward model, as a script would.

    Args:
        spec: of the benchmark.
        tokenizer: of the policy and the reward model.
        prompts: chats that are completed, sorted by length so that batches have little padding.
        last: the last optimiser step, after which the policy is evaluated too.
    """

    def __init__(self, spec: dict[str, Any], tokenizer: Any, prompts: list[list[dict[str, str]]], last: int) -> None:
        self.spec, self.tokenizer, self.last = spec, tokenizer, last
        texts = [tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in prompts]
        self.texts = sorted(texts, key=len)
        self.reward_model = AutoModelForSequenceClassification.from_pretrained(Path(spec["folder"]) / "reward")
        self.rewards: list[float] = []

    def on_train_begin(self, *_: Any, model: Any, **__: Any) -> None:
        """Evaluate the reference."""
        self.evaluate(model)

    def on_step_end(self, _: Any, state: Any, *__: Any, model: Any, **___: Any) -> None:
        """Evaluate every so many steps, and after the last."""
        if state.global_step % self.spec["eval_every"] == 0 or state.global_step == self.last:
            self.evaluate(model)

    @torch.no_grad()
    def evaluate(self, model: Any) -> None:
        """Note the mean reward of a completion of every prompt."""
        was_training = model.training
        model.eval()
        scores = []
        for first in range(0, len(self.texts), 32):
            batch = self._padded(self.texts[first : first + 32], "left")
            made = model.generate(
                **batch, max_new_tokens=self.spec["new_tokens"], do_sample=True, top_k=0, top_p=1.0, use_cache=True
            )
            answers = self._padded(self.tokenizer.batch_decode(made, skip_special_tokens=False), "right")
            scores += self.reward_model(**answers).logits[:, 0].tolist()
        self.rewards.append(sum(scores) / len(scores))
        model.train(was_training)

    def _padded(self, texts: list[str], side: str) -> Any:
        self.tokenizer.padding_side = side
        return self.tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)


def train(spec: dict[str, Any], beta: float, seed: int, out: str) -> dict[str, Any]:
    """Train one policy, and return the numbers of its steps and evaluations."""
    folder, steps = Path(spec["folder"]), spec["pairs"] // spec["per_step"]
    rows = read_pairs(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    pairs = rows[: spec["pairs"]]
    pairs.sort(key=lambda row: len(str(row["prompt"])) + max(len(str(chat)) for chat in row["completions"]))
    made = [{"prompt": r["prompt"], "chosen": r["completions"][0], "rejected": r["completions"][1]} for r in pairs]
    last = rows[-spec["prompts"] :]
    evaluation = Evaluate(spec, tokenizer, [row["prompt"] for row in last], steps)
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder / "model"),
        args=_arguments(spec, beta, seed, steps, out),
        train_dataset=datasets.Dataset.from_list(made),
        processing_class=AutoTokenizer.from_pretrained(folder / "model"),
        callbacks=[evaluation],
    )
    trainer.train()
    return {
        "steps": trainer.state.global_step,
        "evaluations": len(evaluation.rewards),
        "reward": evaluation.rewards[-1],
    }


def _arguments(spec: dict[str, Any], beta: float, seed: int, steps: int, out: str) -> DPOConfig:
    """Return TRL's arguments: its best settings, and what both sides share."""
    return DPOConfig(
        output_dir=out,
        seed=seed,
        max_steps=steps,
        per_device_train_batch_size=spec["per_step"],
        train_sampling_strategy="sequential",
        gradient_checkpointing=False,
        precompute_ref_log_probs=True,
        beta=beta,
        learning_rate=1e-4,
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        weight_decay=0.0,
        bf16=False,
        use_cpu=True,
        dataloader_pin_memory=False,
        logging_steps=10,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def main() -> None:
    """Train the jobs of the argument, a JSON object, one after the other, and print what each measured."""
    warnings.filterwarnings("ignore")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    spec = json.loads(sys.argv[1])
    with tempfile.TemporaryDirectory() as out:
        found = [train(spec, beta, seed, out) for beta, seed in spec["jobs"]]
    print("\n" + json.dumps(found))


if __name__ == "__main__":
    main()
