"""Episodes of a policy: the states that it saw, what a limit ends, and where its randomness comes from."""

import pytest
import torch

pytest.importorskip("bfcl_eval", reason="data=bfcl needs bfcl-eval, which the README says how to install")

from shiqrun.environments.bfcl.rendering import DONE
from shiqrun.errors import InputError
from shiqrun.sampling.play import PolicyActor, begin_episodes
from tests.support.bfcl_episodes import (
    PROSE,
    TOKENIZER,
    Lines,
    agreed,
    evaluator,
    first_turns,
    official,
    paid,
    playing,
    policy,
    right,
    rules,
    short,
    spoken,
    tasks,
    world,
)
from tests.support.completions import sampling


def actor(of, *, context=None, **options):
    return PolicyActor(of, TOKENIZER, sampling(**options), tokens=100_000, context=context)


def head(messages):
    """Tokens that sampling sees behind these messages."""
    return TOKENIZER.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]


class InTurns:
    """A first call of the reference answer, then whatever the policy says: so that results stand before it."""

    def __init__(self, policy_actor):
        self.policy, self.script = policy_actor, Lines(lambda d: (f"[{calls[0]}]" for calls in d.truth))

    def act(self, running):
        answered = [r for r in running if r.messages[-1]["role"] == "tool"]
        self.policy.act(answered)
        self.script.act([r for r in running if r not in answered])


@pytest.mark.parametrize("functions", ["none", "signatures"])
def test_the_policy_sees_the_templates_rendering_of_the_dialogue_so_far_with_results_cut_for_it_alone(functions):
    made = playing(InTurns(actor(policy())), short(), rules(functions=functions, result_chars=20))
    assert "... (" in "".join(m["content"] for p in made for m in p.messages if m["role"] == "tool")
    for p in made:
        messages = p.messages
        at = [i for i, m in enumerate(messages) if m["role"] == "assistant" and messages[i - 1]["role"] == "tool"]
        assert len(at) == len(p.completions) == 3
        for i, sample in zip(at, p.completions, strict=True):
            assert sample.prompt.tokens.tolist() == head(messages[:i])
            assert (
                messages[i]["content"]
                == sample.text
                == TOKENIZER.decode(sample.tokens, skip_special_tokens=True).strip()
            )


def texts(episodes):
    return {(p.task, n): [s.tokens.tolist() for s in p.completions] for n, p in enumerate(episodes.played)}


def test_an_episode_depends_on_its_sample_number_seed_and_policy_alone():
    two = evaluator(short(), samples_per_prompt=2).run(policy())
    agreed(two.played)
    assert texts(two) == texts(evaluator(short(), samples_per_prompt=2, batch_size=1).run(policy()))
    firsts, seconds = two.played[::2], two.played[1::2]
    assert [p.task for p in firsts] == [p.task for p in seconds] == [d.id for d in short()]
    assert all(a.messages != b.messages for a, b in zip(firsts, seconds, strict=True))
    alone = evaluator(short()[1:2]).run(policy())
    assert alone.played[0].row() == firsts[1].row()
    for other in (evaluator(short(), seed=1).run(policy()), evaluator(short()).run(policy(seed=1))):
        assert all(a.messages != b.messages for a, b in zip(firsts, other.played, strict=True))


def test_every_message_has_random_numbers_of_its_own():
    """Of a policy that likes all tokens alike in every state, nothing else tells two messages apart."""
    of = policy()
    with torch.no_grad():
        of.causal_lm.lm_head.weight.zero_()
    said = texts(evaluator(short(), samples_per_prompt=2).run(of))
    messages = [tuple(tokens) for episode in said.values() for tokens in episode]
    assert len(set(messages)) == len(messages) == 18


def test_an_episode_that_outgrows_the_context_ends_there_and_its_later_turns_are_wrong():
    (dialogue,) = short(1)
    opening = len(head([{"role": "user", "content": dialogue.questions[0]}]))
    new = 6
    of, context = policy(max_position_embeddings=opening + new), opening + new
    found = evaluator([dialogue], context=context, max_new_tokens=new).run(of)
    (p,) = agreed(found.played)
    assert len(p.completions) == 1, "the first message just fits"
    assert (p.truncated, paid(p)) == ("no room", [0.0, 0.0, 0.0])
    assert p.info.record["why"] == ["no call", "no call", "no room"], "the turn that it ends in is judged by its calls"
    assert found.metrics["episodes/no_room"] == 1
    assert found.rows(3)[0]["ended"] is False
    with pytest.raises(InputError, match=r"no episode leaves room .*eval\.max_new_tokens=6.* context of"):
        evaluator([dialogue], context=context - 1, max_new_tokens=new).run(of)


def test_a_turn_of_too_many_messages_ends_the_episode():
    (dialogue,) = short(1)
    endless = Lines(lambda d: [f"[{d.truth[1][0]}]"] * 99)
    (p,) = spoken(endless, [dialogue], rules(max_steps=4))
    assert sum(m["role"] == "assistant" for m in p.messages) == 5, "the official runner stops behind the 21st"
    assert (p.truncated, paid(p)) == ("too many steps", [0.0, 0.0, 0.0])
    just = Lines(lambda d: ([f"[{d.truth[0][0]}]"] * 4 + [PROSE]) * 3)
    (p,) = spoken(just, [dialogue], rules(max_steps=4))
    assert p.truncated == "", "steps are counted anew in every turn"
    last = Lines(lambda d: [*first_turns(2)(d)[:-1], *(f"[{d.truth[2][0]}]" for _ in range(99))])
    (p,) = spoken(last, [dialogue], rules(max_steps=4))
    assert (p.truncated, paid(p), official(p)) == ("too many steps", [1.0, 1.0, 1.0], True)


def test_under_official_prefix_a_right_turn_behind_a_wrong_one_earns_nothing():
    def late(d):
        """Prose, then the reference answer from the second turn on."""
        lines = first_turns(9)(d)
        return [PROSE, *lines[lines.index(DONE) + 1 :]]

    asked = short(20)
    independent = spoken(Lines(late), asked)
    prefix = spoken(Lines(late), asked, rules(rewards="official_prefix"))
    assert {tuple(paid(p)) for p in prefix} == {(0.0, 0.0, 0.0)}
    assert (0.0, 1.0, 1.0) in {tuple(paid(p)) for p in independent}, "where the first turn only reads"
    assert not any(right(p) for p in [*independent, *prefix])


def test_sampling_through_generate_of_transformers_plays_the_same_episode(monkeypatch):
    (dialogue,) = short(1)
    of = policy()
    fast = evaluator([dialogue]).run(of)
    monkeypatch.setattr("shiqrun.sampling.generate.decode_refusal", lambda model: "asked for by a test")
    assert texts(evaluator([dialogue]).run(of)) == texts(fast)


def test_a_dialogue_that_spells_a_special_token_is_given_up():
    """Training drops such rows: the tokenizer would take the text for the token."""
    (d,) = short(1)
    speaks = actor(policy())
    word = speaks.specials[0]
    with world(rules(max_steps=2)) as environment:
        (p,) = begin_episodes(environment, tasks([d]), 1)
        p.say(f"[echo(content={word!r})]")
        said = len(p.messages)
        speaks.act([p])
        assert (p.truncated, len(p.messages), p.completions) == ("special token", said, [])
