"""What a run with an adapter leaves and what can be done with it; `samples.jsonl` over a kill and a resume."""

import gc
import json
import signal
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer

import shiqrun.training.finish
from shiqrun.cli import main
from shiqrun.models.reference import weights_fingerprint
from shiqrun.training.samples_jsonl import SamplesFile, append_samples
from tests.support.command_line import (
    SMALL,
    checkpoint,
    command,
    finished,
    largest_difference,
    metrics,
    start,
    summary,
    timeless,
    train,
    wait_for_rows,
)
from tests.support.places import working_in

ODD = "line\u2028separator, next\u0085line, form\x0cfeed, vertical\x0btab, two\nlines, é, 字"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "samples.jsonl"
    for step in (0, 3, 6):
        append_samples(path, [{"step": step, "completion": f"{ODD} {n}"} for n in range(2)])
    return path


def rows(path):
    with path.open(encoding="utf-8", newline="\n") as lines:
        return [json.loads(line) for line in lines]


def test_every_evaluation_adds_its_rows(file):
    assert [r["step"] for r in rows(file)] == [0, 0, 3, 3, 6, 6]
    assert rows(file)[1]["completion"] == f"{ODD} 1"


@pytest.mark.parametrize(("step", "kept"), [(-1, []), (0, [0, 0]), (4, [0, 0, 3, 3]), (6, [0, 0, 3, 3, 6, 6])])
def test_rows_of_later_steps_go_and_the_others_stay_as_they_are(file, step, kept):
    before = file.read_bytes()
    SamplesFile(file, step)
    assert [r["step"] for r in rows(file)] == kept
    assert before.startswith(file.read_bytes())
    append_samples(file, [{"step": 9}])
    assert [r["step"] for r in rows(file)] == [*kept, 9]


@pytest.mark.parametrize("lost", [1, 2, 20, 60])
def test_a_row_that_a_kill_cut_short_goes_too(file, lost):
    whole = file.read_bytes()
    file.write_bytes(whole[:-lost])
    SamplesFile(file, 6)
    assert [r["step"] for r in rows(file)] == [0, 0, 3, 3, 6]


def test_a_file_that_is_not_there_is_not_made(tmp_path):
    SamplesFile(tmp_path / "samples.jsonl", 3)
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------ runs with an adapter
LORA = ("model.lora_r=4", "algo.reference=adapter", "trainer.learning_rate=0.03", "trainer.warmup_steps=0")
ON_BASE = ("model=hf", "model.path=start/policy")
PROBLEM = ("logger=none", "data.maps=40", "data.val_maps=4", "trainer.batch_size=8", "trainer.log_every=3")


@pytest.fixture(scope="module")
def workplace(home):
    with working_in(home):
        assert train("run_dir=start", "trainer.max_steps=6") == 0
        yield home


@torch.no_grad()
def logits(model):
    """Of a few tokens that every model here knows, `[B, T, V]`."""
    return model.eval()(input_ids=torch.arange(24).reshape(2, 12) % 12).logits.clone()


def copies(matrix):
    """How often its numbers are in this process's memory."""
    gc.collect()
    found = [t for t in gc.get_objects() if issubclass(type(t), torch.Tensor) and t.shape == matrix.shape]
    tensors = [t for t in found if t.device == matrix.device]  # the memory estimate has some that hold no numbers
    return len({t.untyped_storage().data_ptr() for t in tensors if torch.equal(t, matrix)})


def adapted_run(words, run_dir):
    """(logits of the policy in memory when it was saved, of its start, copies of the base then) of a run."""
    kept = {}

    def watched(policy, *rest):
        kept["copies"] = copies(policy.causal_lm.get_input_embeddings().weight)
        kept["trained"] = logits(policy.model)
        with policy.as_reference():
            kept["start"] = logits(policy.model)
        return save(policy, *rest)

    save = shiqrun.training.finish.save_policy
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shiqrun.training.finish, "save_policy", watched)
        assert main(["train", *PROBLEM, *words, f"run_dir={run_dir}", "trainer.max_steps=8"]) == 0
    return kept["trained"], kept["start"], kept["copies"]


@pytest.fixture(scope="module", params=["tiny", "hf"])
def adapted(request, workplace):
    """(run directory, logits of the policy in memory when it was saved, of its start, copies of its base)."""
    model = ON_BASE if request.param == "hf" else SMALL
    return workplace / request.param, *adapted_run((*model, *LORA), request.param)


def test_a_run_holds_the_base_once_where_its_reference_is_the_adapter_switched_off(adapted, workplace):
    assert adapted[-1] == 1
    if adapted[0].name == "hf":
        assert adapted_run((*ON_BASE, *LORA, "algo.reference=frozen"), "frozen")[-1] == 2


