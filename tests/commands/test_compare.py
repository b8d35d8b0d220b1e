"""`shiqrun compare` from outside: what it would run, what it refuses, and a whole comparison of real runs."""

import csv
import json
import re
import signal
import time
from pathlib import Path

import pytest

from shiqrun.cli import main
from shiqrun.config.method_configs import method_configs
from tests.support.command_line import finished, started_anew, summary
from tests.support.places import working_in

TINY = (
    "data.maps=24",
    "data.val_maps=6",
    "model.hidden_size=16",
    "model.num_layers=1",
    "trainer.batch_size=8",
    "trainer.max_steps=2",
    "eval.every=2",
    "logger=none",
)
SINGLE = [{"prompt": f"say {n}", "completion": f"{n}", "reward": float(n % 2), "answer": f"{n}"} for n in range(40)]


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("single.jsonl").write_text("".join(json.dumps(row) + "\n" for row in SINGLE))


def dry(capsys, *words):
    assert main(["compare", *words, "dry_run=true"]) == 0
    return " ".join(re.sub(r"[│\s]+", " ", capsys.readouterr().out).split())


def refused(capsys, *words):
    """The only line of the error."""
    assert main(["compare", *words]) == 2
    lines = capsys.readouterr().err.splitlines()
    (at,) = [number for number, line in enumerate(lines) if line.startswith("shiqrun: error: ")]
    assert at == len(lines) - 1
    assert not list(Path().glob("outputs/*"))
    return lines[at]


def test_without_methods_all_run_that_the_data_can_feed_over_their_own_grids(capsys):
    out = dry(capsys, *TINY)
    assert "shiq algo.beta=0.03,0.1,0.3,1.0 0,1,2 12" in out
    assert "dpo algo.beta=0.01,0.03,0.1,0.3 0,1,2 12" in out
    assert re.search(r"left out: [^:]*\bgvpo\b[^:]*: the same loss as algo=agro", out)
    assert "left out: sft: has no beta, and data=treasure is evaluated exactly at one" in out
    assert re.search(r"about [\d.]+ (s|min|h)[ :]", out)


def test_named_methods_and_values_of_the_command_line(capsys):
    words = ("algo=shiq,dro", "algo.beta=0.2", "algo.lam=0.9,1", "seed=4,5", "trainer.learning_rate=1e-3,2e-3")
    out = dry(capsys, *TINY, *words)
    assert "12 runs of 2 methods" in out
    assert "shiq algo.lam=0.9,1 trainer.learning_rate=0.001,0.002 4,5 8" in out
    assert "dro trainer.learning_rate=0.001,0.002 4,5 4" in out


SINGLES = ("data=jsonl", "data.path=single.jsonl", "eval.reward=exact_match", "model.hidden_size=16", "logger=none")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("algo=shiqq",), "did you mean algo=shiq?"),
        (("algo=shiq,copgg",), "algo=copgg: no method of this name; did you mean copg?"),
        ((*SINGLES, "algo=shiq,copg"), "algo=copg: cannot be compared on these data: no training trajectory is left"),
        (SINGLES[:2] + SINGLES[3:], "eval.reward: a comparison ranks methods by the reward of their answers"),
        ((*SINGLES, "data.val_fraction=0"), "data.val_fraction=0 holds out no prompt that chooses; raise it"),
        ((*SINGLES, "eval.max_prompts=0"), "eval.max_prompts=0: a comparison chooses on validation prompts"),
        (("algo=shiq", "algo.betta=0.1"), "algo.betta: unknown key; did you mean algo.beta?"),
        (("algo=shiq", "algo.beta=interval(0.1,1)"), "a comparison needs values"),
        (("algo=shiq", "algo.beta=0.1,fast"), "algo.beta: met 'fast'"),
        (("sweep.search=optuna",), "shiqrun compare runs grids"),
        (("sweep.resume=nowhere",), "nowhere: no such directory"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(words, said, capsys):
    assert said in refused(capsys, *words)


def test_a_method_of_ones_own_brings_its_grid(capsys):
    Path("conf/algo").mkdir(parents=True)
    lines = "defaults: [_regularised, _self_]\n_target_: shiqrun.losses.dro\nbaseline: none\ngrid: {beta: [0.2, 0.7]}\n"
    Path("conf/algo/mine.yaml").write_text(lines)
    assert "mine algo.beta=0.2,0.7 1 2" in dry(capsys, *TINY, "algo=mine", "seed=1")


def test_the_grid_of_every_method_tries_its_default_and_other_values_around_it():
    tried = {name: (c.algo.beta, list(c.algo.grid.beta)) for name, c in method_configs(()).items() if "grid" in c.algo}
    assert len(tried) > 20
    for name, (default, grid) in tried.items():
        assert default in grid, name
        assert len(set(grid)) > 2, name


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def jobs_in(folder):
    return table(folder / "sweep.csv") if (folder / "sweep.csv").is_file() else []


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """(directory, output) of a comparison that was killed after its first run, and begun again by the same words."""
    with working_in(tmp_path_factory.mktemp("compare")):
        words = (*TINY, "algo=shiq,copg", "algo.beta=0.1,0.5", "seed=1,2", "cache_dir=cache", "run_dir=both")
        first = started_anew("compare", *words)
        folder = Path("both").absolute()
        while not any(row["status"] == "finished" for row in jobs_in(folder)):
            assert first.poll() is None, first.communicate()[0]
            time.sleep(0.05)
        first.send_signal(signal.SIGTERM)
        code, out = finished(first)
        assert code == 130, out
        done = [row["dir"] for row in table(folder / "sweep.csv") if row["status"] == "finished"]
        stamps = {name: (folder / name / "summary.json").stat().st_mtime_ns for name in done}
        code, out = finished(started_anew("compare", *words))
        assert code == 0, out
        assert all((folder / name / "summary.json").stat().st_mtime_ns == stamp for name, stamp in stamps.items())
        yield folder, out


@pytest.mark.slow
def test_a_killed_comparison_goes_on_and_tells_its_result(compared):
    folder, out = compared
    assert "holds this comparison: going on with it" in out
    assert all(row["status"] == "finished" for row in table(folder / "sweep.csv"))
    assert "the reference was scored 2 times" in out  # random weights are of their seed
    assert re.search(r"on 6 test prompts over 2 seeds, by reward", out)
    assert "With 2 seeds the intervals are over prompts alone" in out
    assert out.rstrip().splitlines()[-1].startswith("next: open ")


@pytest.mark.slow
def test_the_table_has_the_figures_of_the_runs(compared):
    folder, _ = compared
    jobs = table(folder / "sweep.csv")
    for row in table(folder / "compare.csv"):
        own = [j for j in jobs if (j["algo"], j["algo.beta"]) == (row["method"], row["algo.beta"])]
        assert len(own) == int(row["seeds"]) == 2
        for split in ("val", "test"):
            mean = sum(summary(folder / j["dir"])[f"{split}/reward"] for j in own) / 2
            assert float(row[f"{split}/reward"]) == pytest.approx(mean)
        assert float(row["memory/peak"]) > 1e8
        assert float(row["seconds/step"]) > 0
    assert "Comparison" in (folder / "report.html").read_text()
    assert json.loads((folder / "compare.json").read_text())["prompts"] == 6
