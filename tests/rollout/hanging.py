"""A reward that gives no answer to some prompts."""

import os
import time
from pathlib import Path

from shiqrun.rewards.programs import Programs


class Hanging(Programs):
    """Hangs at a few prompts, at each once or always, in the processes of actors alone; notes where in a directory.

    Args:
        notes: the directory; a file for each prompt, a line for each time.
        every: of so many prompts one is such.
        once: whether the second time it answers.
    """

    def __init__(self, *, right: float, wrong: float, notes: str, every: int, once: bool) -> None:
        super().__init__(right=right, wrong=wrong)
        self.notes, self.every, self.once = Path(notes), every, once
        self.acts = Path("/proc/self/cmdline").read_text().startswith("ray::")

    def score(self, items, progress=lambda x, _: x):
        for number in {sum(item.prompt[0]["content"].encode()) for item in items} if self.acts else ():
            note = self.notes / str(number)
            if number % self.every == 0 and not (self.once and note.exists()):
                with note.open("a") as file:
                    print(os.getpid(), file=file, flush=True)
                time.sleep(3600)
        return super().score(items, progress)
