"""The pass that fills the cache, shared by the ranks of a run: real processes in a group over gloo."""

import logging
import threading

from shiqrun.errors import InputError
from shiqrun.models import reference_cache as cache
from shiqrun.util import lock
from shiqrun.util.lock import Lock
from tests.models.scored import key_of, plain, policy_of, scores_of, watched
from tests.support.helpers import rows
from tests.support.ranks import on_ranks


def scored(rank, directory, part_seconds):
    """(rows of the batches that this rank scores, what it finds, all scores), then again from the cache."""
    cache.PART_SECONDS = part_seconds
    policy = policy_of()
    seen, found = watched(policy), []
    for _ in range(2):
        scores, there, _ = scores_of(policy, rows(), directory)
        found.append(there)
    return seen, found, plain(scores)


def test_ranks_share_the_batches_and_get_the_bits_of_one_process(tmp_path):
    alone = policy_of()
    seen = watched(alone)
    right = plain(scores_of(alone, rows(), tmp_path / "alone").scores)
    first, second = on_ranks(2, scored, tmp_path / "cache", 0)
    assert sorted([*first[0], *second[0]]) == sorted(seen), "each batch once, as one process cuts them"
    assert min(len(first[0]), len(second[0])) > 1
    assert first[1] == second[1] == [False, True]
    assert first[2] == second[2] == right
    assert {p.suffix for p in (tmp_path / "cache").iterdir()} == {".arrow", ".lock"}


def apart(rank, directory):
    """What ends a rank whose `cache_dir` is on another machine's disk."""
    try:
        scores_of(policy_of(), rows(), directory / str(rank))
    except (InputError, RuntimeError) as error:  # rank 0 loses rank 1
        return str(error)
    return ""


def test_a_cache_directory_that_the_ranks_do_not_share_is_refused(tmp_path):
    (tmp_path / "1").mkdir()
    said = on_ranks(2, apart, tmp_path)[1]
    assert said.startswith(f"{tmp_path / '1'}: rank 1 does not see the file reference-")


def waited(rank, directory, seconds):
    """What a rank's log says while another job holds the cache."""
    said = []
    logging.getLogger("shiqrun").addFilter(lambda record: said.append(record.getMessage()) or True)
    logging.getLogger("shiqrun").setLevel(logging.INFO)
    lock.PATIENCE_SECONDS = 0.1
    held = Lock(directory / f"reference-{key_of(policy_of(), rows())}.lock")
    if rank == 0:
        held.acquire()
        threading.Timer(seconds, held.release).start()
    scores_of(policy_of(), rows(), directory)
    return said


def test_ranks_wait_together_for_a_job_that_computes_and_rank_0_says_so_once(tmp_path):
    first, second = on_ranks(2, waited, tmp_path, 0.5)
    assert [line.partition(" (")[0] for line in first] == [cache.WAITING]
    assert second == []
