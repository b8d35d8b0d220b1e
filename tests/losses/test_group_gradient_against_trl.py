"""GRPO and RLOO against TRL's trainers: loss, advantages and gradients of what TRL samples from a real small model."""

from functools import partial

import pytest
import torch
from datasets import Dataset
from torch.testing import assert_close

from shiqrun import losses
from shiqrun.types import Trajectories
from tests.losses.test_against_trl import BETA, model, scores, tokenizer, trl  # noqa: F401

GROUP, PROMPTS, TOKENS = 4, 3, 6


def earned(completion_ids):
    """A reward that depends on all tokens, and of which some completions earn the same."""
    return float(sum(completion_ids) % 3) / 2


def sampled(trl, folder, name, **settings):  # noqa: F811
    """(trainer, inputs): TRL's trainer with a batch that it has sampled, whose model has moved since."""
    made, config = {"grpo": (trl.GRPOTrainer, trl.GRPOConfig), "rloo": (trl.RLOOTrainer, trl.RLOOConfig)}[name]
    args = config(
        str(folder),
        use_cpu=True,
        bf16=False,
        report_to=[],
        disable_dropout=True,
        num_generations=GROUP,
        per_device_train_batch_size=GROUP * PROMPTS,
        max_completion_length=TOKENS,
        num_iterations=2,
        shuffle_dataset=False,
        **settings,
    )
    rows = Dataset.from_list([{"prompt": f"w{3 + i} w{7 + i}"} for i in range(PROMPTS)])

    def reward(completion_ids, **_):
        return [earned(row) for row in completion_ids]

    policy = model(0)
    policy.config._name_or_path = str(folder / "reference")  # TRL loads the reference by the policy's name
    model(1).save_pretrained(folder / "reference")
    torch.manual_seed(5)
    trainer = made(policy, reward, args, train_dataset=rows, processing_class=tokenizer())
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1  # which `train` would set
    inputs = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    with torch.no_grad():
        acting = scores(trainer.model, trajectories(inputs))
        torch.manual_seed(9)
        for weight in trainer.model.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    return trainer, inputs, acting


def trajectories(inputs, acting=None):
    """What TRL has sampled, as trajectories with the rewards that it was given."""
    ids, mask = inputs["completion_ids"], inputs["completion_mask"].bool()
    attention = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], -1).bool()
    first, width = inputs["prompt_ids"].shape[1], ids.shape[1]
    rewards = torch.zeros(ids.shape)
    rewards[:, 0] = torch.tensor([earned(row[own].tolist()) for row, own in zip(ids, mask, strict=True)])
    return Trajectories(
        input_ids=torch.cat([inputs["prompt_ids"], ids], -1),
        attention_mask=attention,
        action_index=(first + torch.arange(width)).expand(ids.shape),
        action_mask=mask,
        rewards=rewards,
        group=inputs["prompt_ids"][:, 0],  # TRL has shuffled the rows
        behaviour_logp=None if acting is None else acting.logp.detach(),
        proximal=None if acting is None else acting.detach(),
    )


def assert_equal_to_trl(trainer, inputs, acting, loss, reference):
    network = trainer.model
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    theirs = trainer._compute_loss(network, inputs)
    expected = torch.autograd.grad(theirs, weights)
    batch = trajectories(inputs, acting)
    assert len({*batch.rewards[:, 0].tolist()}) > 1
    assert len({*batch.action_mask.sum(-1).tolist()}) > 1
    terms = loss(batch, scores(network, batch), reference(batch))
    clipped = terms.metrics["clip_fraction"]
    assert 0 < float(clipped[0]) < float(clipped[1])
    ours = terms.total / terms.count
    assert_close(ours, theirs, rtol=1e-4, atol=1e-5)  # float32 sums in another order
    for found, wanted in zip(torch.autograd.grad(ours, weights), expected, strict=True):
        assert_close(found, wanted, rtol=1e-3, atol=1e-5)  # the same, through the whole network


MEANS = {"action": "bnpo", "trajectory": "grpo"}
"""TRL's names of the means over all tokens, and over each completion's."""


@pytest.mark.parametrize("units", MEANS)
@pytest.mark.parametrize("scale", ["group", "none"])
def test_grpo_is_trls_loss_where_the_kl_has_no_weight(trl, tmp_path, units, scale):  # noqa: F811
    """TRL's KL stands in the loss: at its beta of 0 ours has the acting policy as the reference, so that D is 0."""
    clips = {"epsilon": 0.05, "epsilon_high": 0.12}
    trainer, inputs, acting = sampled(
        trl, tmp_path, "grpo", beta=0.0, loss_type=MEANS[units], scale_rewards=scale, **clips
    )
    own = {"clip_low": 0.05, "clip_high": 0.12, "units": units, "scale": scale}
    loss = partial(losses.grpo, beta=BETA, **own)
    assert_equal_to_trl(trainer, inputs, acting, loss, lambda batch: acting)


def test_rloo_is_trls_loss_with_the_kl_in_the_reward(trl, tmp_path):  # noqa: F811
    trainer, inputs, acting = sampled(trl, tmp_path, "rloo", beta=BETA, epsilon=0.1, epsilon_high=0.3)

    @torch.no_grad()
    def reference(batch):
        return scores(trainer.ref_model, batch)

    loss = partial(losses.rloo, beta=BETA, clip_low=0.1, clip_high=0.3)
    assert_equal_to_trl(trainer, inputs, acting, loss, reference)
    far = reference(trajectories(inputs)).logp - acting.logp
    assert float(far.abs().mean()) > 0.1
