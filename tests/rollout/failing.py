"""Rewards of runs of several ranks: one that tells answers apart, and one that fails on one rank."""

from shiqrun.errors import InputError, TrainingError
from shiqrun.rewards.programs import Programs
from shiqrun.util import ranks

ERRORS = {"input": InputError, "training": TrainingError, "defect": ValueError}


class Failing(Programs):
    """Fails on rank `where` when it is asked for the fourth time, with the error of a name in `ERRORS`."""

    def __init__(self, *, right: float, wrong: float, where: int, error: str) -> None:
        super().__init__(right=right, wrong=wrong)
        self.where, self.error, self.asked = where, error, 0

    def score(self, items, progress=lambda x, _: x):
        self.asked += 1
        if self.asked == 4 and ranks.rank() == self.where:
            raise ERRORS[self.error]("the reward has no answer here")
        return super().score(items, progress)


class Varied(Programs):
    """Pays for the letters of an answer, whatever the program does: between -1 and 0."""

    def score(self, items, progress=lambda x, _: x):
        return [-(sum(item.text.encode()) % 7) / 7 for item in items]
