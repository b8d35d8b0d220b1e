"""The files beside the report's page, as a paper, a spreadsheet and a script read them."""

import csv
import re

import pytest
from PIL import Image

from shiqrun import console
from shiqrun.cli import main
from shiqrun.report.latex_files import latex_text
from shiqrun.report.run_report import write_report
from shiqrun.sweeping.outcome import conclude
from shiqrun.sweeping.state import Job, Sweep
from tests.report import fake_runs
from tests.report.page_reader import Reader

LIMITS = {"shiq": 100, "dpo": 200}
ODD = "50 % of_β & {x} #1 ~ ^ \\ $"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small sweep with its tables and its report, in all formats."""
    home, jobs = tmp_path_factory.mktemp("sweep"), []
    for method, beta in (("shiq", 0.03), ("shiq", 0.3), ("dpo", 0.1)):
        for seed in fake_runs.SEEDS if method == "shiq" else (1, 2):
            swept = {"algo": method, "algo.beta": str(beta), "seed": str(seed)}
            jobs.append(Job(len(jobs), str(len(jobs)), [], swept, status="finished"))
            run = fake_runs.finished_run(home / jobs[-1].dir, method, beta, seed, data__limit=LIMITS[method])
            if method == "dpo":
                lines = (run / "summary.json").read_text(encoding="utf-8")
                dropped = '"dropped/longer than max_length (256 tokens)": 9, '
                (run / "summary.json").write_text(lines.replace("{", "{" + dropped, 1), encoding="utf-8")
    sweep = Sweep(home, "train", [], "/", ["algo", "algo.beta", "seed"], jobs)
    sweep.save()
    conclude(sweep)
    write_report([home])
    return home


def header(path):
    with path.open(encoding="utf-8", newline="") as file:
        return next(csv.reader(file))


@pytest.mark.slow
def test_a_png_has_300_pixels_an_inch(folder):
    for path in (folder / "report" / "figures").glob("*.png"):
        with Image.open(path) as image:
            assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)
            assert image.width >= 3.7 * 300 - 1


@pytest.mark.slow
def test_a_pdf_holds_outlines_that_journals_accept(folder):
    for path in (folder / "report" / "figures").glob("*.pdf"):
        text = path.read_bytes()
        assert text.startswith(b"%PDF-")
        assert b"/Type3" not in text
        assert b"TrueType" in text or b"CIDFontType2" in text


def test_every_figure_has_all_formats_and_the_page_leads_to_them(folder):
    names = {path.name for path in (folder / "report" / "figures").iterdir()}
    assert len(names) == 3 * len({name.rpartition(".")[0] for name in names})
    page = Reader((folder / "report.html").read_text(encoding="utf-8"))
    assert {link.rpartition("/")[2] for link in page.links if "/figures/" in link} == names


def test_columns_have_one_name_in_all_tables(folder):
    tables = {name: header(folder / name) for name in ("sweep.csv", "best.csv")}
    tables |= {name: header(folder / "report" / name) for name in ("methods.csv", "runs.csv", "curves.csv")}
    assert all("algo.beta" in names for names in tables.values())
    for name in ("best.csv", "methods.csv"):
        assert {"val/reward", "val/reward_ci95_over_seeds"} <= set(tables[name])
    settings = {"seed", "data.limit", "algo.beta"}
    assert settings <= set(tables["runs.csv"])
    assert {"dir", "status", "seed"} <= set(tables["runs.csv"]) & set(tables["sweep.csv"])
    for names in tables.values():
        assert len(set(names)) == len(names)
        assert [name for name in names if not re.fullmatch(r"[\w./@-]+", name)] == []
    assert "dropped/longer_than_max_length_256_tokens" in tables["runs.csv"]
    shared = [name for name in tables["runs.csv"] if name.startswith("val/") and "ci95" not in name]
    assert shared
    assert set(shared) <= set(tables["methods.csv"])


def test_two_seeds_have_an_empty_interval(folder):
    with (folder / "report" / "methods.csv").open(encoding="utf-8", newline="") as file:
        rows = {(row["method"], row["algo.beta"]): row["val/reward_ci95_over_seeds"] for row in csv.DictReader(file)}
    assert float(rows["shiq", "0.03"]) == pytest.approx(fake_runs.HALF_OF_REWARD)
    assert rows["dpo", "0.1"] == ""


def cells(path):
    """The rows of a LaTeX table as a compiler splits them: at & and \\\\ that no backslash is before."""
    text = "\n".join(line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("%"))
    begin, columns, body, end = re.fullmatch(
        r"(\\begin\{tabular\})\{(\w+)\}\n(.*)\n(\\end\{tabular\})\n?", text, flags=re.DOTALL
    ).groups()
    assert (begin, end) == (r"\begin{tabular}", r"\end{tabular}")
    rows = [line for line in body.split("\n") if not re.fullmatch(r"\\(top|mid|bottom)rule", line)]
    assert [line for line in body.split("\n") if line not in rows] == [r"\toprule", r"\midrule", r"\bottomrule"]
    assert all(line.endswith(r" \\") for line in rows)
    return columns, [re.split(r"(?<!\\) & ", line[:-3]) for line in rows]


def test_a_table_is_whole_latex(folder):
    for name in ("methods.tex", "best.tex"):
        columns, rows = cells(folder / "report" / name)
        assert rows[0][:3] == ["method", r"$\beta$", "seeds"]
        assert {len(row) for row in rows} == {len(columns)}
        for cell in (cell for row in rows for cell in row):
            plain = re.sub(r"\\[{}%&#_$]", "", cell)
            assert plain.count("{") == plain.count("}")
            assert plain.count("$") % 2 == 0
            assert not re.search(r"[%&#_~^]", re.sub(r"\$[^$]*\$", "", plain))


def test_a_table_has_the_numbers_of_the_page(tmp_path):
    """shiq at 0.03 over three seeds: reward 1.2, 4.302653 * .1 / sqrt(3) = .248; KL 20, .248 * 20 = 4.97."""
    for beta in (0.03, 1.0):
        for seed in fake_runs.SEEDS:
            fake_runs.finished_run(tmp_path / f"{beta}_{seed}", "shiq", beta, seed)
    write_report([tmp_path], formats=())
    _, rows = cells(tmp_path / "report" / "methods.tex")
    assert rows[1][:5] == [
        r"\textbf{shiq}",
        r"\textbf{0.03}",
        r"\textbf{3}",
        r"\textbf{1.20} $\pm$ 0.25",
        r"\textbf{20.0} $\pm$ 5.0",
    ]
    assert rows[2][:4] == ["shiq", "1", "3", r"0.40 $\pm$ 0.25"]
    assert list((tmp_path / "report" / "figures").iterdir()) == []


def test_text_is_shown_and_commands_nothing():
    shown = latex_text(ODD)
    assert shown == (r"50 \% of\_$\beta$ \& \{x\} \#1 \textasciitilde{} \textasciicircum{} \textbackslash{} \$")
    assert latex_text("a\nb\u4e2d") == "a b?"


def test_the_command_says_where_everything_is(tmp_path, capsys):
    run = fake_runs.finished_run(tmp_path / "r")
    assert main(["report", str(run), "--figures", "svg"]) == 0
    drawn = [path.name for path in (run / "report" / "figures").iterdir()]
    assert capsys.readouterr().out.splitlines()[-4:] == [
        f"figures: {run / 'report' / 'figures'} ({len(drawn)}, svg)",
        f"tables: {run / 'report'} (curves.csv, methods.csv, methods.tex, runs.csv)",
        str(run / "report.html"),
        "next: open it in a browser",
    ]
    assert {name.rpartition(".")[2] for name in drawn} == {"svg"}


def test_figures_that_take_long_are_announced(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(console, "PATIENCE_SECONDS", 0.0)
    assert main(["report", str(fake_runs.finished_run(tmp_path / "r")), "--figures", "svg"]) == 0
    assert "drawing the figures of the report ..." in capsys.readouterr().out.splitlines()


def test_an_unknown_format_is_an_error(tmp_path, capsys):
    assert main(["report", str(tmp_path), "--figures", "svg,jpeg"]) == 2
    assert "jpeg: no format of a figure; give some of png, pdf, svg" in capsys.readouterr().err


def test_a_single_run_gets_no_frontier_of_one_dot(tmp_path):
    run = fake_runs.finished_run(tmp_path / "r")
    page = Reader(write_report([run], formats=("svg",)).read_text(encoding="utf-8"))
    assert "shiq, β = 0.1: reward 1, KL 5.4 (1 seeds)" in page.text
    assert "One point is no frontier" in page.text
    assert not list((run / "report" / "figures").glob("frontier*"))


@pytest.mark.slow
def test_losses_of_different_methods_share_no_figure(folder):
    drawn = {path.stem for path in (folder / "report" / "figures").glob("curve_train_loss*")}
    assert drawn == {"curve_train_loss_shiq", "curve_train_loss_dpo"}
    text = (folder / "report" / "figures" / "curve_train_loss_dpo.svg").read_text(encoding="utf-8")
    assert ">dpo</text>" in text
    assert "shiq" not in re.sub(r"<metadata>.*</metadata>", "", text, flags=re.DOTALL)
