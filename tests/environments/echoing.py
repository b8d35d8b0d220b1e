"""An environment that answers any text: it counts letters, for so many turns, and can be told to fail."""

import os

from shiqrun.data.jsonl import Jsonl
from shiqrun.environments.confined import ConfinedProcess
from shiqrun.environments.environment import Environment, Episode, EpisodeFailed, Step


class EchoingEpisode(Episode):
    """Pays a tenth of a message's letters, and what its turn is worth."""

    def __init__(self, world, task):
        self.world, self.task, self.turn = world, task, 0
        self.opening = [{"role": "system", "content": "Speak."}, *task.messages]

    def step(self, text):
        self.turn += 1
        if (self.task.prompt_id, self.turn) in self.world.fails:
            raise EpisodeFailed(f"{self.task.prompt_id}: its process died")
        answer = [{"role": "user", "content": f"{len(text)} letters, you said.\n"}, {"role": "tool", "content": "ok"}]
        return Step(answer[: self.world.answers], len(text) / 10 + self.turn, terminated=self.turn == self.world.turns)

    def truncate(self, why):
        return -100.0

    def close(self):
        self.world.closed += 1


class EchoingEnvironment(Environment):
    """Episodes of so many turns; those of `fails`, (prompt id, turn), fail there, at turn 0 when they are begun."""

    def __init__(self, *, turns=3, fails=(), limit=None, answers=2):
        self.turns, self.fails, self.max_messages, self.answers = turns, set(fails), limit, answers
        self.begun = self.closed = 0

    def begin(self, task):
        self.begun += 1
        if (task.prompt_id, 0) in self.fails:
            raise EpisodeFailed(f"{task.prompt_id}: cannot be begun")
        return EchoingEpisode(self, task)


class Echoing(Jsonl):
    """Rows of a file whose prompts are tasks of the environment."""

    def environment(self):
        return EchoingEnvironment()


class AddingEpisode(Episode):
    """Two turns; the process of the environment adds up letters, and its number is told to the policy."""

    def __init__(self, process, task):
        self.process, self.turn, self.opening = process, 0, list(task.messages)

    def step(self, text):
        self.turn += 1
        found = self.process.request({"do": "add", "number": len(text)})
        answer = [{"role": "user", "content": f"process {found['process']} of {os.getpid()}"}]
        return Step(answer, float(len(text)), terminated=self.turn == 2)


class AddingEnvironment(Environment):
    """Has a confined process, which starts with the first episode."""

    def __init__(self):
        self.process = ConfinedProcess("tests.environments.adding", "the process that adds up", 10)

    def begin(self, task):
        return AddingEpisode(self.process, task)

    def close(self):
        self.process.close()


class Adding(Jsonl):
    """Rows of a file whose prompts are tasks of this environment."""

    def environment(self):
        return AddingEnvironment()
