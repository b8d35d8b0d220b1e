"""`shiqrun eval` from outside: the numbers of the run's own last evaluation, twice the same, and what it refuses."""

import json
import shutil

import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file, save_file

from shiqrun.batching.logged_data import is_held_out
from shiqrun.cli import main
from shiqrun.data.chats import as_messages, prompt_name
from tests.evaluation.runs import BETA, SETTINGS, at, make_base, samples, train, write_data
from tests.support.command_line import SMALL, checkpoint, metrics, summary
from tests.support.helpers import llama, tokenizer

SCORED = (*SETTINGS, "reward=exact_match")


@pytest.fixture(scope="module")
def home(home):
    make_base(home)
    return home


@pytest.fixture(scope="module")
def done(home):
    assert train(home, "done", "trainer.learning_rate=1e-2") == 0
    return home / "done"


pytestmark = pytest.mark.usefixtures("at_home")


def strictly(text):
    raise AssertionError(f"{text} is no JSON")


def read(folder):
    return json.loads((folder / "eval.json").read_text(), parse_constant=strictly)


def evaluate(home, name, *words):
    """What `shiqrun eval` found, in a directory of that name."""
    assert main(["eval", f"run_dir={home / name}", *words]) == 0
    return read(home / name)


def figures(found, prefix="eval/"):
    return {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}


def last(run_dir, names):
    """The run's own last numbers of these names."""
    return {name: summary(run_dir)[f"val/{name}"] for name in names}


@pytest.mark.parametrize("checkpoint", ["policy", "last"])
def test_a_run_is_measured_as_it_measured_itself_at_its_end(home, done, checkpoint):
    found = evaluate(home, f"again_{checkpoint}", f"run={done}", f"checkpoint={checkpoint}", *SCORED)
    mine = figures(found)
    assert {"reward", "kl", "regularised_return", "win_rate", "win_rate_ci95", "entropy", "pass@2"} <= set(mine)
    assert mine == pytest.approx(last(done, mine), abs=1e-6)
    assert found["beta"] == BETA
    assert found["fingerprint/policy"] == summary(done)["fingerprint/policy"]


def test_a_run_alone_is_measured_as_it_was_with_its_own_settings_and_reward(home, done):
    found = evaluate(home, "by_itself", f"run={done}")
    mine = figures(found)
    assert mine == pytest.approx(last(done, mine), abs=1e-6)
    assert found["settings/max_new_tokens"] == 6
    assert found["reward/name"] == "exact_match"
    other = evaluate(home, "smaller", f"run={done}", "eval.max_new_tokens=2", "eval.max_prompts=3")
    assert (other["settings/max_new_tokens"], other["eval/prompts"], other["settings/samples_per_prompt"]) == (2, 3, 2)


def test_its_completions_are_those_of_the_run(home, done):
    evaluate(home, "said", f"run={done}", *SCORED)
    rows = pq.read_table(home / "said" / "completions.parquet").to_pylist()
    final = [r for r in samples(done) if r["step"] == 7]
    assert [(r["prompt_id"], r["completion"], r["ref_completion"], r["reward"]) for r in rows] == [
        (r["prompt_id"], r["completion"], r["reference_completion"], r["reward"]) for r in final
    ]
    assert [r["log_ratio"] for r in rows] == pytest.approx([r["kl"] for r in final], abs=1e-6)
    assert (home / "said" / "completions.md").read_text().count("**policy**") == len(rows) == 16


def test_twice_the_same_command_gives_the_same_numbers_and_completions(home, done):
    first, second = (evaluate(home, name, f"run={done}", *SCORED) for name in ("first", "second"))
    assert {k: v for k, v in first.items() if k != "seconds"} == {k: v for k, v in second.items() if k != "seconds"}
    tables = [pq.read_table(home / name / "completions.parquet") for name in ("first", "second")]
    assert tables[0].equals(tables[1])


