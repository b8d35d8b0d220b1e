"""`shiqrun values` and the methods that read prompt values, through the real command line."""

import json
import math
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from shiqrun.cli import main
from shiqrun.data.program_language import parse, run
from shiqrun.util.lock import Lock
from tests.rewards.classifiers import save
from tests.support.command_line import checkpoint, command, finished, largest_difference, metrics, summary
from tests.support.places import working_in

DATA = (
    "data=programs",
    "data.val_problems=12",
    "data.base=5",
    "data.shown=4",  # so that hardly two problems have the same prompt
    "data.primitives=[reverse,sort,rotate,add]",
    "data.val_fraction=0.3",
)
FEW = (*DATA, "data.problems=40", "data.distinct=false")
ASKED = ("values.samples=6", "values.max_new_tokens=12", "values.batch_size=64")
STEPS = ("logger=none", "trainer.max_steps=4", "trainer.log_every=1", "trainer.batch_size=16", "eval.every=0")
PROMPTS = 40 + 12
ALGOS = ("spo", "spo_nonterminal", "spo_advantage")
BETA = 0.0868589


@pytest.fixture(scope="module")
def home(home):
    """A reference that solves some problems, another one of another seed, and the first one's values."""
    small = ("model.hidden_size=48", "model.num_layers=2", "logger=none", "eval.every=0")
    with working_in(home):
        for seed, steps in ((0, 120), (1, 1)):
            words = ("algo=sft", *DATA, "data.problems=400", "data.completions=best", f"seed={seed}")
            words = (*words, f"trainer.max_steps={steps}")
            assert main(["train", *words, *small, f"run_dir=reference{seed}"]) == 0
        assert values("run_dir=made") == 0
    return home


pytestmark = pytest.mark.usefixtures("at_home")


def model(seed=0):
    return "model=hf", f"model.path=reference{seed}/policy"


def values(*words):
    return main(["values", *FEW, *model(), "reward=programs", *ASKED, *words])


def train(*words, data=FEW, seed=0):
    return main(["train", *data, *model(seed), *STEPS, *words])


def read(path):
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def q0(rewards, beta=BETA):
    return beta * math.log(np.mean(np.exp(np.array(rewards) / beta)))


def text(completion):
    return completion[0]["content"]


def solves(row, completion):
    program = parse(text(completion))
    tests = row["answer"]["tests"]
    base = row["answer"]["base"]
    return program is not None and all(list(run(program, tuple(t["input"]), base)) == t["output"] for t in tests)


def test_every_prompt_has_its_rewards_and_its_value_and_the_completions_beside_it(home):
    header, *lines = read("made/values.jsonl")
    rows = read("made/trajectories.jsonl") + read("made/trajectories_val.jsonl")
    assert len(lines) == len(rows) == PROMPTS
    for line, row in zip(lines, rows, strict=True):
        assert line["prompt_id"] == row["prompt_id"]
        assert row["rewards"] == line["rewards"] == [float(solves(row, c)) - 1 for c in row["completions"]]
        assert len(line["rewards"]) == 6
        assert line["success_rate"] == pytest.approx(1 + np.mean(line["rewards"]))
        assert line["q0"] == pytest.approx(q0(line["rewards"]))
    told = summary(Path("made"))
    assert told["values/success_rate"] == pytest.approx(np.mean([line["success_rate"] for line in lines]))
    assert 0.05 < told["values/success_rate"] < 0.95, "a reference that solves some"
    assert told["values/q0_mean"] == pytest.approx(np.mean([line["q0"] for line in lines]))
    assert told["values/prompts_never_right"] == pytest.approx(np.mean([line["success_rate"] == 0 for line in lines]))
    assert (told["prompts"], told["prompts_computed"]) == (PROMPTS, PROMPTS)
    assert told["reference"] == header["reference"]