def test_policy_adapter_and_the_policy_in_memory_have_the_same_logits(adapted, monkeypatch):
    run_dir, trained, start, _ = adapted
    monkeypatch.chdir("/")
    assert not torch.allclose(trained, start, atol=1e-2)
    merged = AutoModelForCausalLM.from_pretrained(run_dir / "policy")
    assert not any("lora" in name for name, _ in merged.named_parameters())
    assert_close(logits(merged), trained)
    base = json.loads((run_dir / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]
    on_base = AutoModelForCausalLM.from_pretrained(base)
    assert_close(logits(on_base), start)
    assert_close(logits(PeftModel.from_pretrained(on_base, run_dir / "adapter")), trained)
    assert_close(logits(AutoPeftModelForCausalLM.from_pretrained(run_dir / "adapter")), trained)


def test_the_adapters_config_names_the_base_and_one_that_was_nowhere_is_beside_it(adapted):
    run_dir, *_ = adapted
    base = Path(json.loads((run_dir / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"])
    assert base == (run_dir / "adapter" / "base" if run_dir.name == "tiny" else run_dir.parent / "start" / "policy")
    assert (run_dir / "adapter" / "base").exists() == (run_dir.name == "tiny")
    assert weights_fingerprint(AutoModelForCausalLM.from_pretrained(base)) == summary(run_dir)["fingerprint/model"]


def test_the_adapter_comes_with_its_tokenizer_and_a_card_that_loads_it(adapted, monkeypatch):
    run_dir, trained, *_ = adapted
    card = (run_dir / "adapter" / "README.md").read_text()
    assert "library_name: peft" in card
    assert "`shiq` on `treasure`" in card
    names = {}
    monkeypatch.chdir(run_dir)
    exec("\n".join(line[4:] for line in card.splitlines() if line.startswith("    ")), names)
    assert_close(logits(names["model"]), trained)
    policys = AutoTokenizer.from_pretrained(run_dir / "policy")
    assert names["tokenizer"].get_vocab() == policys.get_vocab()
    assert names["tokenizer"].chat_template == policys.chat_template


def test_nothing_exported_names_attention_that_only_a_run_knows(adapted):
    for file in adapted[0].glob("*/config.json"):
        assert "shiqrun" not in file.read_text()


def test_a_checkpoint_of_an_adapter_leaves_the_base_out(adapted):
    run_dir, *_ = adapted
    assert all(".lora_" in name for name in checkpoint(run_dir)["state_dict"])
    size, whole = (
        (run_dir / p).stat().st_size for p in ("adapter/adapter_model.safetensors", "policy/model.safetensors")
    )
    assert sum(t.nbytes for t in checkpoint(run_dir)["state_dict"].values()) <= size < whole


@pytest.mark.parametrize("which", ["policy", "last"])
def test_an_evaluation_finds_the_numbers_of_the_run(adapted, which):
    run_dir, *_ = adapted
    assert main(["eval", f"run={run_dir}", f"checkpoint={which}", f"run_dir={run_dir}/eval/{which}"]) == 0
    found = json.loads((run_dir / "eval" / which / "eval.json").read_text())
    assert found["eval/kl"] > 0.01
    for name in ("kl", "reward", "regret"):
        assert found[f"eval/{name}"] == pytest.approx(summary(run_dir)[f"val/{name}"], abs=1e-5)


def test_the_next_run_starts_from_the_policy_and_refuses_the_adapter(adapted, capfd):
    run_dir, trained, *_ = adapted
    words = ["train", *PROBLEM, "model=hf", "trainer.max_steps=1", "trainer.learning_rate=1e-9"]
    assert main([*words, f"model.path={run_dir}/policy", f"run_dir=after_{run_dir.name}", *LORA[:2]]) == 0
    after = run_dir.parent / f"after_{run_dir.name}"
    assert_close(logits(AutoModelForCausalLM.from_pretrained(after / "policy")), trained)
    capfd.readouterr()
    assert main([*words, f"model.path={run_dir}/adapter", "run_dir=never"]) == 2
    said = " ".join(capfd.readouterr().err.split())
    assert "adapter is a PEFT adapter, not a model; pass the policy that it is merged in: model.path=" in said
    assert f"model.path={run_dir}/policy" in said
    assert not Path("never").exists()


def test_an_adapter_of_someone_else_is_refused_with_what_to_do(adapted, workplace, capfd):
    alone = workplace / "downloads" / adapted[0].name
    alone.parent.mkdir(exist_ok=True)
    AutoPeftModelForCausalLM.from_pretrained(adapted[0] / "adapter").save_pretrained(alone)
    assert main(["train", *PROBLEM, "model=hf", f"model.path={alone}", "run_dir=never"]) == 2
    assert "is a PEFT adapter, not a model; merge it first (PeftModel.merge_and_unload" in capfd.readouterr().err


@pytest.mark.slow
def test_a_killed_run_with_an_adapter_goes_on_to_the_same_bits(workplace):
    long = (*LORA, "trainer.max_steps=20", "trainer.checkpoint_every=4", "algo.beta=0.5", "trainer.log_every=2")
    code, out = finished(start("run_dir=whole", *long))
    assert code == 0, out
    process = start("run_dir=killed", *long)
    wait_for_rows(workplace / "killed", 6, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (workplace / "killed" / "summary.json").exists(), "it finished before it was killed"
    assert checkpoint(workplace / "killed")["global_step"] >= 4
    code, out = finished(command("train", "resume=killed"))
    assert code == 0, out
    assert largest_difference(workplace / "whole", workplace / "killed") == 0
    assert timeless(metrics(workplace / "killed")) == timeless(metrics(workplace / "whole"))


def test_names_of_layers_are_a_list_of_layers_and_never_the_head(workplace, capfd):
    for names, says in (
        ("all-linear", "met 'all-linear', expected a"),
        ("[lm_head]", "the head is scored by its weight"),
    ):
        assert train(*LORA, f"model.lora_target_modules={names}", "run_dir=never") == 2
        assert says in " ".join(capfd.readouterr().err.split())
    assert not (workplace / "never").exists()


def test_4_bits_without_a_gpu_or_an_adapter_are_refused(workplace, capfd, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for lora, says in (((), "set model.lora_r=16"), (("model.lora_r=4",), "needs a CUDA GPU")):
        words = ("model=hf", f"model.path={workplace}/start/policy", "model.quantize=nf4", *lora)
        assert main(["train", *PROBLEM, *words, "run_dir=never"]) == 2
        assert says in " ".join(capfd.readouterr().err.split())
