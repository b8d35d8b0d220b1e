"""What one episode may use up, and that nothing but a limit is taken for one."""

import os
import signal
import subprocess
import sys

import pytest

from shiqrun.environments.bfcl import harness as module
from shiqrun.environments.bfcl.dialogue import Dialogue
from shiqrun.environments.bfcl.harness import STOPPED, Harness, Verdict
from shiqrun.environments.replayed import REPLAY
from shiqrun.errors import TrainingError
from tests.environments.bfcl.dialogues import RULES, calculator, real, reference_messages

pytest.importorskip("bfcl_eval", reason="the functions of BFCL come with bfcl-eval")

ENDLESS = "power(base=9, exponent=100000000)"
LITTLE = 0.5


def test_a_signal_for_the_run_stops_no_call():
    """As in a terminal: Ctrl-C goes to the whole group, and the trainer finishes its step."""
    script = (
        "import os, signal\n"
        "from shiqrun.environments.bfcl.harness import Harness\n"
        "from tests.environments.bfcl.dialogues import RULES, played, real, reference_messages\n"
        "for number in (signal.SIGINT, signal.SIGTERM): signal.signal(number, signal.SIG_IGN)\n"
        "with Harness() as harness:\n"
        "    session = harness.open(real()[0])\n"
        "    for number in (signal.SIGINT, signal.SIGTERM):\n"
        "        os.killpg(0, number)\n"
        "        os.kill(harness._process.pid, number)\n"
        "    print([session.run(c) for c in real()[0].truth[0]], session.end_turn(), session.stopped, harness.ended)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, start_new_session=True
    )
    assert "Verdict(counted=True, right=True, why='') 0 0" in done.stdout


def test_a_process_that_something_else_kills_is_replaced_without_a_trace():
    with Harness() as harness:
        sample = real()[0]
        session = harness.open(sample)
        for turn in sample.truth:
            for call in turn:
                os.kill(harness._process.pid, signal.SIGKILL)
                assert session.run(call) != STOPPED
            os.kill(harness._process.pid, signal.SIGKILL)
            assert session.end_turn() == Verdict(True, True, "")
        assert session.stopped == 0
        assert harness.ended == sum(map(len, sample.truth)) + len(sample.truth)


def test_a_process_that_is_killed_each_time_ends_the_run(monkeypatch):
    with Harness() as harness:
        session = harness.open(real()[0])
        start = Harness._start

        def doomed(self):
            process = start(self)
            os.kill(process.pid, signal.SIGKILL)
            return process

        monkeypatch.setattr(Harness, "_start", doomed)
        os.kill(harness._process.pid, signal.SIGKILL)
        with pytest.raises(TrainingError, match="ended with exit code -9, twice, at multi_turn_base_0"):
            session.run(real()[0].truth[0][0])


def test_what_has_passed_once_may_take_longer_when_it_is_made_again():
    with Harness(1.0) as harness:
        session = harness.open(calculator(["add(a=1, b=2)"]))
        slow = "power(base=9, exponent=1500000)"
        assert session.run(slow) != STOPPED
        harness.cpu_seconds = session.seconds / 2  # as if the machine were slower by now
        harness.close()
        assert session.run("add(a=1, b=2)") == '{"result": 3}'
        assert session.end_turn() == Verdict(True, True, "")
        assert session.stopped == 0


def test_a_session_that_cannot_be_made_again_is_given_up_and_spoils_no_other():
    with Harness(1.0) as harness:
        session, other = harness.open(calculator(["add(a=1, b=2)"])), harness.open(calculator(["add(a=1, b=2)"]))
        assert session.run("power(base=9, exponent=1500000)") != STOPPED
        harness.cpu_seconds = session.seconds / REPLAY / 5
        harness.close()
        assert session.run("add(a=1, b=2)") == STOPPED
        assert session.exhausted
        ended = harness.ended
        assert session.run("add(a=1, b=2)") == STOPPED  # and nothing is tried again
        assert session.end_turn() == Verdict(True, False, "stopped")
        assert harness.ended == ended
        harness.cpu_seconds = 1.0
        harness.close()
        assert other.run("add(a=1, b=2)") == '{"result": 3}'
        assert other.end_turn() == Verdict(True, True, "")


def test_an_episode_of_stopped_calls_ends():
    with Harness(LITTLE) as harness:
        episode = Dialogue(calculator(["add(a=1, b=2)"], ["add(a=1, b=2)"]), harness, RULES)
        episode.say(f"[{', '.join([ENDLESS] * 60)}]")
        assert harness.ended == module.MOST_STOPPED
        assert episode.ended == "too much time or memory"
        assert episode.rewards() == [0, 0]
        assert [m["content"] for m in episode.messages if m["role"] == "tool"] == [STOPPED] * module.MOST_STOPPED
        assert episode.right == episode.official() is False


def test_an_episode_of_slow_calls_ends(monkeypatch):
    monkeypatch.setattr(module, "MOST_SECONDS", 0.2)
    with Harness() as harness:
        episode = Dialogue(calculator(["add(a=1, b=2)"]), harness, RULES)
        episode.say("[" + ", ".join(["power(base=9, exponent=300000)"] * 60) + "]")
        answers = [m for m in episode.messages if m["role"] == "tool"]
        assert 0 < len(answers) < 60
        assert episode.ended == "too much time or memory"
        assert harness.ended == 0


def test_a_long_result_ends_where_no_reference_result_does():
    from shiqrun.environments.bfcl.backends import LONGEST_RESULT

    with Harness() as harness:
        session = harness.open(next(s for s in real() if "GorillaFileSystem" in s.classes))
        session.run("touch(file_name='long.txt')")
        session.run(f"echo(content={'x' * 15000!r}, file_name='long.txt')")
        for name in ("second.txt", "third.txt"):
            session.run(f"touch(file_name={name!r})")
        whole = session.run("cat(file_name='long.txt')")
        assert LONGEST_RESULT - 2000 < len(whole) <= LONGEST_RESULT
        longest = 0
        for sample in real()[::4]:
            episode = Dialogue(sample, harness, RULES)
            for turn in reference_messages(sample):
                for text in turn:
                    episode.say(text)
            longest = max([longest, *(len(m["content"]) for m in episode.messages if m["role"] == "tool")])
        assert 100 < longest < LONGEST_RESULT / 4
