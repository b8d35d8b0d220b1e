from rich.console import Console

from shiqrun.sweeping.state import Job, Sweep
from shiqrun.sweeping.view import SweepView, jobs_table, progress, reason, short_names


def grid(folder, statuses):
    jobs = [
        Job(n, f"{n}", [], {"algo": "shiq", "algo.beta": "0.1", "seed": f"{n}"}, max_steps=50, status=status)
        for n, status in enumerate(statuses)
    ]
    for job in jobs:
        (folder / job.dir).mkdir(parents=True)
        (folder / job.dir / "metrics.csv").write_text("step,val/reward,val/kl\n10,0.25,1.5\n20,0.5,\n")
    return Sweep(folder, "train", [], str(folder), [], jobs)


def screen(view, width=100, height=30):
    console = Console(width=width, height=height, force_terminal=True, color_system=None, record=True, quiet=False)
    with console.capture() as capture:
        console.print(view)
    return capture.get().splitlines()


def test_84_jobs_fit_a_terminal_and_what_runs_what_failed_and_what_ended_last_is_there(tmp_path):
    sweep = grid(tmp_path, ["finished"] * 50 + ["failed"] * 2 + ["running"] * 3 + ["waiting"] * 29)
    sweep.jobs[51].error = ["shiqrun: failed: the loss is nan"]
    lines = screen(SweepView(sweep))
    text = "\n".join(lines)
    assert len(lines) <= 30
    assert "84 jobs: 3 running, 50 finished, 2 failed, 29 to go" in text
    assert "job 51: the loss is nan" in text
    numbers = [int(line.split("│")[1]) for line in lines if line.startswith("│")]
    assert {50, 51, 52, 53, 54, 49} <= set(numbers)
    assert numbers == sorted(numbers)


def test_a_narrow_terminal_keeps_a_line_a_job_and_leaves_out_metrics(tmp_path):
    sweep = grid(tmp_path, ["running"] * 3)
    for width, there in ((120, "val/loss"), (74, "val/reward"), (60, "step")):
        lines = screen(SweepView(sweep), width=width)
        assert len([line for line in lines if line.startswith("│")]) == 3
        assert max(map(len, lines)) <= width
        assert there in "\n".join(lines)
    assert "val/loss" not in "\n".join(screen(SweepView(sweep), width=74))


def test_a_sweep_that_mostly_failed_still_shows_what_runs(tmp_path):
    sweep = grid(tmp_path, ["failed"] * 60 + ["running"] * 2)
    numbers = [int(line.split("│")[1]) for line in screen(SweepView(sweep)) if line.startswith("│")]
    assert {60, 61} <= set(numbers)


def test_a_row_has_the_last_of_each_metric_and_the_step(tmp_path):
    (row,) = [line for line in screen(SweepView(grid(tmp_path, ["running"]))) if line.startswith("│")]
    assert "20/50" in row
    assert "0.5" in row
    assert "1.5" in row  # from the row before: the last that there is


def test_steps_are_counted_from_epochs_where_no_number_is_set():
    job = Job(0, "0", [], {}, max_steps=None, max_epochs=2)
    assert progress(job, {"step": 5, "train/epoch": 0.5}) == "5/20"
    assert progress(job, {"step": 5}) == "5"


def test_the_reason_is_what_was_told_or_the_last_line_of_a_traceback():
    told = Job(0, "0", [], {}, error=["shiqrun: error: data.path=x: no such file"])
    crashed = Job(0, "0", [], {}, error=["shiqrun: failed", "  Traceback", "  RuntimeError: a defect"])
    killed = Job(0, "0", [], {}, error=["step 3/50", "killed by SIGKILL (memory?)"])
    assert reason(told) == "data.path=x: no such file"
    assert reason(crashed) == "RuntimeError: a defect"
    assert reason(killed) == "killed by SIGKILL (memory?)"


def test_headings_are_short_where_that_names_one_key():
    keys = ["algo", "algo.beta", "a.seed", "seed"]
    assert short_names(keys) == {"algo": "algo", "algo.beta": "beta", "a.seed": "a.seed", "seed": "seed"}


def test_one_job_is_one_job(tmp_path):
    one, two = (grid(tmp_path / name, ["waiting"] * count) for count, name in ((1, "one"), (2, "two")))
    assert [jobs_table(sweep).title for sweep in (one, two)] == ["1 job of shiqrun train", "2 jobs of shiqrun train"]
    assert screen(SweepView(one))[0].startswith("1 job: ")
