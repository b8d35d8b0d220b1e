import functools
import multiprocessing
import os
import signal

import pytest
import torch
from torch.testing import assert_close

from shiqrun.data.batches import Rows
from shiqrun.losses import shiq
from shiqrun.models import reference
from shiqrun.models.policy import Policy, prepare
from shiqrun.models.reference import AdapterOff, Frozen, cache_key, cached, cached_scores, weights_fingerprint
from tests.helpers import llama, rows, settings, trajectory

CPU = torch.device("cpu")


def policy_of(*, lora_r=0, autocast=None, **options):
    return Policy(prepare(llama(**options), settings(lora_r=lora_r)), autocast=autocast)


def key_of(policy, given):
    return cache_key(policy, given, weights_fingerprint(policy.causal_lm))


def scores_of(policy, given, directory, **options):
    key = options.pop("key", None) or key_of(policy, given)
    return cached_scores(policy, given, directory, key=key, tokens=30, device=CPU, **options)


def perturb(policy):
    for p in policy.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.5)


def test_cached_frozen_and_adapter_give_the_scores_of_the_policy_at_step_0(tmp_path):
    policy, given = policy_of(lora_r=2), rows()
    frozen, adapter = Frozen(policy), AdapterOff(policy)
    given.reference, _, _ = scores_of(policy, given, tmp_path)
    batch = given.collate([3, 1, 7, 5])
    at_start = policy(batch)
    perturb(policy)
    assert (policy(batch).logp - at_start.logp).abs().max() > 0.1
    for kind in (frozen, adapter, cached):
        found = kind(batch)
        assert_close(found.logit, at_start.logit.detach())
        assert_close(found.log_partition, at_start.log_partition.detach())
        assert not found.logit.requires_grad
        assert not found.log_partition.requires_grad


def test_without_cached_scores_cached_says_so():
    with pytest.raises(ValueError, match="no cached reference scores"):
        cached(rows().collate([0]))


def test_the_second_call_reads_the_file_and_computes_nothing(tmp_path):
    policy, given = policy_of(), rows()
    passes = []
    policy.register_forward_hook(lambda *_: passes.append(1))
    first, found, cost = scores_of(policy, given, tmp_path)
    computed = len(passes)
    assert not found
    assert computed >= 2
    again, found, cost_again = scores_of(policy, given, tmp_path)
    assert found
    assert len(passes) == computed
    assert cost_again == cost > 0, "what computing took is kept with the scores"
    for one, other in zip(first, again, strict=True):
        assert [x.tolist() for x in one] == [x.tolist() for x in other]
    assert [p.suffix for p in tmp_path.iterdir() if p.suffix != ".lock"] == [".arrow"]


def test_scoring_leaves_the_policy_in_its_mode(tmp_path):
    policy = policy_of()
    assert policy.train().training
    scores_of(policy, rows(), tmp_path)
    assert policy.training
    assert policy.causal_lm.model.layers[0].training


def test_an_empty_split_has_an_empty_cache(tmp_path):
    for _ in range(2):
        scores, _, _ = scores_of(policy_of(), Rows([], pad=0), tmp_path)
        assert scores == []


def truncated(given):
    cut = [
        trajectory(
            n,
            tokens=t.input_ids[: t.action_index[-1] + 1],
            action_index=t.action_index,
            rewards=t.rewards,
        )
        for n, t in enumerate(given.trajectories)
    ]
    return Rows(cut, pad=0)


def changed_weight():
    policy = policy_of()
    with torch.no_grad():
        policy.causal_lm.model.layers[1].mlp.up_proj.weight[0, 0] += 1e-6
    return policy


def fewer_actions():
    given = rows()
    t = given.trajectories[0]
    fewer = trajectory(0, tokens=t.input_ids, action_index=t.action_index[1:], rewards=t.rewards[1:])
    return Rows([fewer, *given.trajectories[1:]], pad=0)


