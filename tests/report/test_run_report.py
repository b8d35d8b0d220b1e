import json
import math
import re
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet
import pytest

from shiqrun.errors import InputError
from shiqrun.report import completion_view, token_view
from shiqrun.report.html_page import json_for_script
from shiqrun.report.run_report import write_report
from shiqrun.sweeping.state import Job, Sweep
from tests.report import fake_runs
from tests.report.page_reader import Reader, table


def page_about(directories, out=None):
    """The page without files of figures but SVG, which are quickly made."""
    return write_report(directories, out, ("svg",))


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    folder = fake_runs.sweep(tmp_path_factory.mktemp("sweep"))
    page = write_report([folder])
    return SimpleNamespace(folder=folder, page=page, html=Reader(page.read_text(encoding="utf-8")))


def test_the_page_lies_in_the_first_directory_and_is_well_formed(reported):
    assert reported.page == reported.folder / "report.html"
    assert reported.html.open == []
    assert len(set(reported.html.ids)) == len(reported.html.ids)


def test_the_page_asks_for_nothing(reported):
    text = reported.page.read_text(encoding="utf-8")
    assert reported.html.fetched == []
    assert not re.search(r"@import|url\((?!#)", text)
    assert "default-src 'none'" in text


def test_every_link_leads_somewhere(reported):
    for link in reported.html.links:
        if link.startswith("#"):
            assert link[1:] in reported.html.ids
        else:
            assert (reported.folder / link).is_file()
    assert sum(link.endswith(".csv") for link in reported.html.links) == 3
    assert sum(link.endswith(".tex") for link in reported.html.links) == 2


def test_every_figure_is_there_in_three_formats_and_shows_something(reported):
    drawn = sorted(path.name for path in (reported.folder / "report" / "figures").iterdir())
    assert {"frontier.png", "frontier.svg", "curve_val_reward.pdf", "curve_val_kl_beta_0.3.png"} <= set(drawn)
    stems = [sorted(name[:-4] for name in drawn if name.endswith(ending)) for ending in (".png", ".pdf", ".svg")]
    assert stems[0] == stems[1] == stems[2]
    frontier = (reported.folder / "report" / "figures" / "frontier.svg").read_text()
    assert all(f">{name}</" in frontier for name in (*fake_runs.METHODS, "reference"))


def test_methods_have_their_means_and_intervals(reported):
    rows = {(row["method"], row["algo.beta"]): row for row in table(reported.folder / "report" / "methods.csv")}
    assert len(rows) == 12
    for method in fake_runs.METHODS:
        for place, beta in enumerate(fake_runs.BETAS):
            row = rows[method, str(beta)]
            assert row["seeds"] == "3"
            assert float(row["val/reward"]) == pytest.approx(fake_runs.REWARD[method][place])
            assert float(row["val/reward_ci95_over_seeds"]) == pytest.approx(fake_runs.HALF_OF_REWARD)
            assert float(row["val/kl"]) == pytest.approx(fake_runs.KL[method][place])
    assert [key for key, row in rows.items() if row["best"] == "1"] == [
        ("shiq", "0.03"),
        ("copg", "0.1"),
        ("dpo", "0.03"),
    ]


def test_the_table_on_the_page_has_the_same_numbers(reported):
    """shiq at 0.03: reward 1.2, 4.302653 * .1 / sqrt(3) = .248; KL 20, .248 * 20 = 4.97; 1.2 - .03 * 20 = .6."""
    row = next(row for row in reported.html.rows if row[:2] == ["shiq", "0.03"])
    assert row == ["shiq", "0.03", "3", "1.20 ± 0.25", "20.0 ± 5.0", "0.600 ± 0.099", "0.6 ± 0", "30 ± 0", "0.75 ± 0"]


def test_every_run_is_listed_with_how_it_ended(reported):
    rows = table(reported.folder / "report" / "runs.csv")
    assert len(rows) == 38
    assert [row["status"] for row in rows[-2:]] == ["failed", "waiting"]
    assert float(rows[0]["val/reward"]) == pytest.approx(1.1)
    assert "36_algo=dpo,algo.beta=1.0,seed=4 failed: the loss is not finite at step 7" in reported.html.text


def test_the_summary_says_what_was_run(reported):
    for fact in (
        "shiq, copg, dpo on hh",
        "36 finished1 failed, 1 waiting",
        "1 of 38 runs did not finish",
        "The sweep has not ended: 1 waiting.",
        "36 of 36 runs read them from the cache",
        "20.0% of the time",
        "18 min saved",  # 36 runs, 31 s to compute, 1 s to read
        "time of all runs60 min100 s a run",
        "aaaaaaaaaaaa",
        "shiqrun sweep algo=shiq,copg,dpo",
    ):
        assert fact in reported.html.text


