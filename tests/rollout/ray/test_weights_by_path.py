"""What travels to an actor: no weights at its start, and of each update what is trained, in the dtype asked for."""

import pickle

import pytest
import torch

from shiqrun.models.policy import Policy, prepare
from shiqrun.models.pretrained import Pretrained
from shiqrun.rollout.ray.packed_weights import pack_weights, unpack_weights
from shiqrun.rollout.ray.sampler import PolicyRecipe, SamplerSetup
from shiqrun.rollout.transfers import in_dtype
from tests.rollout.sampled import TOKENIZER, policy, prompts
from tests.support.command_line import finished, metrics, summary
from tests.support.helpers import llama, settings
from tests.support.online_runs import RAY, begin, expect_all_there


@pytest.fixture(scope="module")
def path(home):
    """The directory of a model of 2.5 MB."""
    llama(len(TOKENIZER), 7, hidden_size=128, intermediate_size=512, max_position_embeddings=128).save_pretrained(home)
    TOKENIZER.save_pretrained(home)
    return str(home)


def recipe(path, dtype=torch.float32, **options):
    choice = Pretrained(path=path, trust_remote_code=False)
    return PolicyRecipe(choice, settings(gradient_checkpointing=True, **options), TOKENIZER, 0, dtype, None)


@pytest.mark.parametrize("rank", [0, 2])
def test_an_actor_makes_the_policy_from_the_path_of_its_model(path, rank):
    made = pickle.loads(pickle.dumps(recipe(path, lora_r=rank)))()
    model = Pretrained(path=path, trust_remote_code=False).build(TOKENIZER, 0)
    own = Policy(prepare(model, settings(lora_r=rank)))
    found, expected = dict(made.model.named_parameters()), dict(own.model.named_parameters())
    assert found.keys() == expected.keys()
    for name, p in expected.items():
        assert ".lora_A" in name or torch.equal(found[name], p)  # which is random until the first update
        assert not found[name].requires_grad
    assert not made.training


def test_what_an_actor_starts_from_has_no_weights_in_it(path):
    setup = SamplerSetup(recipe(path), TOKENIZER, prompts(), policy, None, 0)
    size = sum(p.nbytes for p in recipe(path)().parameters())
    assert size > 2_000_000
    assert len(pickle.dumps(setup)) < 100_000


def test_a_path_that_is_not_on_the_actors_machine_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"model.path=.*nowhere is not a directory"):
        recipe(str(tmp_path / "nowhere"))()


def test_weights_are_sent_in_the_dtype_that_was_asked_for():
    drawn = {"a": torch.randn(300, 2), "b": torch.randn(5).bfloat16()}
    half = unpack_weights(pack_weights(in_dtype(drawn, "bf16")))
    assert {name: value.dtype for name, value in half.items()} == dict.fromkeys("ab", torch.bfloat16)
    assert torch.equal(half["a"], drawn["a"].bfloat16())
    assert in_dtype(drawn, None) is drawn
    assert in_dtype(drawn, "fp32")["b"].dtype == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [False, True], ids=["all weights", "an adapter"])
def test_a_run_on_ray_sends_half_of_the_bytes_in_bfloat16(home, adapter):
    pytest.importorskip("ray", reason="Ray is not installed")
    run_dir, steps = home / f"run-{adapter}", 6
    words = ("rollout.weight_dtype=bf16", f"trainer.max_steps={steps}", "rollout.actors=1")
    more = ("model.lora_r=4", "algo.reference=adapter") if adapter else ()
    code, out = finished(begin(run_dir, *RAY, *words, *more), 300)
    assert code == 0, out
    told, row = expect_all_there(run_dir, steps), metrics(run_dir)[0]
    size = 2 * summary(run_dir)["parameters/trained"]
    assert row["rollout/transfer_bytes"] == size
    assert told["weight_bytes"] == told["weight_transfers"] * size
    assert told["seconds/fetching"] > 0
    assert row["rollout/transfer_seconds"] > 0
    assert row["train/acting_gap"] < 0.05
    assert (row["train/acting_gap"] > 1e-5) != adapter  # a new adapter adds 0, which has no rounding
