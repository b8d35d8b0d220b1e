"""The study of text games: what chooses a setting, what its tables say, and the play that is written down."""

import csv
import importlib.util
import json
from argparse import Namespace

import numpy as np
import pytest

from experiments import chains
from experiments.textgames import Setting, Study, all_arms, main
from experiments.textgames_figures import Arm, Played, draw, plus_minus, read_episodes, tables
from shiqrun.errors import InputError

played = pytest.mark.skipif(
    importlib.util.find_spec("textworld_express") is None,
    reason="needs the extra `games`: pip install 'shiqrun[games]'",
)


def study(out, **changed):
    options = {"rates": "1e-3,2e-3", "betas": "0.1,1", "logger": "none", "steps": 2, "sft_steps": 2}
    options |= {"seeds": "1,2", "one_reference": False}
    sizes = {"games": 2, "val_games": 2, "test_games": 3}
    return Study("simonsays", Namespace(out=out, **(options | sizes | changed)))


def write_evaluation(folder, reward, rows=()):
    folder.mkdir(parents=True)
    (folder / "eval.json").write_text(json.dumps({"eval/reward": reward}), encoding="utf-8")
    (folder / "episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_the_setting_with_the_largest_return_in_validation_games_is_chosen(tmp_path):
    own = study(tmp_path)
    returns = {("1e-3", "0.1"): 0.2, ("1e-3", "1"): 0.4, ("2e-3", "0.1"): 0.3, ("2e-3", "1"): -0.1}
    for setting, reward in returns.items():
        run = own.trained("copg", Setting(*setting), 1)[1]
        write_evaluation(own.played(run, "val")[1], reward)
        write_evaluation(own.played(run, "test")[1], -reward)
    assert own.chosen("copg", 1) == ("1e-3", "1")
    assert own.grid("sft best") == [("1e-3", "none"), ("2e-3", "none")], "sft has no beta"


def test_every_arm_has_its_own_file_of_rewards_and_directory(tmp_path):
    own, setting = study(tmp_path), Setting("1e-3", "0.1")
    made = {arm: own.trained(arm, setting, 3) for arm in all_arms()}
    assert len({folder for _, folder in made.values()}) == len(made) == 15
    for arm, (words, _) in made.items():
        name = arm.partition(", ")[2] or "final"
        assert f"data.path={tmp_path}/simonsays/logged/{name}.jsonl" in words
        assert f"algo={arm.partition(', ')[0].split()[0]}" in words


def test_seeds_may_share_a_reference(tmp_path):
    each, one = study(tmp_path), study(tmp_path, one_reference=True)
    assert [each.reference(seed)[1].name for seed in (1, 2)] == ["reference_1", "reference_2"]
    assert one.reference(2) == each.reference(1)
    setting = Setting("1e-3", "0.1")
    assert f"model.path={tmp_path}/simonsays/reference_1/policy" in one.trained("copg", setting, 2)[0]


def row(game, rewards, log_ratio=None):
    return {"id": game, "rewards": rewards, "won": sum(rewards) == 1, "log_ratio": log_ratio}


def test_played_games_are_read_in_the_order_of_their_names(tmp_path):
    write_evaluation(tmp_path / "a", 0, [row("coin-2", [0, 1], 3.0), row("coin-1", [0.25, 0.5])])
    found = read_episodes(tmp_path / "a")
    assert found.games == ("coin-1", "coin-2")
    assert (found.returns.tolist(), found.won.tolist()) == ([0.75, 1.0], [0.0, 1.0])
    assert found.log_ratio[1] == 3
    assert np.isnan(found.log_ratio[0])
    write_evaluation(tmp_path / "b", 0)
    with pytest.raises(InputError, match="no played games"):
        read_episodes(tmp_path / "b")


def arm(*seeds):
    games = ("coin-1", "coin-2", "coin-3", "coin-4")
    return Arm("1e-3, 0.1", [Played(games, np.array(s), np.array(s) == 1, np.zeros(4)) for s in seeds])


FOUND = {
    "reference": arm([0.0, 0, 0, 0], [0.0, 0, 0, 0], [0.0, 0, 0, 0]),
    "shiq, step": arm([1.0, 0.5, 1, 0], [1.0, 0.5, 1, 0.25], [1.0, 0.5, 1, 0.5]),
    "shiq, final": arm([0.5, 0.5, 1, 0], [0.5, 0.5, 1, 0.25], [0.5, 0.5, 1, 0.5]),
    "copg": arm([0.0, 0, 0, 0], [0.0, 0, 0, 0], [0.0, 0, 0, 0]),
}


def test_differences_are_of_the_same_seed_and_game(tmp_path):
    shown = [table.title for table in tables(FOUND, "coin", tmp_path)]
    assert shown == ["coin: test games", "coin: seed by seed and game by game"]
    with (tmp_path / "differences.csv").open(newline="") as file:
        rows = {row["difference of returns"]: row for row in csv.DictReader(file)}
    dense = rows["shiq: step - final"]
    assert dense["all"].startswith("0.125 ± "), "0.5 in one game of four"
    assert dense["by seed"] == "+0.125 +0.125 +0.125"
    assert rows["copg - shiq, step"]["all"].startswith("-0.688 ± ")
    with (tmp_path / "arms.csv").open(newline="") as file:
        assert [row["return"].split()[0] for row in csv.DictReader(file)] == ["0.000", "0.688", "0.562", "0.000"]


def test_an_interval_covers_seeds_and_games():
    same_games, same_seeds = np.array([[0.0, 0], [1, 1], [2, 2]]), np.array([[0.0, 1, 2]] * 3)
    assert plus_minus(same_games) == "1.000 ± 2.484", "t(2) * 1 / sqrt(3): seeds alone"
    assert plus_minus(same_seeds) == "1.000 ± 2.484", "games alone"


def test_the_picture_is_drawn(tmp_path):
    draw({"coin": FOUND, "sorting": {name: FOUND[name] for name in ("reference", "copg")}}, tmp_path / "games.png")
    assert (tmp_path / "games.png").read_bytes()[:4] == b"\x89PNG"


def test_an_unknown_arm_is_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--arms", "shiq"])
    assert ended.value.code == 2
    assert "--arms shiq: not among shiq, step; shiq, final" in capsys.readouterr().err


@played
def test_both_files_hold_the_same_play_and_the_reference_has_games_of_its_own(tmp_path):
    own = study(tmp_path)
    own.record()
    files = {name: own.logged(name) for name in ("step", "final", "reference")}
    rows = {name: [json.loads(line) for line in file.read_text().splitlines()] for name, file in files.items()}
    for a, b in zip(rows["step"], rows["final"], strict=True):
        assert (a["prompt"], a["completions"]) == (b["prompt"], b["completions"])
        assert [sum(r) for r in b["rewards"]] == pytest.approx([sum(r) for r in a["rewards"]])
        assert not any(any(r[:-1]) for r in b["rewards"])
        assert sum(a["rewards"][0]) == pytest.approx(1), "gold play wins"
    assert not {r["prompt_id"] for r in rows["step"]} & {r["prompt_id"] for r in rows["reference"]}
    before = files["step"].stat().st_mtime_ns
    own.record()
    assert files["step"].stat().st_mtime_ns == before


@played
@pytest.mark.slow
def test_the_study_runs_and_does_no_job_twice(tmp_path, monkeypatch, capsys):
    words = ["--out", str(tmp_path), "--games", "8", "--val-games", "1", "--test-games", "2", "--jobs", "1"]
    words += ["--steps", "1", "--sft-steps", "1", "--rates", "1e-3", "--betas", "0.1", "--seeds", "1,2"]
    words += ["--arms", "shiq, step; shiq, final", "--kinds", "simonsays"]
    main(words)
    assert {path.name for path in tmp_path.iterdir()} == {"simonsays", "textgames.png"}
    own = tmp_path / "simonsays"
    assert {"arms.csv", "differences.csv"} <= {path.name for path in own.iterdir()}
    assert (own / "shiq_final_1e-3_0.1_2" / "test" / "eval.json").is_file()
    assert not (own / "shiq_final_1e-3_0.1_2" / "val").exists(), "the first seed alone chooses"
    capsys.readouterr()
    monkeypatch.setattr(chains, "shiqrun", lambda words: pytest.fail(f"{words} ran again"))
    main(words)
    assert "shiq: step - final" in " ".join(capsys.readouterr().out.split())
