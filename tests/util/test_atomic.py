import pytest

from shiqrun.util.atomic import replace, replacing


def test_a_file_is_as_it_was_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")
    with replacing(path) as file:
        file.write("new\r\nä")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_bytes() == "new\r\nä".encode()
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_on_the_way_changes_nothing_and_leaves_nothing(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")
    with pytest.raises(TypeError), replacing(path) as file:
        file.writelines(["half", 2])
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_text_is_written_at_once(tmp_path):
    replace(tmp_path / "summary.json", "{}\n")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("summary.json", "{}\n")]