def test_it_says_that_the_best_was_chosen_on_the_same_prompts(reported):
    assert "A method's best β has the highest mean final val/reward over seeds" in reported.html.text
    assert "not the best regularised return, which holds β itself" in reported.html.text
    assert "optimistic" in reported.html.text


def test_it_says_what_intervals_over_seeds_leave_out(reported):
    assert "the same validation prompts with the same evaluation seed (eval.seed)" in reported.html.text
    assert "val/reward_ci95 of each run, in runs.csv, is over its prompts" in reported.html.text
    assert table(reported.folder / "report" / "runs.csv")[0]["val/reward_ci95"] == "0.3"


def test_it_says_where_methods_trained_on_different_amounts(reported, tmp_path):
    assert "the same amount" not in reported.html.text
    for method, rows, steps in (("shiq", 1188, 38), ("copg", 1000, 32)):
        run = fake_runs.finished_run(tmp_path / method, method)
        values = json.loads((run / "summary.json").read_text()) | {"trajectories/train": rows, "steps": steps}
        values |= {"dropped/alone with its prompt (algo=copg compares)": 188} if method == "copg" else {}
        (run / "summary.json").write_text(json.dumps(values))
    said = Reader(page_about([tmp_path]).read_text(encoding="utf-8")).text
    assert (
        "Not all methods trained on the same amount (those that compare completions drop rows that are alone with "
        "their prompt): shiq on 1,188 trajectories in 38 steps; copg on 1,000 trajectories in 32 steps."
    ) in said


def test_runs_to_come_are_counted_and_broken_ones_named(tmp_path):
    statuses = ["finished", "interrupted", "running", *["waiting"] * 74]
    jobs = [Job(n, str(n), [], {"seed": str(n)}, status=status) for n, status in enumerate(statuses)]
    Sweep(tmp_path, "train", [], "/", [], jobs).save()
    fake_runs.finished_run(tmp_path / "0", seed=0)
    for number in (1, 2):
        rows = [{"step": 1, "train/loss": 1.0}]
        fake_runs.write_run(
            tmp_path / str(number), settings=fake_runs.config(seed=number), rows=rows, log="[x] told to stop\n"
        )
    page = Reader(page_about([tmp_path]).read_text(encoding="utf-8"))
    assert "1 of 77 runs did not finish" in page.text
    assert "The sweep has not ended: 1 running, 74 waiting." in page.text
    assert "1 of 1 runs read them from the cache" in page.text
    assert page.items[0] == "1 interrupted: [x] told to stop"
    assert not any("waiting" in item for item in page.items)


def test_a_long_list_of_broken_runs_is_folded(tmp_path):
    fake_runs.finished_run(tmp_path / "r", seed=0)
    for number in range(7):
        fake_runs.write_run(
            tmp_path / str(number), settings=fake_runs.config(seed=number), rows=[{"step": 1, "train/loss": 1.0}]
        )
    raw = page_about([tmp_path]).read_text(encoding="utf-8")
    assert "7 of 8 runs did not finish" in raw
    assert "<details><summary>the 7 runs and the last line of each log</summary><ul><li><b>0</b>" in raw


def test_configs_are_compared(reported):
    header = next(row for row in reported.html.rows if row[:2] == ["run", "status"])
    assert header[2:5] == ["seed", "algo.name", "algo.beta"]
    assert ["trainer.learning_rate", "0.001"] in reported.html.rows


def test_curves_are_in_a_table(reported):
    rows = [
        r for r in table(reported.folder / "report" / "curves.csv") if r["method"] == "copg" and r["algo.beta"] == "0.1"
    ]
    middle = next(r for r in rows if r["metric"] == "val/reward" and r["step"] == "50")
    assert float(middle["mean"]) == pytest.approx(0.1 + 1.05 / 2)
    assert middle["seeds"] == "3"


def test_a_sweep_carries_the_last_completions_of_each_methods_best_beta(reported):
    carried = reported.html.data["completions-data"]
    best = (("shiq", 0.03), ("copg", 0.1), ("dpo", 0.03))
    assert carried["runs"] == [f"{m} β={b} seed {s}" for m, b in best for s in fake_runs.SEEDS]
    assert len(carried["rows"]) == 9 * 4
    run, step, prompt, completion, reference, *rest = carried["rows"][0]
    assert (carried["runs"][run], step) == ("shiq β=0.03 seed 1", 100)
    texts = carried["texts"]
    assert (texts[prompt], texts[completion]) == (fake_runs.PROMPTS[0], "shiq 0.03 1 says 0")
    assert texts[reference] == "the reference says 0"
    assert rest == [1.21, 0.5, 1.5, 5, True]