def test_another_seed_draws_other_answers_to_the_same_prompts(home):
    for name, seed in (("seed0", 0), ("seed1", 1)):
        evaluate(home, name, f"run={home / 'base'}", "data.val_fraction=0.3", *SCORED, f"eval.seed={seed}")
    a, b = (pq.read_table(home / n / "completions.parquet").to_pydict() for n in ("seed0", "seed1"))
    assert a["prompt_id"] == b["prompt_id"]
    assert a["completion"] != b["completion"]


def test_the_best_checkpoint_has_the_numbers_of_its_step(home):
    assert train(home, "hasty", "trainer.learning_rate=3e-2", "eval.every=1", "trainer.max_steps=5") == 0
    step = checkpoint(home / "hasty", "best")["global_step"]
    mine = figures(evaluate(home, "best", f"run={home / 'hasty'}", "checkpoint=best", *SCORED))
    (then,) = (figures(r, "val/") for r in metrics(home / "hasty") if r["step"] == step)
    assert mine == pytest.approx({name: then[name] for name in mine}, abs=1e-6)


def test_a_policy_without_a_run_is_measured_against_any_reference(home, done):
    words = ("model=hf", f"model.path={done}/policy", f"reference={home}/base/policy", f"eval.beta={BETA}")
    data = ("data=jsonl", f"data.path={home}/data.jsonl", "data.val_fraction=0.3")
    mine = figures(evaluate(home, "paths", *words, *data, *SCORED))
    assert mine == pytest.approx(last(done, mine), abs=1e-6)
    alone = figures(evaluate(home, "alone", *words[:2], *data, *SCORED))
    assert alone["reward"] == mine["reward"]
    assert not {"kl", "win_rate", "regularised_return"} & set(alone)


def test_the_results_of_a_run_go_into_its_directory(done):
    assert main(["eval", f"run={done}", *SCORED, "eval.max_prompts=1"]) == 0
    (folder,) = (done / "eval").iterdir()
    assert {p.name for p in folder.iterdir()} >= {"eval.json", "completions.parquet", "completions.md"}
    found = read(folder)
    assert found["eval/reward_ci95"] is None, "of one prompt there is no interval"
    assert found["eval/prompts"] == 1


def test_a_dry_run_counts_the_prompts_and_leaves_nothing(home, done, capsys):
    assert main(["eval", f"run={done}", *SCORED, f"run_dir={home / 'dry'}", "dry_run=true"]) == 0
    assert "8 prompts, 2 completions each" in capsys.readouterr().out
    assert not (home / "dry").exists()


def test_at_another_temperature_there_is_no_kl(home, done):
    mine = figures(evaluate(home, "cold", f"run={done}", *SCORED, "eval.temperature=0"))
    assert "logratio_sum" in mine
    assert not {"kl", "regularised_return"} & set(mine)


def test_training_prompts_can_be_asked_for(home, done):
    for split in ("train", "val"):
        evaluate(home, split, f"run={done}", *SCORED, f"eval.split={split}", "eval.max_prompts=100")
    asked = [set(pq.read_table(home / n / "completions.parquet")["prompt_id"].to_pylist()) for n in ("train", "val")]
    assert [2 * len(ids) for ids in asked] == [summary(done)["trajectories/train"], summary(done)["trajectories/val"]]
    assert not asked[0] & asked[1]


def test_other_data_beside_a_run_are_asked_but_for_its_training_prompts(home, done):
    write_data(home / "new.jsonl", words="is {} good?")
    with (home / "new.jsonl").open("a") as file:
        file.write((home / "data.jsonl").read_text())
    data = ("data=jsonl", f"data.path={home}/none.jsonl", f"data.val_path={home}/new.jsonl")
    write_data(home / "none.jsonl", words="was {} bad?")
    evaluate(home, "other", f"run={done}", *SCORED, *data, "eval.max_prompts=100")
    rows = pq.read_table(home / "other" / "completions.parquet").to_pylist()
    asked = {r["prompt"] for r in rows}
    assert sum("good" in p for p in asked) == 40
    assert 2 * sum("fine" in p for p in asked) == summary(done)["trajectories/val"]
    assert {r["prompt_id"] for r in samples(done)} <= {r["prompt_id"] for r in rows}


