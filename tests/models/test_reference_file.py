"""The file of cached scores: 8 bytes an action, never in memory as a whole, and refused where it is not what it was."""

import pickle
import tracemalloc

import numpy as np
import pyarrow as pa
import pytest

from shiqrun.errors import InputError
from shiqrun.models.reference_file import ExpectedScores, MappedScores, join_parts, read_part, write_part


def numbers(expected, seed=0):
    """For each row `[A, 2 + K]`, a logit, a log-partition and further logits an action."""
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(n, 2 + expected.further)).astype(np.float32) for n in expected.actions]


def parts_of(folder, expected, scores, *, order, size, seconds=1.5):
    """The scores in parts of `size` rows, in the given order."""
    folder.mkdir(exist_ok=True)
    paths = []
    for k in range(0, len(order), size):
        rows = np.array(order[k : k + size])
        paths.append(folder / f"{k:04d}.arrow")
        write_part(paths[-1], expected, rows, np.concatenate([scores[r] for r in rows]), seconds=seconds)
    return paths


@pytest.fixture
def expected():
    return ExpectedScores("its key", np.random.default_rng(1).integers(1, 9, 20), 0)


def whole(folder, expected, **options):
    path = folder / "reference.arrow"
    scores, order = numbers(expected), np.random.default_rng(2).permutation(len(expected.actions))
    parts_of(folder / "parts", expected, scores, order=order, **({"size": 7} | options))
    join_parts(path, expected, folder / "parts")
    return path, scores