def test_the_second_time_and_for_other_prompts_only_what_is_new_is_sampled(home, capfd):
    assert values("run_dir=again") == 0
    assert "0 prompts computed now" in capfd.readouterr().out
    assert summary(Path("again"))["prompts_computed"] == 0
    for name in ("values.jsonl", "trajectories.jsonl", "trajectories_val.jsonl"):
        assert Path("again", name).read_bytes() == Path("made", name).read_bytes()
    assert values("run_dir=more", "data.problems=50") == 0
    assert summary(Path("more"))["prompts_computed"] == 10
    assert values("run_dir=fewer", "data.problems=20") == 0
    assert summary(Path("fewer"))["prompts_computed"] == 0
    whole = {line["prompt_id"]: line for line in read("made/values.jsonl")[1:]}
    fewer = read("fewer/values.jsonl")[1:]
    assert len(fewer) == 20 + 12
    assert all(whole[line["prompt_id"]] == line for line in fewer)


@pytest.mark.parametrize("change", ["values.seed=1", "values.samples=5", "values.max_new_tokens=11", "reward.wrong=-2"])
def test_values_that_were_made_otherwise_are_not_taken_for_these(home, change):
    name = f"other_{change.partition('=')[0]}"
    assert values(f"run_dir={name}", change) == 0
    assert summary(Path(name))["prompts_computed"] == PROMPTS


def jsonl(name, rows):
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return "data=jsonl", f"data.path={name}", "data.val_fraction=0"


def test_equal_prompt_ids_of_two_data_sets_are_not_mixed_up(home):
    """Ids like 0, 1, 2 are in many files; also an answer that is judged otherwise makes another value."""
    asked = {"a": ("1 2", "sort"), "b": ("3 3", "sort"), "c": ("3 3", "reverse")}
    for name, (prompt, answer) in asked.items():
        rows = [{"prompt": prompt, "completion": "sort", "reward": 0, "answer": answer, "prompt_id": 0}]
        words = ("values", *jsonl(f"{name}.jsonl", rows), *model(), "reward=exact_match", "values.samples=40")
        assert main([*words, "values.max_new_tokens=2", f"run_dir=ids_{name}"]) == 0
        assert summary(Path(f"ids_{name}"))["prompts_computed"] == 1
        (row,) = read(f"ids_{name}/trajectories.jsonl")
        assert row["prompt"][0]["content"] == prompt
        assert row["rewards"] == [float(text(c) == answer) for c in row["completions"]]


def test_of_one_completion_there_is_no_standard_error(home):
    assert values("run_dir=single", "values.samples=1") == 0
    assert "q0" in read("single/values.jsonl")[1]
    assert not any("q0_error" in line for line in read("single/values.jsonl"))
    assert "NaN" not in Path("single/summary.json").read_text()


def test_a_reward_model_has_values_without_right_and_wrong(home, capfd):
    folder = save(Path("rm"))
    assert main(["values", *FEW, *model(), f"reward=./{folder}", *ASKED, "run_dir=scored", "beta=2"]) == 0
    lines = read("scored/values.jsonl")[1:]
    assert not any("success_rate" in line for line in lines)
    assert len({reward for line in lines for reward in line["rewards"]}) > 5
    for line in lines:
        assert line["q0"] == pytest.approx(q0(line["rewards"], 2.0))
    out = capfd.readouterr().out
    assert "reward, largest" in out
    assert "solved" not in out


# rows are kept after 4096 completions, those of 512 prompts
MANY = ("values", *DATA, "data.problems=700", *model(), "reward=programs", *ASKED[1:], "values.samples=8")


@pytest.mark.slow
def test_a_killed_run_goes_on_and_samples_nothing_again(home):
    process = command(*MANY, "run_dir=killed", "cache_dir=cache_killed")
    end, kept = time.monotonic() + 120, Path("cache_killed/values")
    while time.monotonic() < end and process.poll() is None and not _rows(kept):
        time.sleep(0.01)
    process.kill()
    _, out = finished(process)
    assert process.returncode == -9, out
    left = _rows(kept)
    assert left > 0
    assert not Path("killed/values.jsonl").exists()
    assert main(["values", "resume=killed"]) == 0
    told = summary(Path("killed"))
    assert told["prompts"] > 600 > left
    assert told["prompts_computed"] == told["prompts"] - left
    assert main([*MANY, "run_dir=whole", "cache_dir=cache_whole"]) == 0
    for name in ("values.jsonl", "trajectories.jsonl", "trajectories_val.jsonl"):
        assert Path("whole", name).read_bytes() == Path("killed", name).read_bytes()


