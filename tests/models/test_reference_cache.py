"""When cached scores are the same, that a changed key is never served, and what a disk may refuse."""

import fcntl
import json
import logging
import threading

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from shiqrun.batching.columns import AnchorTokens
from shiqrun.batching.rows import Rows
from shiqrun.batching.steps import Batches
from shiqrun.errors import InputError
from shiqrun.models import reference_cache as cache
from tests.models.scored import TOKENS, key_of, plain, policy_of, scores_of, watched
from tests.support.helpers import CHATML, encoded, example, llama, rows, tokenizer, trajectory


def test_the_scores_are_the_policys(tmp_path):
    policy, given = policy_of(), rows()
    scores = scores_of(policy, given, tmp_path).scores
    for row in range(len(given)):
        with torch.no_grad():
            alone = policy(given.collate([row]))
        assert_close(torch.from_numpy(scores[row][0]), alone.logit[0])
        assert_close(torch.from_numpy(scores[row][1]), alone.log_partition[0])


def test_the_second_call_reads_the_file_and_computes_nothing(tmp_path):
    policy, given = policy_of(), rows()
    seen = watched(policy)
    first, found, cost = scores_of(policy, given, tmp_path)
    computed = len(seen)
    assert not found
    assert computed >= 2
    again, found, cost_again = scores_of(policy, given, tmp_path)
    assert found
    assert len(seen) == computed
    assert cost_again == cost > 0, "what computing took is kept with the scores"
    assert plain(first) == plain(again)
    assert [p.suffix for p in tmp_path.iterdir() if p.suffix != ".lock"] == [".arrow"]


@pytest.mark.parametrize("training", [True, False])
def test_scoring_leaves_the_policy_in_its_mode(tmp_path, training):
    policy = policy_of().train(training)
    scores_of(policy, rows(), tmp_path)
    assert policy.training == training
    assert policy.causal_lm.model.layers[0].training == training


def test_an_empty_split_has_an_empty_cache(tmp_path):
    for _ in range(2):
        assert list(scores_of(policy_of(), Rows([], pad=0), tmp_path).scores) == []


def test_progress_is_told_of_every_batch_and_how_many_there_are(tmp_path):
    told = []
    scores_of(policy_of(), rows(), tmp_path, progress=lambda items: told.append(len(items)) or items)
    assert told == [len(Batches(rows(), tokens=TOKENS))] > [2]


def truncated(given):
    return Rows(
        [
            trajectory(n, tokens=t.input_ids[: t.action_index[-1] + 1], action_index=t.action_index)
            for n, t in enumerate(given.trajectories)
        ],
        pad=0,
    )


def changed_weight():
    policy = policy_of()
    with torch.no_grad():
        policy.causal_lm.model.layers[1].mlp.up_proj.weight[0, 0] += 1e-6
    return policy


def with_actions(change):
    """Rows whose first trajectory has other actions."""
    first, *others = rows().trajectories
    index = change(first.action_index)
    return Rows([trajectory(0, tokens=first.input_ids, action_index=index), *others], pad=0)


def with_a_token():
    """Rows of the same sizes, with one other token in the last."""
    *others, last = rows().trajectories
    tokens = np.where(np.arange(len(last.input_ids)) == 2, last.input_ids % 47 + 1, last.input_ids)
    return Rows([*others, trajectory(11, tokens=tokens, action_index=last.action_index)], pad=0)


def anchored(*anchor):
    return rows().with_anchor(AnchorTokens(*anchor))


def packed():
    return rows().with_layout(packed=True)


def rope(theta):
    return {"rope_type": "default", "rope_theta": theta}


