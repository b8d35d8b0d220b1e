"""A data set and its environment in one file, as a user would add them: a policy counts on from a number.

The user says a number below 6; the policy is to say the next one, the environment answers with the one after that, and
so on. Each right number earns 0.5, a wrong one nothing and ends the episode, three right ones end it too.
"""

from shiqrun.data.source import Source
from shiqrun.environments.environment import Environment, Episode, EpisodeInfo, Step
from shiqrun.types import Example

TURNS = 3
NUMBERS = [str(n) for n in range(12)]


class CountingEpisode(Episode):
    def __init__(self, first):
        self.opening = [{"role": "user", "content": first}]
        self.number, self.right, self.turns = int(first), 0, 0

    def step(self, text):
        self.turns += 1
        if text.strip() != str(self.number + 1):
            return Step(terminated=True)
        self.number, self.right = self.number + 2, self.right + 1
        answer = [{"role": "user", "content": str(self.number)}]
        return Step(answer, reward=0.5, terminated=self.right == TURNS)

    def scripted_message(self, policy):
        return str(self.number + (1 if policy == "perfect" or self.turns == 0 else 2))

    def info(self):
        return EpisodeInfo(metrics={"solved": float(self.right == TURNS)}, record={"reached": self.number})


class CountingEnvironment(Environment):
    scripted_policies = ("perfect", "once")

    def __init__(self, max_messages):
        self.max_messages = max_messages

    def begin(self, task):
        return CountingEpisode(task.answer)


class Counting(Source):
    splits = ("train", "val")
    chat_template = (
        "<bos>{% for m in messages %}{{ ' ' }}{% if m['role'] == 'assistant' %}"
        "{% generation %}{{ m['content'] + ' <eos>' }}{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}"
        "{% endfor %}"
    )

    def __init__(self, *, max_messages: int | None):
        self.max_messages = max_messages
        self.vocabulary = ["<pad>", "<bos>", "<eos>", *NUMBERS]

    def environment(self):
        return CountingEnvironment(self.max_messages)

    def load(self, split):
        for first in NUMBERS[:6]:
            played = [self._play(first, policy) for policy in self.environment().scripted_policies]
            yield Example(
                messages=played[0][0].opening,
                completions=[said for _, said, _ in played],
                rewards=[rewards for _, _, rewards in played],
                prompt_id=f"{split} {first}",
                answer=first,
            )

    def _play(self, first, policy):
        episode, messages, rewards, ended = CountingEpisode(first), [], [], False
        while not ended:
            messages.append({"role": "assistant", "content": episode.scripted_message(policy)})
            step = episode.step(messages[-1]["content"])
            messages += step.messages
            rewards.append(step.reward)
            ended = step.terminated
        return episode, messages if messages[-1]["role"] == "assistant" else messages[:-1], rewards