def test_hostile_text_stays_text(reported):
    raw = reported.page.read_text(encoding="utf-8")
    assert fake_runs.HOSTILE in reported.html.data["completions-data"]["texts"]
    assert any(fake_runs.HOSTILE in row["tokens"] for row in reported.html.data["tokens-data"]["rows"])
    assert "window.hacked" in raw
    assert "<script>window.hacked" not in raw
    assert "<img" not in raw


def test_hostile_names_stay_text(tmp_path):
    log = f"{fake_runs.HOSTILE}\n"
    fake_runs.write_run(
        tmp_path / "0", settings=fake_runs.config(seed=2), rows=fake_runs.history(1.0, 1.0, 0.1), log=log
    )
    fake_runs.write_run(
        tmp_path / "2",
        settings=fake_runs.config(fake_runs.HOSTILE, data__name=fake_runs.HOSTILE),
        rows=fake_runs.history(1.0, 1.0, 0.1),
        summary={"val/reward": 1.0, "val/kl": 1.0, "git_commit": fake_runs.HOSTILE},
    )
    raw = page_about([tmp_path]).read_text(encoding="utf-8")
    assert Reader(raw).open == []
    assert "<img" not in raw
    assert "<script>window" not in raw


@pytest.mark.parametrize("text", ["</script>", "<!--", "]]>", "\u2028", "\ud800", "&lt;"])
def test_embedded_text_comes_back_and_closes_nothing(text):
    made_of_it = json_for_script({"a": text})
    assert json.loads(made_of_it)["a"] == text.encode("utf-8", "replace").decode()
    assert not set("<>&") & set(made_of_it)


def test_one_run_carries_all_its_steps(tmp_path):
    run = fake_runs.finished_run(tmp_path / "r")
    early = [row | {"step": 0} for row in fake_runs.samples("shiq", 0.1, 1)]
    fake_runs.write_lines(run / "samples.jsonl", [*early, *fake_runs.samples("shiq", 0.1, 1)])
    rows = Reader(page_about([run]).read_text(encoding="utf-8")).data["completions-data"]["rows"]
    assert [row[1] for row in rows] == [100] * 4 + [0] * 4


def test_a_cap_cuts_all_runs_alike_and_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(completion_view, "MOST_ROWS", 10)
    for seed in fake_runs.SEEDS:
        fake_runs.finished_run(tmp_path / str(seed), seed=seed)
    page = Reader(page_about([tmp_path]).read_text(encoding="utf-8"))
    rows = page.data["completions-data"]["rows"]
    assert [sum(row[0] == run for row in rows) for run in range(3)] == [4, 3, 3]
    assert "10 of 12 completions are here" in page.text


def test_a_cap_on_tokens_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(token_view, "MOST_TOKENS", 25)
    page = Reader(page_about([fake_runs.finished_run(tmp_path / "r")]).read_text(encoding="utf-8"))
    assert len(page.data["tokens-data"]["rows"]) == 2
    monkeypatch.setattr(token_view, "MOST_TOKENS", 15)
    page = Reader(page_about([tmp_path / "r"]).read_text(encoding="utf-8"))
    assert len(page.data["tokens-data"]["rows"]) == 1
    assert "1 of 2 trajectories are here" in page.text


def test_tokens_keep_their_numbers(reported):
    row = reported.html.data["tokens-data"]["rows"][0]
    assert row["advantage"] == [None] * 4 + [0.5, -0.25, 0.0, 0.1, 1.0, -1.0, 0.05]
    assert (row["kind"], row["return"], row["beta"], row["prompt_id"]) == ("data", 1.5, 0.1, "p0")


def test_lists_of_different_lengths_are_named(tmp_path):
    run = fake_runs.finished_run(tmp_path / "r")
    first, *rest = fake_runs.credit()
    fake_runs.write_lines(run / "credit.jsonl", [first, *(row | {"residual": [1.0]} for row in rest)])
    with pytest.raises(InputError, match=r"credit\.jsonl line 2: expected lists of one length"):
        page_about([run])


def test_a_broken_line_of_completions_is_named(tmp_path):
    run = fake_runs.finished_run(tmp_path / "r")
    (run / "samples.jsonl").write_text('{"step": 1, "completion": "a"}\nnonsense\n{"step": 2, "completion": "b"}\n')
    with pytest.raises(InputError, match=r"samples\.jsonl line 2: no JSON"):
        page_about([run])