CHANGES = {
    "a weight": lambda: (changed_weight(), rows()),
    "the weights' dtype": lambda: (policy_of(model=llama().bfloat16()), rows()),
    "the body's dtype": lambda: (policy_of(autocast=torch.bfloat16), rows()),
    "attention": lambda: (policy_of(attn_implementation="eager"), rows()),
    "rms norm, equal weights": lambda: (policy_of(rms_norm_eps=0.1), rows()),
    "rope theta, equal weights": lambda: (policy_of(rope_parameters=rope(500.0)), rows()),
    "a token": lambda: (policy_of(), with_a_token()),
    "other rows": lambda: (policy_of(), rows(seed=1)),
    "fewer rows": lambda: (policy_of(), rows(count=11)),
    "order": lambda: (policy_of(), Rows(rows().trajectories[::-1], pad=0)),
    "truncation": lambda: (policy_of(), truncated(rows())),
    "fewer actions": lambda: (policy_of(), with_actions(lambda index: index[1:])),
    "other actions": lambda: (policy_of(), with_actions(lambda index: index % 3 + np.arange(1, len(index) + 1))),
    "packing": lambda: (policy_of(), packed()),
    "an anchor": lambda: (policy_of(), anchored(3, 48, 0)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_changes_the_scores_changes_the_key(change, tmp_path):
    policy, given = policy_of(), rows()
    before = key_of(policy, given)
    scores_of(policy, given, tmp_path)
    policy, given = CHANGES[change]()
    assert key_of(policy, given) != before
    assert not scores_of(policy, given, tmp_path).found


def test_the_anchors_tokens_are_part_of_the_key():
    keys = {key_of(policy_of(), anchored(*anchor)) for anchor in ((3, 48, 0), (4, 48, 0), (3, 47, 0), (3, 48, 1))}
    assert len(keys) == 4


def test_products_in_tensor_float_32_are_another_dtype():
    before = key_of(policy_of(), rows())
    torch.set_float32_matmul_precision("high")
    try:
        assert key_of(policy_of(), rows()) != before
    finally:
        torch.set_float32_matmul_precision("highest")


ASKED = [example("fine, thank you. And you?", "fine", prompt=("how are you today?",)), example("hello there")]


def in_tokens(template=None, change=lambda made: made, **options):
    made = change(tokenizer(template))
    return Rows(encoded(made, *ASKED, **options)[0], pad=0)


def without_merges(made):
    """The same vocabulary, but words in single bytes."""
    content = json.loads(made.backend_tokenizer.to_str())
    content["model"]["merges"] = []
    made.backend_tokenizer.__setstate__(json.dumps(content).encode())
    return made


TEXTS = {
    "tokenizer": lambda: in_tokens(change=without_merges),
    "template": lambda: in_tokens(CHATML),
    "max_length": lambda: in_tokens(max_length=17),
}


@pytest.mark.parametrize("change", TEXTS)
def test_tokenizer_template_and_truncation_act_through_the_tokens(change):
    policy = policy_of(vocabulary=330)
    assert len(in_tokens()) == 3
    assert len(TEXTS[change]()) >= 1
    assert key_of(policy, TEXTS[change]()) != key_of(policy, in_tokens())


def test_what_changes_no_score_keeps_the_key():
    policy = policy_of()
    given = Rows(rows().trajectories, pad=5).with_column("offset", np.ones(len(rows()), np.float32))
    policy.causal_lm.config._name_or_path = "/elsewhere"
    assert key_of(policy.train(), given) == key_of(policy_of().eval(), rows())


def test_files_of_an_older_format_are_not_asked_for(monkeypatch):
    now = key_of(policy_of(), rows())
    monkeypatch.setattr(cache, "FORMAT", "1")
    assert key_of(policy_of(), rows()) != now


def test_the_logits_of_the_anchors_tokens_come_back(tmp_path):
    policy, given = policy_of(), anchored(3, 48, 0)
    picked = [7, 2, 5]
    with torch.no_grad():
        live = policy(given.collate(picked))
    for found in (False, True):
        made = scores_of(policy, given, tmp_path)
        assert made.found == found
        batch = given.with_column("reference", made.scores).collate(picked)
        assert_close(batch.reference.further[batch.action_mask], live.further[batch.action_mask])


def test_a_damaged_file_of_the_right_name_is_refused(tmp_path):
    scores_of(policy_of(), rows(), tmp_path)
    (path,) = tmp_path.glob("*.arrow")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError) as refused:
        scores_of(policy_of(), rows(), tmp_path)
    assert str(path) in str(refused.value)
    assert "delete it" in str(refused.value)
    path.unlink()
    assert len(scores_of(policy_of(), rows(), tmp_path).scores) == len(rows())


def test_a_disk_that_is_too_small_is_refused_before_anything_is_scored(tmp_path):
    class Huge(Rows):
        @property
        def actions(self):
            return super().actions * 10**15  # 8 bytes each: no disk has that

    policy, given = policy_of(), Huge(rows().trajectories, pad=0)
    key, seen = key_of(policy, rows()), watched(policy)
    with pytest.raises(InputError, match=r"cache_dir=.* GB free, but .* GB while") as refused:
        scores_of(policy, given, tmp_path, key=key)
    assert str(tmp_path) in str(refused.value)
    assert not seen


def test_a_directory_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="give another cache_dir"):
        scores_of(policy_of(), rows(), tmp_path / "file" / "cache")


def test_who_has_to_wait_says_for_what(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("shiqrun.util.lock.PATIENCE_SECONDS", 0.01)
    policy, given = policy_of(), rows()
    said, lock = threading.Event(), tmp_path / f"reference-{key_of(policy, given)}.lock"
    heard = logging.Handler()
    heard.emit = lambda record: said.set() if "waiting for the reference scores" in record.getMessage() else None
    logger = logging.getLogger("shiqrun")
    logger.addHandler(heard)
    try:
        with caplog.at_level(logging.INFO, "shiqrun"), lock.open("a") as held:
            fcntl.flock(held, fcntl.LOCK_EX)  # as another process has it
            threading.Thread(target=lambda: said.wait(60) and fcntl.flock(held, fcntl.LOCK_UN)).start()
            assert len(scores_of(policy, given, tmp_path).scores) == len(rows())
    finally:
        logger.removeHandler(heard)
    assert str(lock) in caplog.text
