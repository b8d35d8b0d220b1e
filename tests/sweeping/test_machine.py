import pytest

from shiqrun.sweeping.machine import Machine, cores
from shiqrun.sweeping.state import Job


def job(gpus=0):
    return Job(0, "0", [], {}, gpus=gpus)


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_processes_that_run_together_share_the_cores():
    assert Machine(2).environment(job(), 0)["OMP_NUM_THREADS"] == str(max(cores() // 2, 1))
    assert Machine(10_000).environment(job(), 0)["OMP_NUM_THREADS"] == "1"


def test_one_at_a_time_has_the_whole_machine():
    assert "OMP_NUM_THREADS" not in Machine(1).environment(job(), 0)


def test_threads_that_the_user_set_stay(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert Machine(2).environment(job(), 0)["OMP_NUM_THREADS"] == "7"


def test_each_slot_has_its_own_gpu_and_a_job_of_two_has_two(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    machine = Machine(3)
    assert [machine.environment(job(1), slot)["CUDA_VISIBLE_DEVICES"] for slot in range(3)] == ["4", "5", "6"]
    assert machine.environment(job(1), 3)["CUDA_VISIBLE_DEVICES"] == "4"
    assert machine.environment(job(2), 1)["CUDA_VISIBLE_DEVICES"] == "6,4"


def test_a_job_on_the_cpu_sees_what_the_user_sees(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    assert Machine(2).environment(job(), 1)["CUDA_VISIBLE_DEVICES"] == "4,5"