@pytest.mark.parametrize("further", [0, 3])
@pytest.mark.parametrize("size", [1, 7, 20])
def test_every_row_comes_back_in_whatever_order_and_parts_it_was_written(tmp_path, expected, further, size):
    expected = expected._replace(further=further)
    path, scores = whole(tmp_path, expected, size=size)
    mapped = MappedScores(path, expected)
    assert len(mapped) == len(scores)
    assert mapped.seconds == 1.5 * -(-20 // size)
    for found, given in zip(mapped, scores, strict=True):
        logit, partition, *more = found
        assert logit.tolist() == given[:, 0].tolist()
        assert partition.tolist() == given[:, 1].tolist()
        assert [x.tolist() for x in more] == ([given[:, 2:].tolist()] if further else [])
    assert mapped[-1][0].tolist() == scores[-1][:, 0].tolist()
    with pytest.raises(IndexError):
        mapped[20]


def test_a_trajectory_without_actions_has_empty_arrays(tmp_path):
    path, _ = whole(tmp_path, empty := ExpectedScores("k", np.array([2, 0, 3, 0]), 2), size=1)
    assert [[x.shape for x in row] for row in MappedScores(path, empty)][1] == [(0,), (0,), (0, 2)]


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """2 million actions, 16 MB, in 40 parts."""
    expected = ExpectedScores("k", np.random.default_rng(0).integers(500, 1501, 2000), 0)
    path, scores = whole(tmp_path_factory.mktemp("large"), expected, size=50)
    return path, expected, scores


def test_a_file_takes_eight_bytes_an_action(large):
    path, expected, _ = large
    assert path.stat().st_size < 8.1 * expected.actions.sum()
    assert path.stat().st_size <= expected.size()


def test_opening_and_reading_rows_copies_none_into_memory(large):
    path, expected, scores = large
    MappedScores(path, expected)  # what a first time leaves behind for good
    arrow = pa.total_allocated_bytes()
    tracemalloc.start()
    mapped = MappedScores(path, expected)
    kept = [mapped[row] for row in range(len(mapped))]
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    size = 8 * expected.actions.sum()
    assert held < size / 10
    assert peak < size / 10  # what is read to be verified is a part at a time, and Arrow's
    assert pa.total_allocated_bytes() - arrow < size / 10
    assert kept[7][1].tolist() == scores[7][:, 1].tolist()
    assert len({id(array.base) for row in kept for array in row}) == 1, "every array looks into the same map"


def test_what_is_written_into_a_view_stays_out_of_the_file(large):
    path, expected, scores = large
    view = MappedScores(path, expected)[3][0]
    view += 1
    assert MappedScores(path, expected)[3][0].tolist() == scores[3][:, 0].tolist()


def test_another_process_is_sent_the_name_and_not_the_numbers(large):
    path, expected, scores = large
    sent = pickle.dumps(MappedScores(path, expected))
    assert len(sent) < expected.actions.nbytes + 1000
    assert pickle.loads(sent)[5][0].tolist() == scores[5][:, 0].tolist()


def in_the_numbers(content):
    """The sign and exponent of one stored logit, which nothing but its hash can know."""
    scores = numbers(ExpectedScores("its key", np.random.default_rng(1).integers(1, 9, 20), 0))
    place = content.index(scores[4][:, 0].tobytes()) + 3
    return content[:place] + bytes([content[place] ^ 64]) + content[place + 1 :]


DAMAGES = {
    "empty": lambda content: b"",
    "text": lambda content: b"<html>404</html>" * 99,
    "cut in the middle": lambda content: content[: len(content) // 2],
    "cut at the end": lambda content: content[:-1],
    "zeros in the middle": lambda content: content[:700] + bytes(600) + content[1300:],
    "a changed number": in_the_numbers,
    "a changed last byte": lambda content: content[:-1] + bytes([content[-1] ^ 16]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused_by_name_with_what_to_do(tmp_path, expected, damage):
    path, _ = whole(tmp_path, expected)
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    with pytest.raises(InputError) as refused:
        MappedScores(path, expected)
    assert str(path) in str(refused.value)
    assert "delete it" in str(refused.value)


def test_no_flipped_bit_gives_other_numbers(tmp_path, expected):
    path, scores = whole(tmp_path, expected)
    content = path.read_bytes()
    refused = 0
    for place in range(0, len(content), 5):
        path.unlink()
        path.write_bytes(content[:place] + bytes([content[place] ^ (1 << place % 8)]) + content[place + 1 :])
        try:
            found = [np.stack(row, -1) for row in MappedScores(path, expected)]
        except InputError:
            refused += 1
        else:  # in the padding between buffers, or in what computing took
            assert all(np.array_equal(x, y) for x, y in zip(found, scores, strict=True))
    assert refused > len(content) / 20


FOREIGN = {
    "other columns": lambda e: e._replace(further=2),
    "another key": lambda e: e._replace(key="another"),
    "fewer trajectories": lambda e: e._replace(actions=e.actions[:-1]),
    "more trajectories": lambda e: e._replace(actions=np.append(e.actions, 3)),
    "other numbers of actions": lambda e: e._replace(actions=e.actions[::-1]),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_whole_file_of_other_scores_is_refused(tmp_path, expected, kind):
    path, _ = whole(tmp_path, expected, size=20)
    with pytest.raises(InputError, match="delete it"):
        MappedScores(path, FOREIGN[kind](expected))


def test_a_file_in_which_a_trajectory_is_missing_or_there_twice_is_refused(tmp_path, expected):
    for name, order in {"missing": [*range(19)], "twice": [*range(20), 4], "both": [*range(19), 4]}.items():
        parts_of(tmp_path / name, expected, numbers(expected), order=order, size=7)
        join_parts(tmp_path / "made.arrow", expected, tmp_path / name)
        with pytest.raises(InputError, match="delete it"):
            MappedScores(tmp_path / "made.arrow", expected)


def test_a_table_of_somebody_else_is_refused(tmp_path, expected):
    path = tmp_path / "theirs.arrow"
    table = pa.table({"logit": [1.0]})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(InputError, match=r"theirs\.arrow"):
        MappedScores(path, expected)


def test_a_part_is_written_whole_or_not_at_all(tmp_path, expected):
    (path,) = parts_of(tmp_path, expected, numbers(expected), order=range(5), size=5)
    before = path.read_bytes()
    with pytest.raises(IndexError):
        write_part(path, expected, np.array([99]), np.zeros((1, 2), np.float32), seconds=1)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    assert read_part(path, expected)[0].tolist() == [0, 1, 2, 3, 4]
