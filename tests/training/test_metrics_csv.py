import csv

import pytest

from shiqrun.training.metrics_csv import MetricsFile
from shiqrun.training.step.schedule import learning_rate_factor


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_each_row_is_on_disk_as_soon_as_it_is_logged(tmp_path):
    log = MetricsFile(tmp_path / "m.csv")
    for step in (1, 2, 3):
        log.log_metrics({"a": step / 2}, step)
        assert rows(log.path)[-1] == {"step": str(step), "a": str(step / 2)}


def test_numbers_of_one_step_share_a_row_and_a_new_name_adds_a_column(tmp_path):
    log = MetricsFile(tmp_path / "m.csv")
    log.log_metrics({"b": 1.0}, 1)
    log.log_metrics({"a": 2.0}, 1)
    log.log_metrics({"b": 3.0}, 2)
    assert rows(log.path) == [{"step": "1", "a": "2.0", "b": "1.0"}, {"step": "2", "a": "", "b": "3.0"}]


def test_rows_later_than_the_checkpoint_are_replaced(tmp_path):
    log = MetricsFile(tmp_path / "m.csv")
    for step in (1, 2, 3, 4):
        log.log_metrics({"a": float(step)}, step)
    again = MetricsFile(log.path, keep=2)
    assert [r["step"] for r in rows(log.path)] == ["1", "2"]
    again.log_metrics({"a": 30.0}, 3)
    assert [r["a"] for r in rows(log.path)] == ["1.0", "2.0", "30.0"]
    assert again.latest() == {"a": 30.0}


def test_a_run_that_starts_over_keeps_no_row(tmp_path):
    MetricsFile(tmp_path / "m.csv").log_metrics({"a": 1.0}, 0)
    assert MetricsFile(tmp_path / "m.csv", keep=-1).rows == []
    assert rows(tmp_path / "m.csv") == []


@pytest.mark.parametrize(
    ("schedule", "at_end", "halfway"), [("constant", 1.0, 1.0), ("linear", 0.0, 0.5), ("cosine", 0.0, 0.5)]
)
def test_schedules_end_where_their_names_say(schedule, at_end, halfway):
    assert learning_rate_factor(100, schedule, 0, 100) == pytest.approx(at_end)
    assert learning_rate_factor(50, schedule, 0, 100) == pytest.approx(halfway)
    assert learning_rate_factor(60, schedule, 20, 100) == pytest.approx(halfway)
    assert learning_rate_factor(0, schedule, 4, 100) == 0.25
