"""Run and sweep directories with numbers made by hand, as training and sweeps write them."""

import csv
import json
import math

import yaml

from shiqrun.sweeping.state import Job, Sweep

METHODS, BETAS, SEEDS = ("shiq", "copg", "dpo"), (0.03, 0.1, 0.3, 1.0), (1, 2, 3)
REWARD = {
    "shiq": (1.20, 1.10, 0.80, 0.40),
    "copg": (1.10, 1.15, 0.70, 0.30),
    "dpo": (0.60, 0.50, 0.35, 0.20),
}
"""Final reward by method and beta, of seed 2; seed 1 has 0.1 less and seed 3 0.1 more."""
KL = {
    "shiq": (20.0, 6.0, 1.5, 0.3),
    "copg": (24.0, 7.0, 1.8, 0.4),
    "dpo": (9.0, 4.0, 1.2, 0.2),
}
"""Final KL by method and beta, of seed 2; seeds 1 and 3 have a tenth less and more."""
HALF_OF_REWARD = 4.302653 * 0.1 / 3**0.5
"""Of the 95 % interval over m - 0.1, m, m + 0.1: Student's quantile at two degrees of freedom, deviation .1."""
STEPS = (0, 50, 100)
HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror='window.hacked=1'>"
PROMPTS = (
    "How do I bake bread?",
    "Tell me about the sea.\n\nIn two lines.",
    "Why is the sky blue?",
    "A rhyme, please.",
)


def final(method, beta, seed):
    """(reward, KL, regularised return) of one run."""
    place = BETAS.index(beta)
    reward = REWARD[method][place] + 0.1 * (seed - 2)
    kl = KL[method][place] * (1 + 0.1 * (seed - 2))
    return reward, kl, reward - beta * kl


def config(algo="shiq", beta=0.1, seed=1, **more):
    """A config as Hydra writes it."""
    made = {
        "seed": seed,
        "run_dir": f"somewhere/{algo}",
        "trainer": {"max_steps": 100, "learning_rate": 1e-3},
        "algo": {"name": algo, "_target_": f"shiqrun.losses.{algo}", "beta": beta},
        "data": {"name": "hh"},
        "model": {"name": "hf", "path": "small"},
        "logger": {"name": "none"},
    }
    for key, value in more.items():
        group, _, name = key.partition("__")
        made[group] = made.get(group, {}) | {name: value} if name else value
    return made


def samples(method, beta, seed, count=4):
    """Rows of samples.jsonl at the last step; the reference's answers are the same in every run."""
    for number in range(count):
        yield {
            "step": STEPS[-1],
            "prompt_id": f"p{number}",
            "prompt": PROMPTS[number % len(PROMPTS)],
            "completion": HOSTILE if (method, number) == ("dpo", 1) else f"{method} {beta} {seed} says {number}",
            "tokens": 5 + number,
            "ended": number != 3,
            "reward": round(REWARD[method][0] + number / 10 + seed / 100, 4),
            "kl": 1.5,
            "reference_completion": f"the reference says {number}",
            "reference_reward": 0.5,
        }


