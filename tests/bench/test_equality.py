"""The comparison of two ranks with one process, on the families of models and the kinds of runs of its table."""

import pytest

from bench import equality
from bench.models import FAMILIES


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """(folder, the words of each kind of run)."""
    folder = tmp_path_factory.mktemp("equality")
    return folder, equality.kinds(folder)


def gaps(words, kind):
    folder, known = words
    asked = [*equality.COMMON, f"cache_dir={folder / 'cache'}", *known[kind]]
    one, many = (
        equality.run(asked, folder / f"{name}_{[*known].index(kind)}", ranks=n) for n, name in ((1, "one"), (2, "two"))
    )
    return equality.differences(one, many)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*FAMILIES, "units=trajectory", "reward model", "algo=tbrm", "algo=sft", "padded"])
def test_two_ranks_give_the_numbers_of_one_process(words, kind):
    found = gaps(words, kind)
    assert found["loss"] < 1e-5
    assert found["gradient norm"] < 1e-5
    assert found["evaluation"] < 1e-4
    assert found["weights"] < 1e-4  # of steps of up to 2e-3


def test_other_runs_differ(tmp_path):
    words = [*equality.COMMON, *equality.TREASURE, *equality.TINY, f"cache_dir={tmp_path / 'cache'}"]
    one, other = (equality.run([*words, f"seed={seed}"], tmp_path / str(seed), ranks=1) for seed in (0, 1))
    assert min(equality.differences(one, other).values()) > 1e-3
    assert set(equality.differences(one, one).values()) == {0.0}


def test_a_run_that_fails_is_shown_and_has_no_differences(tmp_path, capsys):
    words = [*equality.COMMON, *equality.TREASURE, "algo.beta=-1"]
    assert equality.compare(words, tmp_path / "one", tmp_path / "many", 2) == {}
    assert "algo.beta" in capsys.readouterr().out
