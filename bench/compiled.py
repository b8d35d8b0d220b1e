"""This benchmark measures `torch.compile` on CPU training steps of changing length: `python -m bench.compiled`.

Model B takes nine steps of forward, backward and AdamW on one thread, in a process for each way; lengths come from a
seed. The ways are the eager model, and the model with every decoder layer compiled for any length. The first four
steps, in which kernels are compiled, are counted apart. `--precision bf16` measures under autocast.
"""

import argparse
import json
import random
import subprocess
import sys
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bench.clock import environment
from bench.work import SHAPES
from shiqrun.models.scoring import score_actions

STEPS, FIRST, ROWS = 9, 4, 4


def measure(way: str, precision: str) -> dict[str, float]:
    """Return CPU microseconds per token after the first steps, and CPU seconds of the first steps and the compiler."""
    shape = SHAPES["B"]
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=shape.hidden,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            intermediate_size=shape.intermediate,
            vocab_size=shape.vocabulary,
            tie_word_embeddings=True,
        )
    )
    if way == "compiled":
        for layer in model.model.layers:
            layer.compile(dynamic=True)
    optimizer, draw, seconds, tokens = torch.optim.AdamW(model.parameters(), fused=True), random.Random(0), [], []
    for _ in range(STEPS):
        length = round(min(600, max(60, draw.lognormvariate(5.2, 0.6))))
        ids, began = torch.randint(shape.vocabulary, (ROWS, length)), time.process_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
        states, taken = hidden[:, length // 2 : -1].flatten(0, 1), ids[:, length // 2 + 1 :].flatten()
        logit, log_partition = score_actions(states, model.lm_head.weight, None, taken)
        (log_partition - logit).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.process_time() - began)
        tokens.append(ROWS * length)
    return {"us_a_token": 1e6 * sum(seconds[FIRST:]) / sum(tokens[FIRST:]), "first_steps_s": sum(seconds[:FIRST])}


def main() -> None:
    """Measure the eager and the compiled model, a process each, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--way", choices=["eager", "compiled"], help="measure this one in this process")
    args = parser.parse_args()
    if args.way:
        print(json.dumps(measure(args.way, args.precision)))
        return
    for way in ("eager", "compiled"):
        command = [sys.executable, "-m", "bench.compiled", f"--way={way}", f"--precision={args.precision}"]
        said = subprocess.run(command, check=True, capture_output=True, text=True, env=environment(1, tuned=False))
        found = json.loads(said.stdout.strip().splitlines()[-1])
        print(f"{way:<9} {found['us_a_token']:.0f} µs/token, first {FIRST} steps {found['first_steps_s']:.1f} CPU s")


if __name__ == "__main__":
    main()