def evaluated(run, **columns):
    """An evaluation under a run, as `shiqrun eval run=...` leaves it."""
    folder = run / "eval" / "2026-01-31_12-00-00"
    folder.mkdir(parents=True)
    found = {"eval/reward": 0.75, "eval/reward_ci95": 0.05, "eval/win_rate": 0.5}
    found |= {"eval/pass@1": 0.4, "eval/pass@1_ci95_low": 0.3125, "eval/pass@1_ci95_high": 0.55}
    (folder / "eval.json").write_text(json.dumps(found))
    row = {"prompt": "why?", "completion": "so", "token_ids": [4, 5], "ended": True, "reward": 1.0, "log_ratio": 2.0}
    row |= {"ref_completion": "because", "ref_reward": 0.5}
    pa.parquet.write_table(pa.Table.from_pylist([row | columns]), folder / "completions.parquet")
    return folder


def test_evaluations_of_a_run_are_shown(tmp_path):
    run = fake_runs.finished_run(tmp_path / "r")
    evaluated(run)
    page = Reader(page_about([run]).read_text(encoding="utf-8"))
    assert ["r", "2026-01-31_12-00-00", "0.750 ± 0.050", "0.5", "0.40 [0.31, 0.55]"] in page.rows
    carried = page.data["completions-data"]
    row = next(row for row in carried["rows"] if row[1] == "eval 2026-01-31_12-00-00")
    assert [carried["texts"][i] for i in row[2:5]] == ["why?", "so", "because"]
    assert row[5:] == [1.0, 0.5, 2.0, 2, True]


def test_a_broken_evaluation_is_named(tmp_path):
    run = fake_runs.finished_run(tmp_path / "r")
    (evaluated(run) / "completions.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"completions\.parquet: no Parquet"):
        page_about([run])


def test_a_run_without_completions_or_tokens_has_neither_section(tmp_path):
    run = fake_runs.write_run(tmp_path / "r", rows=fake_runs.history(1.0, 4.0, 0.1))
    page = Reader(page_about([run]).read_text(encoding="utf-8"))
    assert not {"completions", "tokens"} & set(page.ids)
    assert "No run has finished yet." in page.text
    assert "1 of 1 runs did not finish" in page.text


def test_a_run_without_reward_says_why_there_is_no_frontier(tmp_path):
    rows = [{"step": 1, "train/loss": 2.0}, {"step": 2, "train/loss": 1.0}]
    run = fake_runs.write_run(tmp_path / "r", rows=rows, summary={"train/loss": 1.0, "val/loss": 1.5})
    page = Reader(page_about([run]).read_text(encoding="utf-8"))
    assert "No finished run has val/reward and val/kl" in page.text
    assert not (run / "report" / "figures" / "frontier.svg").exists()


def test_one_seed_has_no_interval(tmp_path):
    run = fake_runs.finished_run(tmp_path / "r")
    page = Reader(page_about([run]).read_text(encoding="utf-8"))
    assert "none below three seeds" in page.text
    assert next(row for row in page.rows if row[0] == "shiq")[3] == "1"


def test_a_second_report_leaves_no_figure_of_the_first(tmp_path):
    run = fake_runs.finished_run(tmp_path / "r")
    old = run / "report" / "figures" / "curve_val_reward_beta_7.svg"
    old.parent.mkdir(parents=True)
    old.write_text("")
    page_about([run])
    assert not old.exists()


def test_another_place_gets_page_and_folder(tmp_path):
    run = fake_runs.finished_run(tmp_path / "r")
    page = page_about([run], tmp_path / "pages" / "mine.html")
    assert page == tmp_path / "pages" / "mine.html"
    assert (tmp_path / "pages" / "mine" / "methods.csv").is_file()
    assert not (run / "report.html").exists()


def test_the_same_runs_give_the_same_page(tmp_path):
    run = fake_runs.finished_run(tmp_path / "r")
    first = page_about([run]).read_bytes()
    assert page_about([run]).read_bytes() == first


def test_a_wide_range_of_kl_is_drawn_logarithmically(reported, tmp_path):
    assert "logarithmic beyond 0.2" in (reported.folder / "report" / "figures" / "frontier.svg").read_text()
    for beta in (0.03, 0.1):
        fake_runs.finished_run(tmp_path / f"{beta}", beta=beta)
    page_about([tmp_path])
    assert "logarithmic" not in (tmp_path / "report" / "figures" / "frontier.svg").read_text()


def test_points_of_the_frontier_say_what_they_are(reported):
    assert "copg, β = 0.1: reward 1.15 ± 0.25, KL 7.0 ± 1.7 (3 seeds)" in reported.html.text


def test_figures_of_losses_that_are_no_numbers_are_drawn(tmp_path):
    rows = [{"step": 1, "train/loss": math.inf}, {"step": 2, "train/loss": math.nan}, {"step": 2, "val/loss": -1.0}]
    page_about([fake_runs.write_run(tmp_path / "r", rows=rows, summary={"val/loss": -1.0})])