def test_a_setting_of_the_runs_data_can_be_changed_alone(home, done):
    first = [prompt_name(as_messages(json.loads(line)["prompt"], "user", "")) for line in (home / "data.jsonl").open()]
    held = [n for n, name in enumerate(first) if is_held_out(name, 0.3)]
    limit = held[2] + 1  # the examples read, of which three are held out
    assert evaluate(home, "few", f"run={done}", *SCORED, f"data.limit={limit}")["eval/prompts"] == 3


@pytest.mark.parametrize("checkpoint", ["policy", "last"])
def test_an_adapter_is_measured_merged_and_from_its_checkpoint(home, checkpoint):
    if not (home / "lora").exists():
        lora = ("model.lora_r=4", "algo.reference=adapter", "trainer.learning_rate=3e-2")
        assert train(home, "lora", *lora) == 0
    mine = figures(evaluate(home, f"lora_{checkpoint}", f"run={home / 'lora'}", f"checkpoint={checkpoint}", *SCORED))
    assert mine["kl"] > 0.01
    assert mine == pytest.approx(last(home / "lora", mine), abs=1e-5)


def test_a_checkpoint_with_a_value_network_is_read_without_it(home):
    assert train(home, "valued", "trainer.max_steps=2", algo="algo=dro_v") == 0
    mine = figures(evaluate(home, "value", f"run={home / 'valued'}", "checkpoint=last", *SCORED))
    assert mine == pytest.approx(last(home / "valued", mine), abs=1e-6)


def test_an_unfinished_run_of_a_model_from_nothing_is_measured_by_its_checkpoint(home):
    shutil.copytree(home / "base", home / "half")
    shutil.rmtree(home / "half" / "policy")
    (home / "half" / "summary.json").unlink()
    data = ("data.val_fraction=0.3",)
    words = (*SCORED, *data, "eval.split=train")
    half = figures(evaluate(home, "of_half", f"run={home / 'half'}", "checkpoint=last", *words))
    assert half == pytest.approx(figures(evaluate(home, "of_base", f"run={home / 'base'}", *words)), abs=1e-6)
    assert half["reward"] > 0.2
    assert half["kl"] > 1


# ------------------------------------------------------------------ treasure, exactly
@pytest.fixture(scope="module")
def treasure(home):
    words = ("algo.beta=0.5", "trainer.max_steps=6", *at(home, "treasure"))
    assert main(["train", *SMALL, *words]) == 0
    return home / "treasure"


def test_on_treasure_the_numbers_are_exactly_those_of_the_run(home, treasure):
    found = evaluate(home, "exact", f"run={treasure}")
    mine = figures(found)
    assert {"optimum", "regret", "kl", "reward", "regularised_return"} <= set(mine)
    assert mine == last(treasure, mine)
    assert found["exact"] is True
    assert not (home / "exact" / "completions.parquet").exists()


def test_on_treasure_beta_and_split_can_be_others(home, treasure):
    mine = figures(evaluate(home, "beta1", f"run={treasure}", "eval.beta=1"))
    assert mine["regularised_return"] == pytest.approx(mine["reward"] - mine["kl"])
    assert mine["kl"] == summary(treasure)["val/kl"]
    assert figures(evaluate(home, "maps", f"run={treasure}", "eval.split=train"))["kl"] != mine["kl"]


def test_a_policy_on_treasure_is_no_nat_from_itself(home, treasure):
    model = ("model=hf", f"model.path={treasure}/policy", "data.maps=40", "data.val_maps=4")
    mine = figures(evaluate(home, "itself", *model, f"reference={treasure}/policy", "eval.beta=0.5"))
    assert mine["kl"] == pytest.approx(0, abs=1e-12)
    assert mine["reward"] == pytest.approx(summary(treasure)["val/reward"], abs=1e-9)