def _rows(kept):
    """Whole rows behind the header."""
    return max((file.read_bytes().count(b"\n") - 1 for file in kept.glob("*.jsonl")), default=0)


def test_a_second_process_waits_for_the_first_and_says_so(home):
    """The test stands for the first: it holds the lock of a file that was begun."""
    assert values("run_dir=begun", "data.problems=20", "cache_dir=cache_lock") == 0
    (file,) = Path("cache_lock/values").glob("*.jsonl")
    before = file.read_bytes()
    with Lock(Path(f"{file}.lock")):
        words = ("values", *FEW, *model(), "reward=programs", *ASKED, "run_dir=waited", "cache_dir=cache_lock")
        process = command(*words)
        assert any("waiting for it" in line for line in process.stdout)
        assert file.read_bytes() == before
    code, out = finished(process)
    assert code == 0, out
    assert summary(Path("waited"))["prompts_computed"] == 20
    assert Path("waited/values.jsonl").read_bytes() == Path("made/values.jsonl").read_bytes()


@pytest.mark.parametrize("algo", ALGOS)
def test_every_method_trains_and_starts_at_the_reference_with_the_files_values(home, algo):
    words = ("algo.values=made/values.jsonl", f"algo={algo}", "trainer.batch_size=160")
    assert train(*words, f"run_dir=given_{algo}") == 0
    rows = [r for r in metrics(home / f"given_{algo}") if "train/loss" in r]
    known = {line["prompt_id"]: line["q0"] for line in read("made/values.jsonl")[1:]}
    trained = [known[r["prompt_id"]] for r in read("made/trajectories.jsonl")[:40]]  # 4 logged programs of each
    assert rows[0]["train/prompt_value"] == pytest.approx(np.mean(trained), rel=1e-5)
    assert rows[0]["train/logratio_mean"] == pytest.approx(0, abs=1e-6)
    assert rows[0]["train/q_gap_mean"] == pytest.approx(np.mean(trained) + 0.5, abs=1e-4), "half are right: r = -1/2"
    assert all(math.isfinite(r["train/loss"]) for r in rows)
    assert rows[-1]["train/loss"] < rows[0]["train/loss"]
    assert summary(home / f"given_{algo}")["values/prompts_computed"] == 0


@pytest.mark.parametrize("link", ["square", "cross_entropy"])
def test_both_links_train(home, link):
    assert train("algo=spo", f"algo.link={link}", "algo.values=made/values.jsonl", f"run_dir=link_{link}") == 0
    assert all(math.isfinite(r["train/loss"]) for r in metrics(home / f"link_{link}") if "train/loss" in r)


