"""Rows of sums with three answers each, whose number and lengths divide unevenly between two ranks."""

import json


def write_sums(folder):
    """Write `train.jsonl` and `val.jsonl`; return the words of a run on them."""
    rows = [
        {
            "prompt": f"What is {a} plus {b}?",
            "completions": [str(a + b), str(a + b + 1), "I do not know"[: 3 + 2 * a]],
            "rewards": [1.0, 0.0, 0.1 * b],
            "answer": str(a + b),
        }
        for a in range(5)
        for b in range(5)
    ]
    for name, some in (("train", rows[:20]), ("val", rows[20:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    data = ("data=jsonl", f"data.path={folder / 'train.jsonl'}", f"data.val_path={folder / 'val.jsonl'}")
    model = ("model.hidden_size=32", "model.num_layers=2", "model.max_position_embeddings=64")
    steps = ("trainer.max_steps=4", "trainer.batch_size=7", "trainer.micro_batch_tokens=100", "trainer.log_every=1")
    return ["logger=none", *data, *model, *steps, "eval.every=2", "eval.max_new_tokens=6"]