def test_a_dry_run_on_treasure_leaves_nothing(home, treasure, capsys):
    assert main(["eval", f"run={treasure}", f"run_dir={home / 'dry'}", "dry_run=true"]) == 0
    assert "evaluated exactly" in capsys.readouterr().out
    assert not (home / "dry").exists()


# ------------------------------------------------------------------ what is refused
def refused(capsys, *words):
    """What the command says on its way out, with exit code 2."""
    assert main(["eval", *words]) == 2
    return " ".join(capsys.readouterr().err.split())


def test_a_run_that_is_not_there_is_refused_and_nothing_is_made(home, done, capsys):
    assert "no such directory" in refused(capsys, f"run={home / 'nowhere'}", *SCORED)
    assert not (home / "nowhere").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model=tiny"], "brings its own model; leave out model=tiny"),
        (["reference=base/policy"], "brings its own reference; leave out reference=base/policy"),
        (["checkpoint=best"], "best.ckpt: no such checkpoint"),
        (["data.val_fraction=0"], "no prompt to answer: the split is empty"),
        (["eval.max_new_tokens=60"], "longer than 4 tokens"),
        (["eval.max_new_tokens=60", "data.max_length=1000"], "longer than 4 tokens"),
        (["eval.max_prompts=0"], "no prompt to answer"),
        (["data.limits=3"], "limit"),
        (["reward=nowhere/rm"], "nowhere/rm"),
    ],
)
def test_what_cannot_work_beside_a_run_is_refused_and_leaves_nothing(home, done, capsys, words, message):
    run = shutil.copytree(done, home / "copy", ignore=shutil.ignore_patterns("best.ckpt", "eval"), dirs_exist_ok=True)
    assert message in refused(capsys, f"run={run}", *SCORED, *words)
    assert not (run / "eval").exists()


def test_a_run_without_its_policy_is_refused_with_what_to_say_instead(home, done, capsys):
    run = shutil.copytree(done, home / "stopped", ignore=shutil.ignore_patterns("policy", "summary.json", "eval"))
    assert "no policy/ in it; the run is not finished; checkpoint=last" in refused(capsys, f"run={run}", *SCORED)
    mine = figures(evaluate(home, "of_stopped", f"run={run}", "checkpoint=last", *SCORED))
    assert mine == pytest.approx(last(done, mine), abs=1e-6)


def test_a_reward_model_answers_nothing(home, capsys):
    assert train(home, "rm", "eval.reward=null", "trainer.max_steps=1", algo="algo=reward_model") == 0
    said = refused(capsys, f"run={home / 'rm'}", *SCORED)
    assert "a reward model, which answers nothing" in said
    assert "checkpoint=last" not in said


def test_a_reference_that_has_changed_since_is_refused(home, capsys):
    moved = shutil.copytree(home / "base" / "policy", home / "moved")
    assert train(home, "early", f"model.path={moved}", "trainer.max_steps=1") == 0
    weights = load_file(moved / "model.safetensors")
    weights["model.norm.weight"] += 0.1
    save_file(weights, moved / "model.safetensors", metadata={"format": "pt"})
    said = refused(capsys, f"run={home / 'early'}", *SCORED)
    assert "its reference) has changed since: fingerprint" in said
    assert summary(home / "early")["fingerprint/model"] in said


def test_a_reference_with_another_vocabulary_is_refused(home, done, capsys):
    llama(vocabulary=400).save_pretrained(home / "foreign")
    tokenizer().save_pretrained(home / "foreign")
    data = ("data=jsonl", f"data.path={home}/data.jsonl")
    words = ("model=hf", f"model.path={done}/policy", f"reference={home}/foreign", *data, *SCORED)
    assert "another vocabulary than the policy's" in refused(capsys, *words)


def test_treasure_needs_a_reference_and_a_beta_and_no_reward(home, treasure, capsys):
    model = ("model=hf", f"model.path={treasure}/policy")
    assert "give reference=DIR" in refused(capsys, *model)
    assert "set eval.beta" in refused(capsys, *model, f"reference={treasure}/policy")
    assert "pays its own rewards" in refused(capsys, f"run={treasure}", "reward=exact_match")
