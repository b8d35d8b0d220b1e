import csv
import json

import pytest

from shiqrun.errors import InputError
from shiqrun.sweeping.state import Job, Sweep, load


def sweep_in(folder, *statuses):
    jobs = [
        Job(n, f"{n}_seed={n}", ["algo=shiq", f"seed={n}"], {"seed": f"{n}"}, status=status)
        for n, status in enumerate(statuses)
    ]
    for job in jobs:
        if job.status != "waiting":
            (folder / job.dir).mkdir()
    return Sweep(folder, "train", ["sweep", "seed=0,1"], str(folder), ["algo=shiq"], jobs)


JOB = {"number": 0, "dir": "0", "words": [], "swept": {}}


def whole(**changed):
    return json.dumps({"format": 1, "command": "train", "typed": [], "cwd": "/", "fixed": [], "jobs": [], **changed})


def summarise(sweep, number, **values):
    (sweep.directory_of(sweep.jobs[number]) / "summary.json").write_text(json.dumps(values))


def rows(folder):
    with (folder / "sweep.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_table_has_a_row_a_job_with_what_is_swept_and_the_final_metrics(tmp_path):
    sweep = sweep_in(tmp_path, "finished", "failed", "waiting")
    sweep.jobs[1].exit_code, sweep.jobs[1].seconds = 1, 12.34
    summarise(sweep, 0, **{"val/reward": 0.5, "train/loss": 2.0, "seconds": 9.0, "algo": "shiq", "seed": 0})
    sweep.save()
    first, second, third = rows(tmp_path)
    assert list(first) == ["job", "status", "exit_code", "seconds", "dir", "seed", "train/loss", "val/reward"]
    assert (first["val/reward"], first["train/loss"], first["seed"]) == ("0.5", "2.0", "0")
    assert (second["status"], second["exit_code"], second["seconds"], second["val/reward"]) == (
        "failed",
        "1",
        "12.3",
        "",
    )
    assert (third["status"], third["exit_code"]) == ("waiting", "")


def test_what_was_saved_is_loaded_again(tmp_path):
    sweep = sweep_in(tmp_path, "finished", "failed", "interrupted", "waiting")
    sweep.jobs[1].error = ["shiqrun: failed", "a reason"]
    sweep.save()
    assert load(tmp_path) == sweep


def test_a_job_that_nobody_saw_end_is_finished_if_its_summary_is_there(tmp_path):
    sweep = sweep_in(tmp_path, "running", "running")
    summarise(sweep, 0, steps=3, seconds=41.5)
    sweep.save()
    assert [(job.status, job.seconds) for job in load(tmp_path).jobs] == [("finished", 41.5), ("interrupted", 0.0)]


def test_the_time_on_record_counts_where_the_last_session_was_shorter(tmp_path):
    sweep = sweep_in(tmp_path, "running", "finished")
    for job in sweep.jobs:
        job.seconds = 60.0
        summarise(sweep, job.number, seconds=41.5 + 100 * job.number)
    sweep.save()
    assert [job.seconds for job in load(tmp_path).jobs] == [60.0, 60.0]


def test_a_finished_job_whose_directory_is_gone_is_to_be_run(tmp_path):
    sweep = sweep_in(tmp_path, "finished", "finished")
    sweep.save()
    sweep.directory_of(sweep.jobs[1]).rmdir()
    assert [job.status for job in load(tmp_path).jobs] == ["finished", "waiting"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"format": 2, "shiqrun": "9.0", "jobs": []}', "met format 2, written by shiqrun 9.0"),
        ('{"jobs": []}', "met format None"),
        ("[]", "cannot be read"),
        ("{", "cannot be read"),
        (b"\xff{", "cannot be read"),
        ('{"format": 1}', "sweep.json: command: Field required"),
        (whole(jobs=None), "sweep.json: jobs: .*nothing was changed"),
        (whole(jobs=[{"number": 0}]), "sweep.json: jobs.0.dir: Field required"),
        (whole(jobs=[{**JOB, "status": "lost"}]), "sweep.json: jobs.0.status: "),
        (whole(jobs=[{**JOB, "words": "seed=1"}]), "sweep.json: jobs.0.words: "),
        (whole(jobs=["0"]), "sweep.json: jobs.0: "),
        (None, "holds no sweep.json"),
    ],
)
def test_a_directory_of_another_format_or_without_a_sweep_is_refused(tmp_path, text, message):
    written = text.encode() if isinstance(text, str) else text
    if written is not None:
        (tmp_path / "sweep.json").write_bytes(written)
    with pytest.raises(InputError, match=message):
        load(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == ({"sweep.json": written} if written else {})


def test_a_directory_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such directory"):
        load(tmp_path / "gone")
