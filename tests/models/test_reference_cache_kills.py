"""The pass that fills the cache, in real processes: killed, on a full disk, and two at a time."""

import logging
import multiprocessing
import os
import resource
import shutil
import signal

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.testing import assert_close

from shiqrun.batching.steps import Batches
from shiqrun.errors import InputError
from shiqrun.models import reference_cache as cache
from tests.models.scored import TOKENS, plain, policy_of, scores_of, watched
from tests.support.helpers import rows

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([__name__])  # so that only the first process has to import torch


def end_now(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def killed(directory, where):
    """Runs in a process of its own, with a part after every batch: ends it without warning at some point."""
    policy, cache.PART_SECONDS, replace, done = policy_of(), 0, os.replace, []

    def forward(*_):
        done.append(1)
        if len(done) == 4:
            end_now()

    def rename(source, target):
        done.append(1)
        if where == "writing the third part" and len(done) == 3:
            end_now()
        if where == "writing the whole" and target.name.startswith("reference-"):
            end_now()
        replace(source, target)

    if where == "scoring the fourth batch":
        policy.register_forward_hook(forward)
    else:
        os.replace = rename
    if where == "removing the parts":
        cache.Parts.remove = end_now
    scores_of(policy, rows(), directory)


KILLS = {
    "scoring the fourth batch": 3,
    "writing the third part": 2,
    "writing the whole": None,
    "removing the parts": None,
}


def in_its_own_process(target, *arguments):
    process = PROCESSES.Process(target=target, args=arguments)
    process.start()
    process.join()
    return process.exitcode


@pytest.mark.parametrize("where", KILLS)
def test_a_pass_that_is_killed_goes_on_after_its_last_whole_part(tmp_path, where):
    uninterrupted = policy_of()
    seen = watched(uninterrupted)
    right = plain(scores_of(uninterrupted, rows(), tmp_path / "right").scores)
    kept = len(seen) if KILLS[where] is None else KILLS[where]
    assert len(seen) > 4
    assert in_its_own_process(killed, tmp_path / "cache", where) == -signal.SIGKILL
    parts = sorted((tmp_path / "cache").glob("*.parts/*.arrow"))
    assert len(parts) == kept, "of the batches that were scored, all but the one at hand"
    policy = policy_of()
    again = watched(policy)
    scores, found, _ = scores_of(policy, rows(), tmp_path / "cache")
    assert again == seen[kept:], "the batches that were missing, as an uninterrupted pass cuts them"
    assert found == (where == "removing the parts")
    assert plain(scores) == right
    assert {p.suffix for p in (tmp_path / "cache").iterdir()} == {".arrow", ".lock"}


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory):
    """What a pass leaves that was killed in its fourth batch."""
    directory = tmp_path_factory.mktemp("killed")
    assert in_its_own_process(killed, directory, "scoring the fourth batch") == -signal.SIGKILL
    return directory


@pytest.fixture
def left(unfinished, tmp_path):
    """A copy of it."""
    return shutil.copytree(unfinished, tmp_path / "cache")


def test_the_seconds_are_those_of_all_sessions(left):
    (folder,) = left.glob("*.parts")
    stored = [pa.ipc.open_file(str(p)).schema.metadata[b"seconds"] for p in folder.glob("*.arrow")]
    before = sum(map(float, stored))
    began = cache.time.perf_counter()
    _, _, seconds = scores_of(policy_of(), rows(), left)
    assert before > 0
    assert before < seconds <= before + cache.time.perf_counter() - began


def test_a_pass_goes_on_with_other_batches_too(tmp_path, left):
    right = scores_of(policy_of(), rows(), tmp_path / "right").scores
    policy = policy_of()
    again = watched(policy)
    scores = scores_of(policy, rows(), left, tokens=3 * TOKENS).scores
    assert 0 < sum(again) < len(rows())
    for one, other in zip(scores, right, strict=True):
        assert_close(torch.from_numpy(np.stack(one)), torch.from_numpy(np.stack(other)))


def with_another_number(content):
    """The sign and exponent of one stored logit, which nothing but its hash can know."""
    logits = pa.ipc.open_file(pa.py_buffer(content)).get_batch(0).column("logit").values.to_numpy().tobytes()
    place = content.index(logits) + 3
    return content[:place] + bytes([content[place] ^ 64]) + content[place + 1 :]


TORN = {
    "cut": lambda content: content[:-9],
    "empty": lambda content: b"",
    "changed": with_another_number,
    "of other scores": lambda content: content.replace(b"key", b"kex"),
}


@pytest.mark.parametrize("damage", TORN)
def test_a_torn_part_is_found_and_made_again(tmp_path, left, damage, caplog):
    right = plain(scores_of(policy_of(), rows(), tmp_path / "right").scores)
    _, torn, _ = sorted(left.glob("*.parts/*.arrow"))
    torn.write_bytes(TORN[damage](torn.read_bytes()))
    policy = policy_of()
    again = watched(policy)
    with caplog.at_level(logging.INFO, "shiqrun"):
        scores = scores_of(policy, rows(), left).scores
    cut = [len(batch) for batch in Batches(rows(), tokens=TOKENS).cut]
    assert again == [cut[1], *cut[3:]]
    assert plain(scores) == right
    assert str(torn) in caplog.text
    assert f"{cut[0] + cut[2]} of {len(rows())} trajectories are there from before" in caplog.text


def test_a_part_that_is_there_twice_counts_once(left):
    first, *_, last = sorted(left.glob("*.parts/*.arrow"))
    last.with_name("00000007.arrow").write_bytes(first.read_bytes())
    assert len(scores_of(policy_of(), rows(), left).scores) == len(rows())


def filled_up(directory, answers):
    """Runs in a process of its own: from its fourth batch on, files may not have more than 512 bytes."""
    policy, cache.PART_SECONDS, done = policy_of(), 0, []

    def forward(*_):
        done.append(1)
        if len(done) == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (512, resource.RLIM_INFINITY))

    policy.register_forward_hook(forward)
    try:
        scores_of(policy, rows(), directory)
    except InputError as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        answers.put(str(error))


def test_a_disk_that_fills_up_is_said_and_costs_one_part(tmp_path):
    answers = PROCESSES.Queue()
    assert in_its_own_process(filled_up, tmp_path, answers) == 0
    assert answers.get(timeout=60).startswith(f"cache_dir={tmp_path}: ")
    assert len(list(tmp_path.glob("*.parts/*.arrow"))) == 3
    assert not list(tmp_path.glob("*.parts/*.tmp"))
    assert len(scores_of(policy_of(), rows(), tmp_path).scores) == len(rows())


def compute_together(directory, barrier, answers):
    """Runs in a process of its own."""
    policy, given = policy_of(), rows()
    barrier.wait()
    scores, found, _ = scores_of(policy, given, directory)
    answers.put((found, plain(scores)))


def test_two_processes_that_start_together_compute_once(tmp_path):

    barrier, answers = PROCESSES.Barrier(2), PROCESSES.Queue()
    both = [PROCESSES.Process(target=compute_together, args=(tmp_path, barrier, answers)) for _ in range(2)]
    for process in both:
        process.start()
    (found, scores), (other_found, other_scores) = answers.get(timeout=120), answers.get(timeout=120)
    for process in both:
        process.join()
    assert [found, other_found] in ([True, False], [False, True])
    assert scores == other_scores
    assert len(list(tmp_path.glob("*.arrow"))) == 1
