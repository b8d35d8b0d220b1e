"""A `Run` reads what a run directory holds: settings, metrics, summary, completions and the policy."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shiqrun.errors import InputError
from shiqrun.util.jsonl import read_lines
from shiqrun.util.summary import read_summary

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ADVICE = "take the line out, or restore the file from a copy"


def load(run_dir: str | Path) -> "Run":
    """Return the run in a directory, finished or not.

    Raises:
        InputError: no such directory, or one without the files of a run.
    """
    from shiqrun.config.run_directory import load as load_config

    directory = Path(run_dir).expanduser()
    load_config(directory)  # names the runs nearby where this is none
    return Run(directory)


@dataclass(frozen=True)
class Run:
    """A `Run` is a run directory, whose files are read when they are asked for.

    Attributes:
        directory: the run directory.
    """

    directory: Path

    @property
    def settings(self) -> dict[str, Any]:
        """Return the run's config by dotted keys: `settings["algo.beta"]`."""
        from shiqrun.report.run_files import read_config

        return read_config(self.directory / ".hydra" / "config.yaml")

    @property
    def summary(self) -> dict[str, Any]:
        """Return the final metrics and where they come from; empty while the run is not finished.

        Raises:
            InputError: `summary.json` is damaged.
        """
        return read_summary(self.directory)

    @property
    def metrics(self) -> "pd.DataFrame":
        """Return a row per logged step, with a column per metric and NaN where a step has none (`metrics.csv`).

        Raises:
            InputError: nothing has been logged yet.
        """
        import pandas as pd

        return pd.read_csv(self._file("metrics.csv"))

    def completions(self) -> "pd.DataFrame":
        """Return a row per completion of each evaluation: step, prompt, completion, reward, KL (`samples.jsonl`).

        Raises:
            InputError: the run has not been evaluated on completions, or a line of the file is broken.
        """
        import pandas as pd

        return pd.DataFrame([line.row for line in read_lines(self._file("samples.jsonl"), ADVICE)])

    def policy(self) -> "PreTrainedModel":
        """Return the trained policy, on the CPU, in eval mode.

        Raises:
            InputError: the run has saved no policy yet, or its files have changed since.
        """
        from transformers import AutoModelForCausalLM

        from shiqrun.models.pretrained import load_pretrained

        path = str(self._policy())
        model: PreTrainedModel = load_pretrained(AutoModelForCausalLM, path, "model", "run")
        return model.eval()

    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """Return the policy's tokenizer, with the chat template that it was trained with.

        Raises:
            InputError: as `policy`.
        """
        from transformers import AutoTokenizer

        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(self._policy()))
        return found

    def _policy(self) -> Path:
        from shiqrun.models.saved_files import check_saved_files

        folder = self.directory / "policy"
        if not (folder / "config.json").is_file():
            what = "it made a reward model" if (self.directory / "reward_model").is_dir() else "it is not finished"
            raise InputError(f"{self.directory}: no policy/ in this run: {what}")
        check_saved_files(str(folder), "run")
        return folder

    def _file(self, name: str) -> Path:
        file = self.directory / name
        if not file.is_file():
            raise InputError(f"{file}: not there; the run has not come so far, or writes none")
        return file
