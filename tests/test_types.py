"""The types refuse shapes that do not fit and move as a whole."""

from dataclasses import FrozenInstanceError, fields, replace

import pytest
import torch

from shiqrun.layout import Attention, Call, Layout
from shiqrun.types import ActionScores, Example, LossTerms, Trajectories

B, T, A = 2, 5, 3
OPTIONAL = dict.fromkeys(("prompt_value", "quantile", "offset"), (B,))
OPTIONAL |= dict.fromkeys(("behaviour_logp", "acting_logp", "value_target"), (B, A))
SHAPES = {
    "input_ids": (B, T),
    "attention_mask": (B, T),
    "action_index": (B, A),
    "action_mask": (B, A),
    "rewards": (B, A),
    "group": (B,),
    **OPTIONAL,
}


REQUIRED = ("input_ids", "attention_mask", "action_index", "action_mask", "rewards", "group")


def trajectories(**changes):
    tensors = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    both = {"anchor_tokens": torch.zeros(B, A, 2), "kl_estimate": torch.zeros(())}
    both["mismatched"] = Trajectories(**{name: tensors[name] for name in REQUIRED}).with_layout(layout())
    return Trajectories(**{**tensors, **both, "reference": scores(), "proximal": scores(), **changes})


def scores(**changes):
    return ActionScores(**{"logit": torch.ones(B, A), "log_partition": torch.ones(B, A), "value": None, **changes})


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("change", ["longer", "flatter", "deeper"])
def test_trajectories_refuse_a_field_of_another_shape(name, change):
    *rest, last = SHAPES[name]
    shape = {"longer": (*rest, last + 1), "flatter": (*rest,), "deeper": (*rest, last, 1)}[change]
    if name == "input_ids" and change == "longer":
        name, shape = "attention_mask", (B, T - 1)
    with pytest.raises(ValueError, match=r"\[.*\].*\[.*\]"):
        trajectories(**{name: torch.zeros(shape)})


def test_trajectories_refuse_actions_of_another_number_of_rows_than_tokens():
    one_more = {name: torch.zeros(B + 1, *shape[1:]) for name, shape in SHAPES.items() if shape[1:] != (T,)}
    with pytest.raises(ValueError, match=r"input_ids \[2, 5\] and action_index \[3, 3\]"):
        trajectories(**one_more, reference=None)


def test_trajectories_refuse_reference_scores_of_another_shape():
    with pytest.raises(ValueError, match=r"reference has shape \[2, 4\], expected \[2, 3\]"):
        trajectories(reference=ActionScores(torch.zeros(B, A + 1), torch.zeros(B, A + 1)))


def test_a_kl_estimate_is_one_number():
    with pytest.raises(ValueError, match=r"kl_estimate has shape \[2\], expected \[\]"):
        trajectories(kl_estimate=torch.zeros(B))


@pytest.mark.parametrize("shape", [(B, A), (B, A + 1, 2), (B + 1, A, 2)])
def test_anchor_tokens_stand_at_actions(shape):
    with pytest.raises(ValueError, match="anchor_tokens"):
        trajectories(anchor_tokens=torch.zeros(shape))


def layout():
    some = torch.zeros(1, 2)
    attention = Attention((Call(1, 1, 1, torch.ones(1, 1, 1, 1)),), some, some, some, some, some, longest=1)
    return Layout(some, None, some, some, some, some, attention)


def test_a_changed_batch_has_no_layout():
    given = trajectories().with_layout(layout())
    assert given.layout is not None
    assert replace(given, group=torch.ones(B)).layout is None


@pytest.mark.parametrize("name", ["log_partition", "value", "kl", "entropy", "hits"])
def test_scores_refuse_a_field_of_another_shape(name):
    with pytest.raises(ValueError, match=rf"{name} has shape \[2, 4\], expected \[2, 3\]"):
        scores(**{name: torch.zeros(B, A + 1)})


@pytest.mark.parametrize("name", ["total", "count"])
def test_loss_terms_are_scalars(name):
    with pytest.raises(ValueError, match=rf"{name} has shape \[1\], expected \[\]"):
        LossTerms(**{"total": torch.zeros(()), "count": torch.zeros(()), name: torch.zeros(1)})


def test_an_example_refuses_rewards_for_another_number_of_completions():
    with pytest.raises(ValueError, match=r"x\.jsonl:3: 2 completions but 1 rewards"):
        Example(messages=[], completions=[[], []], rewards=[1.0], prompt_id="p", source="x.jsonl:3")
    assert Example(messages=[], completions=[[], []], rewards=None, prompt_id="p").rewards is None


@pytest.mark.parametrize("name", ["reference", "proximal"])
def test_trajectories_refuse_scores_of_another_shape(name):
    other = ActionScores(torch.zeros(B, A + 1), torch.zeros(B, A + 1))
    with pytest.raises(ValueError, match=rf"{name} has shape \[2, 4\], expected \[2, 3\]"):
        trajectories(**{name: other})


def test_fixed_scores_are_the_same_numbers_without_gradient():
    given = scores(value=torch.ones(B, A, requires_grad=True), hits=torch.ones(B, A))
    given.logit.requires_grad_()
    given.log_partition.requires_grad_()
    fixed = given.detach()
    assert not any(x.requires_grad for x in (fixed.logit, fixed.log_partition, fixed.value))
    assert torch.equal(fixed.logit, given.logit)
    assert torch.equal(fixed.value, given.value)
    assert fixed.hits is None
    assert scores().detach().value is None


def test_the_log_probability_is_the_logit_less_the_log_partition():
    both = scores(logit=torch.full((B, A), 2.0), log_partition=torch.full((B, A), 5.0))
    assert both.logp.tolist() == [[-3.0] * A] * B


def test_everything_moves_to_another_device():
    moved = trajectories().with_layout(layout()).to("meta")
    inside = dict.fromkeys(("reference", "proximal"), lambda x: x.logit) | {
        "layout": lambda x: x.attention.calls[0].mask,
        "mismatched": lambda x: x.layout.attention.calls[0].mask,
    }
    for field in fields(moved):
        value = getattr(moved, field.name)
        if field.name in ("source", "part"):
            continue
        assert inside.get(field.name, lambda x: x)(value).device.type == "meta", field.name
    assert moved.reference.log_partition.device.type == "meta"


def test_what_is_absent_stays_absent_when_moved():
    moved = trajectories(reference=None, **dict.fromkeys(OPTIONAL)).to("meta")
    assert moved.reference is moved.prompt_value is moved.behaviour_logp is moved.value_target is None
    assert scores().to("meta").value is None
    assert scores(value=torch.zeros(B, A)).to("meta").value.device.type == "meta"


@pytest.mark.parametrize("made", [trajectories, scores])
def test_nothing_can_be_changed_afterwards(made):
    value = made()
    with pytest.raises(FrozenInstanceError):
        value.logit = None
