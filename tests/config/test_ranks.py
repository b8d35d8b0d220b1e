"""Ranks meet before anything is prepared, and the first failure of any of them ends all with one line."""

import multiprocessing
import os
import socket
import threading
import time
from contextlib import suppress

import pytest
import torch

from shiqrun.cli import main
from shiqrun.config import crew as crews
from shiqrun.config.crew import Crew, Failure
from shiqrun.config.places import Place, meeting_point, place
from shiqrun.errors import InputError


@pytest.fixture
def no_cluster(monkeypatch):
    for name in [n for n in os.environ if n.startswith("SLURM_") or n in ("RANK", "WORLD_SIZE", "LOCAL_RANK")]:
        monkeypatch.delenv(name)
    return monkeypatch


class TestAPlace:
    def test_is_alone_without_variables(self, no_cluster):
        assert place() == Place(0, 1, 0, "")

    def test_of_torchrun(self, no_cluster):
        for name, value in {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}.items():
            no_cluster.setenv(name, value)
        assert place() == Place(5, 8, 1, "torchrun")

    def test_of_srun_is_that_of_the_step(self, no_cluster):
        job = {"SLURM_JOB_ID": "70042", "SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
        for name, value in job.items():
            no_cluster.setenv(name, value)
        assert place() == Place(0, 1, 0, ""), "the batch script itself is one process"
        step = {"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "6", "SLURM_LOCALID": "2"}
        for name, value in step.items():
            no_cluster.setenv(name, value)
        assert place() == Place(6, 8, 2, "srun")

    @pytest.mark.parametrize(
        ("nodes", "first"),
        [
            ("gpu[07-09,12]", "gpu07"),
            ("gpu7", "gpu7"),
            ("a1,b[2-3]", "a1"),
            ("rack1-[3,5]", "rack1-3"),
            ("n[1-2].cluster", "n1.cluster"),
            ("n[1-2]-ib,m3", "n1-ib"),
        ],
    )
    def test_of_srun_meets_at_the_first_node(self, no_cluster, nodes, first):
        no_cluster.setenv("SLURM_STEP_NODELIST", nodes)
        no_cluster.setenv("SLURM_JOB_ID", "70042")
        no_cluster.delenv("MASTER_ADDR", raising=False)
        no_cluster.delenv("MASTER_PORT", raising=False)
        host, port = meeting_point(Place(1, 2, 0, "srun"))
        assert host == first
        assert 15000 <= port < 25000

    def test_without_a_meeting_point_is_refused(self, no_cluster):
        no_cluster.delenv("MASTER_ADDR", raising=False)
        with pytest.raises(InputError, match="start the command by torchrun or srun, or unset RANK and WORLD_SIZE"):
            meeting_point(Place(1, 2, 0, "torchrun"))

    def test_whose_variable_is_no_number_is_refused(self, no_cluster, capsys):
        no_cluster.setenv("RANK", "first")
        no_cluster.setenv("WORLD_SIZE", "2")
        assert main(["train"]) == 2
        assert capsys.readouterr().err == ("shiqrun: error: the environment variable RANK='first': expected a number\n")


@pytest.fixture
def store():
    return torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


@pytest.fixture
def join(store, monkeypatch):
    """Makes ranks of a world of so many, in this process; all leave at the end, without waiting for those not made."""
    monkeypatch.setattr(crews, "LEAVE_SECONDS", 0.5)
    there = []

    def made(rank, world, said=None):
        own = torch.distributed.TCPStore("127.0.0.1", store.port, is_master=False)
        there.append(Crew(own, Place(rank, world, rank, "srun"), (said if said is not None else []).append))
        return there[-1]

    yield made
    for one in there:
        one.code = 1
    threads = [threading.Thread(target=one.leave) for one in there]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def in_thread(function):
    """Calls it beside this thread; returns a function that waits and returns its result or error."""
    found = []

    def run():
        try:
            found.append(function())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()

    def result():
        thread.join(30)
        return found[0]

    return result


class TestACrew:
    def test_knows_when_all_have_arrived(self, join):
        first, second = join(0, 2), join(1, 2)
        waiting = in_thread(first.arrive)
        second.arrive()
        assert waiting() is None

    def test_names_those_who_did_not_arrive(self, join, monkeypatch):
        monkeypatch.setenv("SHIQRUN_JOIN_SECONDS", "0.5")
        first, third = join(0, 4), join(2, 4)
        other = in_thread(third.arrive)
        with pytest.raises(InputError) as caught:
            first.arrive()
        host = socket.gethostname()
        assert str(caught.value) == (
            f"2 of 4 ranks did not arrive within 0.5 s: 1, 3 (there: those on {host}); see the output of the other "
            "nodes, or raise SHIQRUN_JOIN_SECONDS"
        )
        first.fail(Failure(2, f"error: {caught.value}"))
        assert other().failure.code == 2

    @pytest.mark.parametrize("seconds", ["0", "-1", "soon", "nan"])
    def test_takes_a_positive_time_for_arrivals(self, join, monkeypatch, seconds):
        monkeypatch.setenv("SHIQRUN_JOIN_SECONDS", seconds)
        with pytest.raises(InputError, match=f"SHIQRUN_JOIN_SECONDS={seconds}: expected a positive number of seconds"):
            join(0, 2).arrive()

    def test_is_told_where_the_run_is(self, join, tmp_path):
        first, second = join(0, 2), join(1, 2)
        waiting = in_thread(second.told)
        first.tell(tmp_path)
        assert waiting() == tmp_path

    def test_is_told_that_there_is_no_run(self, join):
        first, second = join(0, 2), join(1, 2)
        first.code = 2
        waiting, leaving = in_thread(second.told), in_thread(first.leave)
        assert waiting() == 2
        leaving()

    def test_prints_the_first_failure_once_whoever_failed(self, join):
        said = []
        first, second, third = join(0, 3, said), join(1, 3), join(2, 3)
        assert third.fail(Failure(2, "error: a file is missing")).failure.code == 2
        assert said == [(2, "error: a file is missing")]
        for late in (second, first):
            assert late.fail(Failure(1, "failed: Connection closed by peer")).failure.text == "error: a file is missing"
        assert len(said) == 1

    def test_ends_a_rank_that_hears_nothing(self, store, monkeypatch):
        """It waits for the failed one inside a library, where no exception arrives."""
        monkeypatch.setattr(crews, "UNWIND_SECONDS", 0.3)
        context = multiprocessing.get_context("fork")
        process = context.Process(target=_waits_for_ever, args=(store.port,))
        process.start()
        store.wait(["waits"])
        second = Crew(store, Place(1, 2, 1, "srun"), print)
        second._over.set()  # this one is the test's own process, which is not to end
        second.fail(Failure(7, "error"))
        process.join(20)
        assert process.exitcode == 7

    def test_ends_when_rank_0_is_gone(self):
        server = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        second = Crew(
            torch.distributed.TCPStore("127.0.0.1", server.port, is_master=False), Place(1, 2, 1, "srun"), print
        )
        second._over.set()
        del server
        assert second.fail(Failure(1, "failed: broken")).failure == (1, "failed: rank 0 has ended")


def _waits_for_ever(port):
    store = torch.distributed.TCPStore("127.0.0.1", port, is_master=False)
    Crew(store, Place(0, 2, 0, "srun"), print)
    store.set("waits", "1")
    with suppress(RuntimeError):
        store.wait(["never"])
    time.sleep(60)