def credit():
    """Rows of credit.jsonl: one from the data with a reward inside, one sampled."""
    tokens = ["How", " do", " you", "?\n", "You", " mix", " the", "\n", " flour", ".", "</s>"]
    action = [i >= 4 for i in range(len(tokens))]
    number = [None] * 4
    common = {"tokens": tokens, "action": action, "beta": 0.1, "source": "file:1"}
    yield common | {
        "kind": "data",
        "prompt_id": "p0",
        "return": 1.5,
        "advantage": [*number, 0.5, -0.25, 0.0, 0.1, 1.0, -1.0, 0.05],
        "shifted_value": [*number, 1.5, 1.0, 1.25, 1.25, 1.15, 0.15, 1.15],
        "residual": [*number, 0.1, 0.1, -0.1, 0.0, 0.2, 0.2, -0.2],
        "reward": [*number, 0.0, 0.0, 0.0, 0.0, 0.5, 0.0, 1.0],
        "side": "chosen",
        "logp": [*number, -0.1, math.log(0.05), -0.5, -0.1, -0.2, -3.0, -0.1],
        "reference_logp": [*number, -5.1, math.log(0.625), -0.5, -1.1, -10.2, -7.0, -0.6],
    }
    values = [*number, 0.3, 0.2, -0.1, 0.0, 0.1, -0.2, 0.4]
    hostile = [*tokens[:-1], HOSTILE]
    shown = {"advantage": values, "shifted_value": values, "residual": values, "reward": [*number, *[None] * 7]}
    yield common | shown | {"kind": "sample", "prompt_id": "p1", "return": None, "tokens": hostile}


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_run(folder, *, settings=None, rows=None, summary=None, answers=(), trajectories=(), log=""):
    """A run directory; what is None is not written."""
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(settings or config()), encoding="utf-8")
    (folder / "run.log").write_text(log, encoding="utf-8")
    if rows is not None:
        columns = ["step", *dict.fromkeys(key for row in rows for key in row if key != "step")]
        with (folder / "metrics.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
    if summary is not None:
        (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    if answers:
        write_lines(folder / "samples.jsonl", answers)
    if trajectories:
        write_lines(folder / "credit.jsonl", trajectories)
    return folder


def history(reward, kl, beta):
    """Rows of metrics.csv that go from the reference (reward .1) to these numbers on a straight line."""
    rows = [{"step": 1, "train/loss": 2.0}, {"step": 100, "train/loss": 1.0}]
    for step in STEPS:
        now, far = 0.1 + (reward - 0.1) * step / 100, kl * step / 100
        rows.append({"step": step, "val/reward": now, "val/kl": far, "val/regularised_return": now - beta * far})
    return rows


def finished_run(folder, method="shiq", beta=0.1, seed=1, count=4, **more):
    """A run that ended well, with everything a run leaves."""
    reward, kl, value = final(method, beta, seed)
    summary = {
        "val/reward": reward,
        "val/reward_ci95": 0.3,
        "val/kl": kl,
        "val/regularised_return": value,
        "val/win_rate": 0.6,
        "val/completions/mean_length": 30.0,
        "val/completions/eos_rate": 0.75,
        "algo": method,
        "data": "hh",
        "seed": seed,
        "steps": 100,
        "seconds": 100.0,
        "seconds/eval": 20.0,
        "eval_share": 0.2,
        "seconds/reference": 1.0,
        "seconds/reference_computed": 31.0,
        "reference_cached": True,
        "fingerprint/data": "0123456789abcdef",
        "version/shiqrun": "0.1.0",
        "git_commit": "a" * 40,
    }
    return write_run(
        folder,
        settings=config(method, beta, seed, **more),
        rows=history(reward, kl, beta),
        summary=summary,
        answers=list(samples(method, beta, seed, count)),
        trajectories=list(credit()),
    )


def sweep(folder, *, count=4, failed=True):
    """Three methods, four betas, three seeds; with `failed` also a job that broke off and one that never ran."""
    jobs = []

    def job(method, beta, seed, status="finished", error=()):
        name = f"{len(jobs)}_algo={method},algo.beta={beta},seed={seed}"
        swept = {"algo": method, "algo.beta": str(beta), "seed": str(seed)}
        jobs.append(Job(len(jobs), name, [], swept, status=status, error=list(error)))
        return folder / name

    for method in METHODS:
        for beta in BETAS:
            for seed in SEEDS:
                finished_run(job(method, beta, seed), method, beta, seed, count)
    if failed:
        broken = job("dpo", 1.0, 4, "failed", ["starting", "the loss is not finite at step 7"])
        write_run(broken, settings=config("dpo", 1.0, 4), rows=[{"step": 1, "train/loss": 9.0}])
        job("dpo", 1.0, 5, "waiting")
    Sweep(folder, "train", ["sweep", "algo=shiq,copg,dpo"], "/", [], jobs).save()
    return folder
