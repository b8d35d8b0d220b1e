"""A few short rows tell whether a model is scored as it computes, and what was found serves the next run."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import MistralConfig

from shiqrun.batching.rows import Rows
from shiqrun.cli import main
from shiqrun.models import attention, known_fingerprint, model_checks
from shiqrun.models.attention import reads_packed
from shiqrun.models.known_fingerprint import KnownFingerprint
from shiqrun.models.model_checks import BEYOND, CHECKED, check_model, enable_packing, rows_cut
from shiqrun.models.policy import Policy, prepare
from shiqrun.models.reference import weights_fingerprint
from shiqrun.util.kept_facts import KeptFacts
from tests.models.test_policy import BOUNDS, GROUPED, SIZES
from tests.support.command_line import summary
from tests.support.helpers import llama, model, settings, trajectory

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def every_verdict_is_worth_keeping(monkeypatch):
    monkeypatch.setattr(model_checks, "WORTH_SECONDS", 0.0)
    monkeypatch.setattr(known_fingerprint, "WORTH_SECONDS", 0.0)
    monkeypatch.setattr(known_fingerprint, "SETTLED_SECONDS", 0.0)


def long_rows(length=60):
    """Three completions of a prompt of 40 tokens, one long row, and a short one."""
    draw = np.random.default_rng(0)
    prompt = draw.integers(3, 48, 40)
    texts = [np.concatenate([prompt, draw.integers(3, 48, n)]) for n in (20, 9, 4)]
    texts += [draw.integers(3, 48, length), draw.integers(3, 48, 5)]
    firsts = (40, 40, 40, length // 2, 2)
    made = [
        trajectory(n, tokens=text, action_index=np.arange(first, len(text)), rewards=None, prompt_id=f"p{max(n, 2)}")
        for n, (text, first) in enumerate(zip(texts, firsts, strict=True))
    ]
    return Rows(made, pad=0)


def policy(**changes):
    return Policy(prepare(llama(max_position_embeddings=128), settings(**changes)))


def forwards(of):
    """A list that grows by the tokens of each pass through the body."""
    seen = []
    of.causal_lm.get_input_embeddings().register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].numel()))
    return seen


def test_rows_are_cut_around_their_first_action_and_still_share_their_prompt():
    rows = long_rows()
    cut = rows_cut(rows, range(5))
    assert cut.lengths.tolist() == [12, 12, 12, 12, 5]
    assert len(set(cut.prompt_number[:3])) == 1
    for whole, part in zip(rows.trajectories, cut.trajectories, strict=True):
        first = part.action_index[0]
        start = whole.action_index[0] - first
        assert (whole.input_ids[start : start + len(part.input_ids)] == part.input_ids).all()
        assert (whole.action_index[: len(part.action_index)] - start == part.action_index).all()


def test_few_tokens_are_scored_and_the_next_run_scores_none(tmp_path):
    kept, rows = KeptFacts(tmp_path), long_rows(1000)
    first, again = policy(), policy()
    seen = forwards(first)
    assert check_model(first, rows, "weights", kept, CPU) is None
    assert 0 < sum(seen) <= 2 * CHECKED + 2 * 5 * CHECKED
    seen = forwards(again)
    assert check_model(again, rows, "weights", kept, CPU) is None
    assert seen == []
    assert reads_packed(again.causal_lm)


@pytest.mark.parametrize("what", ["weights", "rows", "attention", "adapter", "code", "damage"])
def test_what_the_verdict_depends_on_is_checked_anew(tmp_path, what, monkeypatch):
    kept = KeptFacts(tmp_path)
    check_model(policy(), long_rows(), "weights", kept, CPU)
    changes = {"attention": {"attn_implementation": "eager"}, "adapter": {"lora_r": 2}}.get(what, {})
    rows = long_rows(61) if what == "rows" else long_rows()
    if what == "code":
        monkeypatch.setattr(model_checks, "code_digest", lambda: "another")
    if what == "damage":
        (file,) = tmp_path.glob("*.json")
        file.write_text(file.read_text()[:20])
    other = policy(**changes)
    seen = forwards(other)
    why = check_model(other, rows, "others" if what == "weights" else "weights", kept, CPU)
    assert seen
    assert (why is None) == (what != "attention")
    assert len(list(tmp_path.glob("*.json"))) == (1 if what == "damage" else 2)


def test_a_model_that_reads_padded_batches_is_remembered_as_such(tmp_path):
    kept = KeptFacts(tmp_path)
    why = check_model(policy(attn_implementation="eager"), long_rows(), "weights", kept, CPU)
    other = policy(attn_implementation="eager")
    seen = forwards(other)
    assert check_model(other, long_rows(), "weights", kept, CPU) == why
    assert "eager" in why
    assert len(seen) == 0
    assert not reads_packed(other.causal_lm)


def test_a_window_that_packing_ignores_is_found_out_in_the_longest_row(monkeypatch):
    def windowed():
        config = MistralConfig(**(SIZES | {"max_position_embeddings": 256}), **BOUNDS, **GROUPED, sliding_window=40)
        return Policy(prepare(model(config), settings()))

    rows, seen = long_rows(120), forwards(checked := windowed())
    assert enable_packing(checked, rows) is None
    assert 40 + BEYOND in seen  # the long row alone, without padding the others to its length
    monkeypatch.setattr(attention, "_masks", lambda packing, window: [call.mask for call in packing.calls])
    assert "differ" in enable_packing(windowed(), rows)


def test_a_wrong_mask_between_long_rows_is_found_out_in_short_ones():
    class Blind(Rows):
        def collate(self, picked):
            batch = super().collate(picked)
            if batch.layout.attention is None:
                return batch
            calls = tuple(
                call if call.mask is None else replace(call, mask=torch.ones_like(call.mask))
                for call in batch.layout.attention.calls
            )
            return batch.with_layout(replace(batch.layout, attention=replace(batch.layout.attention, calls=calls)))

    assert "differ" in enable_packing(policy(), Blind(long_rows().trajectories, pad=0))


class TestFingerprint:
    """The fingerprint of weights is remembered by the files that they come from."""

    @pytest.fixture
    def file(self, tmp_path):
        torch.save(policy().model.state_dict(), tmp_path / "weights.bin")
        return tmp_path / "weights.bin"

    def known(self, file, *made_by):
        return KnownFingerprint([file], made_by, KeptFacts(file.parent / "cache"))

    def test_it_has_the_same_value_and_is_not_computed_again(self, file, monkeypatch):
        first = self.known(file, torch.float32)
        weights = policy().model
        assert first.of(weights) == weights_fingerprint(weights)
        monkeypatch.setattr(known_fingerprint, "weights_fingerprint", lambda _: "computed")
        assert self.known(file, torch.float32).of(weights) == weights_fingerprint(weights)
        assert self.known(file, torch.bfloat16).of(weights) == "computed"

    def test_a_changed_file_is_hashed_anew_whatever_its_times_say(self, file, monkeypatch):
        before, weights = file.stat(), policy().model
        self.known(file).of(weights)
        content = bytearray(file.read_bytes())
        content[-100] ^= 1
        file.write_bytes(content)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        monkeypatch.setattr(known_fingerprint, "weights_fingerprint", lambda _: "computed")
        assert self.known(file).of(weights) == "computed"

    def test_a_file_that_changes_while_it_is_loaded_is_not_remembered(self, file):
        known = self.known(file)
        file.write_bytes(file.read_bytes())
        known.of(policy().model)
        assert not (file.parent / "cache").exists()

    def test_a_file_that_has_just_changed_is_not_remembered(self, file, monkeypatch):
        monkeypatch.setattr(known_fingerprint, "SETTLED_SECONDS", 60.0)
        self.known(file).of(policy().model)
        assert not (file.parent / "cache").exists()


@pytest.mark.slow
def test_runs_and_dry_runs_of_one_model_share_what_was_found(workplace):
    small = ("logger=none", "eval.every=0", "trainer.batch_size=4", "trainer.max_steps=1", "cache_dir=cache")
    tiny = ("model.hidden_size=16", "model.num_layers=1")
    assert main(["train", *small, *tiny, "run_dir=base"]) == 0
    found = set((workplace / "cache" / "models").iterdir())
    loaded = ("model=hf", "model.path=base/policy", "run_dir=next")
    assert main(["train", *small, *loaded, "dry_run=true"]) == 0
    both = set((workplace / "cache" / "models").iterdir())
    assert len(both - found) == 2  # the verdict on the model, and its fingerprint
    assert main(["train", *small, *loaded]) == 0
    assert set((workplace / "cache" / "models").iterdir()) == both
    assert summary(workplace / "next")["fingerprint/model"] == summary(workplace / "base")["fingerprint/policy"]
