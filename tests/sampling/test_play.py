"""Episodes of a policy: the states that it saw, what a limit ends, and where its randomness comes from."""

import pytest
import torch

pytest.importorskip("bfcl_eval", reason="data=bfcl needs bfcl-eval, which the README says how to install")

from shiqrun.environments.bfcl.episode import Episode
from shiqrun.environments.bfcl.harness import Harness
from shiqrun.environments.bfcl.shown import DONE
from shiqrun.errors import InputError
from shiqrun.sampling.play import Playing, PolicyVoice
from tests.evaluation.made import sampling
from tests.rollout.made import (
    PROSE,
    TOKENIZER,
    Lines,
    agreed,
    evaluator,
    first_turns,
    playing,
    policy,
    rules,
    short,
    spoken,
)


def voice(of, *, context=None, **options):
    return PolicyVoice(of, TOKENIZER, sampling(**options), tokens=100_000, context=context)


def head(messages):
    """Tokens that sampling sees behind these messages."""
    return TOKENIZER.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]


class InTurns:
    """A first call of the reference answer, then whatever the policy says: so that results stand before it."""

    def __init__(self, policy_voice):
        self.policy, self.script = policy_voice, Lines(lambda d: (f"[{calls[0]}]" for calls in d.truth))

    def speak(self, playing):
        answered = [p for p in playing if p.episode.messages[-1]["role"] == "tool"]
        self.policy.speak(answered)
        self.script.speak([p for p in playing if p not in answered])


@pytest.mark.parametrize("functions", ["none", "signatures"])
def test_the_policy_sees_the_templates_rendering_of_the_dialogue_so_far_with_results_cut_for_it_alone(functions):
    made = playing(InTurns(voice(policy())), short(), rules(functions=functions, result_chars=20))
    assert "... (" in "".join(m["content"] for p in made for m in p.episode.messages if m["role"] == "tool")
    for p in made:
        messages = p.episode.messages
        at = [i for i, m in enumerate(messages) if m["role"] == "assistant" and messages[i - 1]["role"] == "tool"]
        assert len(at) == len(p.samples) == 3
        for i, sample in zip(at, p.samples, strict=True):
            assert sample.prompt.tokens.tolist() == head(messages[:i])
            assert (
                messages[i]["content"]
                == sample.text
                == TOKENIZER.decode(sample.tokens, skip_special_tokens=True).strip()
            )


def texts(episodes):
    return {(p.sample, n): [s.tokens.tolist() for s in p.samples] for n, p in enumerate(episodes.played)}


def test_an_episode_depends_on_its_sample_number_seed_and_policy_alone():
    two = evaluator(short(), samples_per_prompt=2).run(policy())
    agreed(two.played)
    assert texts(two) == texts(evaluator(short(), samples_per_prompt=2, batch_size=1).run(policy()))
    firsts, seconds = two.played[::2], two.played[1::2]
    assert [p.sample for p in firsts] == [p.sample for p in seconds] == [d.id for d in short()]
    assert all(a.record["messages"] != b.record["messages"] for a, b in zip(firsts, seconds, strict=True))
    alone = evaluator(short()[1:2]).run(policy())
    assert alone.played[0].record == firsts[1].record
    for other in (evaluator(short(), seed=1).run(policy()), evaluator(short()).run(policy(seed=1))):
        assert all(a.record["messages"] != b.record["messages"] for a, b in zip(firsts, other.played, strict=True))


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
    assert len(p.samples) == 1, "the first message just fits"
    assert (p.record["ended"], p.rewards) == ("no room", [0.0, 0.0, 0.0])
    assert p.record["why"] == ["no call", "no call", "no room"], "the turn that it ends in is judged by its calls"
    assert found.metrics["episodes/no_room"] == 1
    assert found.rows(3)[0]["ended"] is False
    with pytest.raises(InputError, match=r"no sample leaves room .*eval\.max_new_tokens=6.* context of"):
        evaluator([dialogue], context=context - 1, max_new_tokens=new).run(of)


def test_a_turn_of_too_many_messages_ends_the_episode():
    (dialogue,) = short(1)
    endless = Lines(lambda d: [f"[{d.truth[1][0]}]"] * 99)
    (p,) = spoken(endless, [dialogue], rules(max_steps=4))
    assert sum(m["role"] == "assistant" for m in p.record["messages"]) == 5, "the official runner stops behind the 21st"
    assert (p.record["ended"], p.rewards) == ("too many steps", [0.0, 0.0, 0.0])
    just = Lines(lambda d: ([f"[{d.truth[0][0]}]"] * 4 + [PROSE]) * 3)
    (p,) = spoken(just, [dialogue], rules(max_steps=4))
    assert p.record["ended"] == "", "steps are counted anew in every turn"
    last = Lines(lambda d: [*first_turns(2)(d)[:-1], *(f"[{d.truth[2][0]}]" for _ in range(99))])
    (p,) = spoken(last, [dialogue], rules(max_steps=4))
    assert (p.record["ended"], p.rewards, p.official) == ("too many steps", [1.0, 1.0, 1.0], True)


def test_under_official_prefix_a_right_turn_behind_a_wrong_one_earns_nothing():
    def late(d):
        """Prose, then the reference answer from the second turn on."""
        lines = first_turns(9)(d)
        return [PROSE, *lines[lines.index(DONE) + 1 :]]

    asked = short(20)
    independent = spoken(Lines(late), asked)
    prefix = spoken(Lines(late), asked, rules(rewards="official_prefix"))
    assert {tuple(p.rewards) for p in prefix} == {(0.0, 0.0, 0.0)}
    assert (0.0, 1.0, 1.0) in {tuple(p.rewards) for p in independent}, "where the first turn only reads"
    assert not any(p.right for p in [*independent, *prefix])


def test_sampling_through_generate_of_transformers_plays_the_same_episode(monkeypatch):
    (dialogue,) = short(1)
    of = policy()
    fast = evaluator([dialogue]).run(of)
    monkeypatch.setattr("shiqrun.sampling.generate.refusal", lambda model: "asked for by a test")
    assert texts(evaluator([dialogue]).run(of)) == texts(fast)


def test_a_dialogue_that_spells_a_special_token_is_given_up():
    """Training drops such rows: the tokenizer would take the text for the token."""
    (d,) = short(1)
    speaks = voice(policy())
    word = speaks.specials[0]
    with Harness() as harness:
        p = Playing(Episode(d, harness, rules(max_steps=2)), 0)
        p.episode.say(f"[echo(content={word!r})]")
        said = len(p.episode.messages)
        speaks.speak([p])
        assert (p.episode.ended, len(p.episode.messages), p.samples) == ("special token", said, [])
