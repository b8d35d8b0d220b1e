"""What the tests here share: samples real and hand-made, rules, episodes played to the end."""

from dataclasses import replace
from functools import lru_cache

from shiqrun.environments.bfcl.corruptions import corrupt_turn, turn_messages
from shiqrun.environments.bfcl.dialogue import Dialogue, Rules
from shiqrun.environments.bfcl.samples import BfclSample, installed_data, load_samples

RULES = Rules(rewards="independent", max_steps=20, functions="names", result_chars=None, arguments="said")


@lru_cache(maxsize=1)
def real():
    """The 200 samples."""
    return load_samples(installed_data())


def with_truth(sample, truth):
    """The sample with another reference answer, asked as many questions."""
    questions = [f"question {n}" for n in range(len(truth))]
    return replace(sample, questions=questions, row=sample.row | {"ground_truth": truth})


def calculator(*truth):
    """A hand-made sample of the class that has no state; `truth` by turn."""
    row = {"id": "multi_turn_base_900", "initial_config": {}, "involved_classes": ["MathAPI"], "ground_truth": truth}
    documents = [{"name": name, "parameters": {}} for name in ("add", "power", "square_root")]
    return BfclSample(
        "multi_turn_base_900", 900, [f"question {n}" for n in range(len(truth))], row, documents, "hand:1"
    )


def reference_messages(sample, together="one"):
    """What the reference answer says, by turn."""
    return [turn_messages(calls, together) for calls in sample.truth]


def wrong_read():
    """Sample 0 with one mistake in its second turn that changes no state."""
    sample = real()[0]
    turns = reference_messages(sample)
    assert turns[1][1] == "[grep(file_name='final_report.pdf',pattern='budget analysis')]"
    turns[1][1] = "[grep(file_name='final_report.pdf',pattern='nothing')]"
    return sample, turns


def mistaken_messages(sample, together, rng):
    """By turn: every second one with a mistake in it, on average."""
    turns = []
    for n, calls in enumerate(sample.truth):
        others = [call for m, turn in enumerate(sample.truth) if m != n for call in turn]
        turns.append(
            corrupt_turn(calls, others, together, rng)[0] if rng.random() < 0.5 else turn_messages(calls, together)
        )
    return turns


def played(sample, turns, harness, rules=RULES):
    """The episode that says these messages, closed."""
    episode = Dialogue(sample, harness, rules)
    for text in (text for turn in turns for text in turn):
        if not episode.done:
            episode.say(text)
    episode.close()
    return episode
