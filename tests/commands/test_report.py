import subprocess
import sys

import pytest

from shiqrun.cli import main
from tests.report import fake_runs


def test_it_prints_where_the_page_is(tmp_path, capsys):
    run = fake_runs.finished_run(tmp_path / "r")
    assert main(["report", str(run), "--figures", "svg"]) == 0
    assert capsys.readouterr().out.endswith(f"\n{run / 'report.html'}\nnext: open it in a browser\n")
    assert (run / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_several_directories_go_into_one_page(tmp_path, capsys):
    first, second = fake_runs.finished_run(tmp_path / "a"), fake_runs.finished_run(tmp_path / "b", "dpo")
    assert main(["report", str(first), str(second), "--out", str(tmp_path / "both.html")]) == 0
    text = (tmp_path / "both.html").read_text(encoding="utf-8")
    assert "<title>shiq, dpo on hh</title>" in text
    assert (tmp_path / "both" / "runs.csv").is_file()


def test_help_names_what_to_give(capsys):
    assert main(["report", "--help"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("usage: shiqrun report")
    assert "--out FILE" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "the following arguments are required: DIR"),
        (["{tmp}"], "no run in it or below"),
        (["{tmp}/nowhere"], "no such directory"),
        (["{tmp}", "--oot=x"], "unrecognized arguments: --oot=x"),
        (["{tmp}/r", "--out={tmp}"], "give a file such as report.html"),
        (["{tmp}/r", "--out={tmp}/r/summary.json/page.html"], "cannot be written"),
    ],
)
def test_input_that_cannot_work_is_an_error(tmp_path, capsys, words, said):
    if any("/r" in word for word in words):
        fake_runs.finished_run(tmp_path / "r")
    assert main(["report", *(word.format(tmp=tmp_path) for word in words)]) == 2
    met = capsys.readouterr().err
    assert "error: " in met
    assert said in met
    assert "Traceback" not in met


def test_neither_help_nor_a_page_imports_torch(tmp_path):
    run = fake_runs.finished_run(tmp_path / "r")
    code = (
        "import sys; from shiqrun.cli import main\n"
        "assert main(['report', '--help']) == 0\n"
        "heavy = {'torch', 'transformers', 'lightning', 'matplotlib', 'pyarrow', 'jinja2'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        f"assert main(['report', {str(run)!r}]) == 0\n"
        "heavy = {'torch', 'transformers', 'lightning', 'hydra'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