CHANGES = {
    "a weight": lambda: (changed_weight(), rows()),
    "the body's dtype": lambda: (policy_of(autocast=torch.bfloat16), rows()),
    "attention": lambda: (Policy(prepare(llama(), settings(attn_implementation="eager"))), rows()),
    "the config": lambda: (policy_of(rms_norm_eps=0.1), rows()),  # equal weights, other scores
    "other rows": lambda: (policy_of(), rows(seed=1)),
    "fewer rows": lambda: (policy_of(), rows(count=11)),
    "order": lambda: (policy_of(), Rows(rows().trajectories[::-1], pad=0)),
    "truncation": lambda: (policy_of(), truncated(rows())),
    "actions": lambda: (policy_of(), fewer_actions()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_changes_the_scores_changes_the_key(change):
    assert key_of(*CHANGES[change]()) != key_of(policy_of(), rows())


def test_what_changes_no_score_keeps_the_key():
    given, policy = rows(), policy_of()
    given.pad, given.offset = 5, given.offset + 1
    policy.causal_lm.config._name_or_path = "/elsewhere"
    assert key_of(policy.train(), given) == key_of(policy_of().eval(), rows())


def test_fingerprint_takes_scalars_and_half_precision():
    module = torch.nn.Module()
    module.scale = torch.nn.Parameter(torch.tensor(1.0, dtype=torch.bfloat16))
    one = weights_fingerprint(module)
    module.scale.data += 1
    assert weights_fingerprint(module) != one


def test_a_frozen_reference_is_in_no_state_dict_and_no_optimiser():
    from shiqrun.module import (
        AlgoSettings,
        Method,
        TrainerSettings,
    )  # slow to import, and the processes below import this file

    policy = policy_of()
    frozen = Frozen(policy)
    options = {"max_steps": 2, "max_epochs": None, "batch_size": 2, "micro_batch_tokens": 64, "log_every": 1}
    optimiser = {"learning_rate": 1e-3, "weight_decay": 0.0, "warmup_steps": 0, "lr_schedule": "constant"}
    made = TrainerSettings(**options, **optimiser, grad_clip=None, checkpoint_every=1)
    plain = AlgoSettings(reference="frozen", reward_offset="none")
    method = Method(policy, frozen, functools.partial(shiq, beta=0.5), made, max_steps=2, seed=0, algo=plain)
    assert set(method.state_dict()) == {f"policy.{name}" for name in policy.state_dict()}
    (optimizer,), _ = method.configure_optimizers()
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for p in policy.parameters()}
    assert not any(p.requires_grad for p in frozen.policy.parameters())
    assert not frozen.policy.training


def killed_while_writing(directory):
    """Runs in a process of its own: everything is written but the last rename."""
    reference.os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    scores_of(policy_of(), rows(), directory)


def compute_together(directory, barrier, answers):
    """Runs in a process of its own."""
    policy, given = policy_of(), rows()
    barrier.wait()
    scores, found, _ = scores_of(policy, given, directory)
    answers.put((found, [[x.tolist() for x in pair] for pair in scores]))


def test_a_write_that_was_killed_leaves_no_file_to_be_read(tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=killed_while_writing, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".tmp"]
    assert not list(tmp_path.glob("*.arrow"))
    scores, found, _ = scores_of(policy_of(), rows(), tmp_path)
    assert not found
    assert len(scores) == len(rows())


def test_two_processes_that_start_together_compute_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(2), context.Queue()
    both = [context.Process(target=compute_together, args=(tmp_path, barrier, answers)) for _ in range(2)]
    for process in both:
        process.start()
    (found, scores), (other_found, other_scores) = answers.get(), answers.get()
    for process in both:
        process.join()
    assert [found, other_found] in ([True, False], [False, True])
    assert scores == other_scores
    assert len(list(tmp_path.glob("*.arrow"))) == 1


def test_the_anchors_tokens_are_part_of_the_key_and_their_logits_come_back(tmp_path):
    policy, given, keys = policy_of(), rows(), set()
    for drawn in (None, (3, 48, 0), (4, 48, 0), (3, 47, 0), (3, 48, 1)):
        given.anchor = drawn
        keys.add(cache_key(policy, given, "weights"))
    assert len(keys) == 5
    given.anchor = (3, 48, 0)
    options = {"key": cache_key(policy, given, "weights"), "tokens": 40, "device": torch.device("cpu")}
    stored, found, _ = cached_scores(policy, given, tmp_path, **options)
    again, found_again, _ = cached_scores(policy, given, tmp_path, **options)
    assert (found, found_again) == (False, True)
    picked = [7, 2, 5]
    with torch.no_grad():
        live = policy(given.collate(picked))
    for scores in (stored, again):
        given.reference = scores
        cached_batch = given.collate(picked)
        keep = cached_batch.action_mask
        torch.testing.assert_close(cached_batch.reference.further[keep], live.further[keep])