def test_beta_may_change_with_the_same_file(home):
    words = ("algo=spo", "algo.values=made/values.jsonl", "trainer.batch_size=160", "algo.beta=0.5")
    assert train(*words, "run_dir=beta") == 0
    known = {line["prompt_id"]: q0(line["rewards"], 0.5) for line in read("made/values.jsonl")[1:]}
    expected = np.mean([known[r["prompt_id"]] for r in read("made/trajectories.jsonl")[:40]])
    assert metrics(home / "beta")[0]["train/prompt_value"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("algo", ALGOS)
def test_a_step_does_not_depend_on_how_it_is_cut(home, algo):
    for tokens in (10_000, 80):
        words = (f"algo={algo}", "algo.values=made/values.jsonl", f"trainer.micro_batch_tokens={tokens}")
        assert train(*words, f"run_dir=cut_{algo}{tokens}") == 0
    assert largest_difference(home / f"cut_{algo}10000", home / f"cut_{algo}80") < 5e-5


def test_a_file_that_may_not_be_written_is_read(home):
    shutil.copy("made/values.jsonl", "locked.jsonl")
    Path("locked.jsonl").write_bytes(Path("locked.jsonl").read_bytes() + b'{"torn": ')
    Path("locked.jsonl").chmod(0o444)
    before = Path("locked.jsonl").read_bytes()
    assert train("algo=spo", "algo.values=locked.jsonl", "run_dir=locked") == 0
    assert Path("locked.jsonl").read_bytes() == before, "it is the user's"


def test_values_are_made_first_once_and_are_those_of_the_command(home, capfd):
    words = ("algo=spo", "eval.reward=programs", *ASKED, "cache_dir=cache_first")
    assert train(*words, "run_dir=first") == 0
    assert summary(home / "first")["values/prompts_computed"] == PROMPTS
    assert train(*words, "run_dir=second") == 0
    assert summary(home / "second")["values/prompts_computed"] == 0
    assert train("algo=spo", "algo.values=made/values.jsonl", "run_dir=by_file") == 0
    for other in ("second", "by_file"):
        assert largest_difference(home / "first", home / other) == 0, "sampling moves no other random number"
    assert checkpoint(home / "first")["global_step"] == 4


def test_the_completions_are_a_data_set_of_their_own_whose_values_are_known(home, capfd):
    own = ("data=jsonl", "data.path=made/trajectories.jsonl", "data.val_path=made/trajectories_val.jsonl")
    assert main(["inspect", *own, *model()]) == 0
    told = capfd.readouterr().out
    assert "->" in told
    words = ("algo=spo", "algo.values=made/values.jsonl", "eval.reward=programs", "eval.every=4")
    assert train(*words, "eval.max_new_tokens=12", "run_dir=own", data=own) == 0
    found = summary(home / "own")
    for split, name in (("train", "trajectories"), ("val", "trajectories_val")):
        rows = read(f"made/{name}.jsonl")
        assert found[f"trajectories/{split}"] == sum(len(row["completions"]) for row in rows)
        assert all(len(row["completion_ids"]) == len(row["ended"]) == len(row["completions"]) for row in rows)
    assert {"val/pass@1", "val/regularised_return"} <= set(found)


def refused(capfd, *words, **options):
    capfd.readouterr()
    assert train(*words, "run_dir=refused", **options) == 2
    assert not Path("refused").exists()
    return capfd.readouterr().err


def test_a_run_does_not_go_on_with_other_values_than_it_began_with(home, capfd):
    shutil.copy("made/values.jsonl", "mine.jsonl")
    assert train("algo=spo", "algo.values=mine.jsonl", "run_dir=going_on") == 0
    Path("going_on/summary.json").unlink()
    assert values("run_dir=others", "values.seed=3") == 0
    shutil.copy("others/values.jsonl", "mine.jsonl")
    capfd.readouterr()
    assert main(["train", "resume=going_on"]) == 2
    assert "was made with another values" in " ".join(capfd.readouterr().err.split())
    shutil.copy("made/values.jsonl", "mine.jsonl")
    assert main(["train", "resume=going_on"]) == 0


def test_values_of_another_reference_or_reward_are_refused_by_name(home, capfd):
    file = "algo.values=made/values.jsonl"
    there, here = summary(Path("made"))["reference"], summary(Path("reference1"))["fingerprint/policy"]
    message = refused(capfd, "algo=spo", file, seed=1)
    assert f"reference {there} there, {here} here" in message
    assert "shiqrun values" in message
    message = refused(capfd, "algo=spo", file, "eval.reward=programs", "eval.reward.right=1", "eval.reward.wrong=0")
    assert "reward programs right=0.0 wrong=-1.0 there, programs right=1" in message
    assert "reference" not in message.partition("Values")[0].partition("otherwise")[2].partition(". ")[0]


def test_a_changed_reward_is_refused_by_its_line_and_an_old_file_is_read_with_a_word(home, capfd):
    lines = Path("made/values.jsonl").read_text().splitlines(keepends=True)
    changed = [*lines[:3], lines[3].replace('"rewards": [', '"rewards": [-0.5, ', 1), *lines[4:]]
    Path("changed.jsonl").write_text("".join(changed))
    message = refused(capfd, "algo=spo", "algo.values=changed.jsonl")
    assert message.count("\n") == 1
    assert "changed.jsonl:4: a changed line" in message
    rows = [{k: v for k, v in json.loads(line).items() if k != "line_digest"} for line in lines]
    Path("old.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert train("algo=spo", "algo.values=old.jsonl", "run_dir=by_old_file") == 0
    captured = capfd.readouterr()
    assert (captured.out + captured.err).count("wrote it without hashes") == 1


def test_prompts_without_a_value_are_counted_and_the_first_is_named(home, capfd):
    more = tuple(word.replace("=40", "=45") for word in FEW)
    message = refused(capfd, "algo=spo", "algo.values=made/values.jsonl", data=more)
    assert "20 of 180 trajectories have a prompt without value, first programs:train:40 " in message


def test_what_is_missing_or_does_not_fit_is_said(home, capfd):
    assert "algo=spo needs what the reference earns on every prompt: give algo.values=FILE" in refused(
        capfd, "algo=spo"
    )
    assert "nowhere.jsonl: cannot be read" in refused(capfd, "algo=spo", "algo.values=nowhere.jsonl")
    wrong = refused(capfd, "algo=spo", "algo.values=made/trajectories.jsonl")
    assert "trajectories.jsonl: no file of prompt values" in wrong
    offset = refused(capfd, "algo=spo", "algo.values=made/values.jsonl", "algo.reward_offset=mean")
    assert "algo.reward_offset=mean" in offset
    long = refused(capfd, "algo=spo", "eval.reward=programs", "values.max_new_tokens=1000")
    assert "values.max_new_tokens=1000 in the model's context" in long
    lines = Path("made/values.jsonl").read_text().splitlines()
    for number, broken in ((3, "{"), (4, json.dumps({"prompt_id": "x", "rewards": ["much"]}))):
        Path("broken.jsonl").write_text("\n".join([*lines[: number - 1], broken, *lines[number:]]) + "\n")
        assert f"broken.jsonl:{number}: " in refused(capfd, "algo=spo", "algo.values=broken.jsonl")


def test_the_command_needs_a_reward_and_prompts_that_leave_room(home, capfd):
    def said(*words):
        capfd.readouterr()
        assert main(["values", *FEW, *model(), *words, "run_dir=refused"]) == 2
        assert not Path("refused").exists()
        return capfd.readouterr().err

    assert "give reward=NAME or reward=DIR" in said()
    assert "values.samples" in said("reward=programs", "values.samples=0")
    assert "leaves no room" in said("reward=programs", "values.max_new_tokens=511")
    assert "no prompt to value: 52 longer than data.max_length=2" in said("reward=programs", "data.max_length=2")
    Path("empty.jsonl").write_text("")
    assert main(["values", "data=jsonl", "data.path=empty.jsonl", *model(), "reward=programs", "run_dir=empty"]) == 2


def test_dialogues_with_functions_have_no_prompt_values(home, capfd):
    pytest.importorskip("bfcl_eval", reason="data=bfcl needs bfcl-eval, which the README says how to install")
    assert main(["values", "data=bfcl", "reward=exact_match", "run_dir=refused"]) == 2
    assert "an environment answers the policy, and what an episode earns" in capfd.readouterr().err


def test_long_prompts_are_left_out_as_training_leaves_out_their_trajectories(home, capfd):
    lengths = sorted(len(row["prompt"][0]["content"].split()) for row in read("made/trajectories.jsonl"))
    limit = lengths[len(lengths) // 2] + 3
    assert values("run_dir=short", f"data.max_length={limit}") == 0
    assert f"longer than data.max_length={limit}" in capfd.readouterr().out
    assert 0 < summary(Path("short"))["prompts"] < PROMPTS
    words = ("algo=spo", "algo.values=short/values.jsonl", f"data.max_length={limit}")
    assert train(*words, "run_dir=short_trained") == 0


def test_a_prompt_that_the_model_cannot_read_is_left_out(home, capfd):
    rows = [{"prompt": " ".join("1" * n), "completion": "sort", "reward": 0, "answer": 1} for n in (3, 600)]
    jsonl("long.jsonl", rows)
    words = ("data=jsonl", "data.path=long.jsonl", "data.val_fraction=0", *model(), "reward=exact_match")
    assert main(["values", *words, *ASKED, "run_dir=readable"]) == 0
    assert "left out: 1 longer than the model's context=512" in capfd.readouterr().out
    assert summary(Path("readable"))["prompts"] == 1


def test_a_dry_run_counts_and_writes_nothing(home, capfd):
    assert values("dry_run=true", "run_dir=dry", "cache_dir=cache_dry") == 0
    assert f"{PROMPTS} prompts, 6 completions each" in capfd.readouterr().out
    assert not Path("dry").exists()
    assert not Path("cache_dry").exists()
