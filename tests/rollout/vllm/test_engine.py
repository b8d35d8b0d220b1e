"""`rollout=vllm` against a real HTTP server that samples by our decoder from the weights it was sent."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from shiqrun.batching.steps import Batches
from shiqrun.rollout.mixing import as_rows
from tests.rollout.sampled import policy, told
from tests.rollout.vllm.served import EVERY, N, engine, other_weights, saved, with_adapter
from tests.support.vllm_server import serving

EACH = [other_weights(seed) for seed in (0, 1, 2)]


@pytest.fixture(scope="module")
def model(home):
    return saved(home / "model")


@pytest.fixture
def server(model):
    with serving(model) as found:
        yield found


def scored(by, trajectories):
    """Log-probabilities of the sampled tokens under a policy at temperature 1."""
    rows, found = as_rows(trajectories, 0, together=False, source="online"), {}
    with torch.no_grad():
        for numbers, batch in Batches(rows, tokens=10_000):
            for n, row, mask in zip(numbers, by(batch).logp, batch.action_mask, strict=True):
                found[n] = row[mask].numpy()
    return [found[n] for n in range(len(trajectories))]


def run(made, steps=4):
    """Batches of the first steps, with what training does around them."""
    found = []
    for step in range(1, steps + 1):
        version = step - 1
        if version % EVERY == 0:
            weights = EACH[version // EVERY % 3][1]
            made.policy.model.load_state_dict(weights)
            made.publish(version, weights)
        found.append(made.next_batch(N, step=step))
        made.acknowledge(step)
    return found


def test_what_it_gives_is_sampled_by_the_weights_it_was_sent_with_their_log_probabilities(tmp_path, server):
    with engine(tmp_path, server.url) as made:
        found = run(made)
        counts, metrics = made.stats(), made.metrics()
    assert [len(batch) for batch in found] == [N] * 4
    assert [{t.version for t in batch} for batch in found] == [{0}, {0}, {2}, {2}]
    for k in (0, 1):
        of_version = [t for batch in found[2 * k : 2 * k + 2] for t in batch]
        for t, logp in zip(of_version, scored(EACH[k][0], of_version), strict=True):
            np.testing.assert_allclose(t.policy_logp, logp, atol=2e-5)
            np.testing.assert_array_equal(t.behaviour_logp, t.policy_logp)  # at temperature 1
    assert (counts["accepted"], counts["trained"], counts["lost"], counts["duplicated"]) == (32, 32, 0, 0)
    assert 0 <= counts["gap"] <= counts["gap_max"] < 2e-5
    assert metrics["gap"] < 2e-5


def test_a_group_shares_its_prompt_and_its_request_and_its_samples_differ(tmp_path, server):
    with engine(tmp_path, server.url, max_new_tokens=12) as made:
        found = [t for batch in run(made, 2) for t in batch]
    for one, other in zip(found[::2], found[1::2], strict=True):
        assert (one.group, one.prompt_id) == (other.group, other.prompt_id)
    different = [one.completion != other.completion for one, other in zip(found[::2], found[1::2], strict=True)]
    assert sum(different) > len(different) // 2
    asked = [content for path, content in server.requests if path == "/v1/completions"]
    assert [a["n"] for a in asked] == [2] * 8
    assert len({a["seed"] for a in asked}) == 8


def test_equal_runs_sample_the_same(tmp_path, server):
    found = []
    for name in "ab":
        with engine(tmp_path / name, server.url) as made:
            found.append([t for batch in run(made) for t in batch])
    assert told(found[0]) == told(found[1])


def test_transfers_are_counted_in_bytes_and_seconds(tmp_path, server):
    size = sum(p.nbytes for p in EACH[0][1].values())
    with engine(tmp_path, server.url) as made:
        run(made)
        logged, again, counts = made.metrics(), made.metrics(), made.stats()
    assert size <= logged["transfer_bytes"] <= size + 20_000  # configs beside the weights
    assert logged["transfer_seconds"] > 0
    assert "transfer_bytes" not in again
    assert counts["weight_transfers"] == 2
    assert counts["weight_bytes"] == 2 * logged["transfer_bytes"]
    assert counts["seconds/weights"] == pytest.approx(2 * logged["transfer_seconds"])


def test_weights_of_bfloat16_are_half_as_many_bytes_and_the_gap_says_what_they_cost(tmp_path, server):
    with engine(tmp_path, server.url, weight_dtype="bf16", max_gap=0.2) as made:
        made.publish(0, EACH[0][1])
        sent = load_file(tmp_path / "rollout_weights" / "0" / "model.safetensors")
        found, counts = made.next_batch(N, step=1), made.stats()
    assert {value.dtype for value in sent.values()} == {torch.bfloat16}
    assert sum(v.nbytes for v in sent.values()) == sum(v.nbytes for v in EACH[0][1].values()) // 2
    assert 1e-4 < counts["gap"] < 0.1
    rounded = policy(0)
    rounded.model.load_state_dict({name: value.float() for name, value in sent.items()})
    np.testing.assert_allclose(
        np.concatenate(scored(rounded, found)), np.concatenate([t.policy_logp for t in found]), atol=2e-5
    )


def test_of_a_policy_with_an_adapter_the_adapter_alone_travels(tmp_path, model):
    acting, weights = with_adapter()
    later, more = with_adapter(5)
    with serving(model, lora=True, dev=False) as server, engine(tmp_path, server.url, acting) as made:
        made.publish(0, weights)
        first, gap = made.next_batch(N, step=1), made.stats()["gap"]
        named = list(server.adapters)
        acting.load_state_dict(later.state_dict())
        made.publish(2, more)
        made.next_batch(N, step=2)  # by the first weights, sampled with the others
        found, counts = made.next_batch(N, step=3), made.stats()
        assert [len(named), len(server.adapters)] == [1, 1]
        assert named != list(server.adapters)
    files = sum(value.nbytes for value in weights.values())
    assert files < counts["weight_bytes"] / 2 < files + 20_000
    assert gap < 2e-5
    assert counts["gap_max"] < 1e-4
    (used,) = {content["model"] for path, content in server.requests if path == "/v1/completions"} - {*named}
    assert used.startswith("shiqrun-")
    np.testing.assert_allclose(
        np.concatenate(scored(with_adapter()[0], first)), np.concatenate([t.policy_logp for t in first]), atol=2e-5
    )
    assert {t.version for t in found} == {2}


def test_a_tempered_distribution_and_the_models_own_are_both_kept(tmp_path, model):
    options = {"temperature": [0.3, 0.6], "top_p": 0.9}
    with serving(model, mode="processed_logprobs") as server, engine(tmp_path, server.url, **options) as made:
        made.publish(0, EACH[0][1])
        found = made.next_batch(N, step=1)
        assert made.stats()["gap"] < 2e-5
    for t, logp in zip(found, scored(EACH[0][0], found), strict=True):
        np.testing.assert_allclose(t.policy_logp, logp, atol=2e-5)
    cold, own = (np.concatenate([getattr(t, name) for t in found]) for name in ("behaviour_logp", "policy_logp"))
    assert cold.mean() > own.mean() + 0.2
    assert (cold <= 0).all()


def test_weights_that_a_run_resumes_with_are_sent_and_compared_only_with_the_policy_that_has_them(tmp_path, server):
    with engine(tmp_path, server.url) as made:
        made.publish(0, EACH[1][1])  # the policy is EACH[0], a step further
        assert {t.version for t in made.next_batch(N, step=2)} == {0}
        assert "gap" not in made.stats()
