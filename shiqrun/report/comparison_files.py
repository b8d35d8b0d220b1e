"""`write_comparison` writes the result of a comparison as `compare.json`, `compare.csv` and `compare.tex`."""

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

from shiqrun.report.comparison import MEMORY, NAMES, SECONDS_A_STEP, ComparedMethods, MethodSetting
from shiqrun.report.comparison_tables import chosen_table
from shiqrun.report.latex_files import latex_table
from shiqrun.util.atomic import write_atomic
from shiqrun.util.intervals import HALF

JSON, CSV, LATEX = "compare.json", "compare.csv", "compare.tex"
HEAD = (
    "%% Each method at the setting with the highest mean validation reward. Made by `shiqrun compare`; needs\n"
    "%% \\usepackage{booktabs}. Test prompts chose nothing; half of the 95 %% interval, over %s.\n"
)


def write_comparison(folder: Path, found: ComparedMethods) -> list[Path]:
    """Write the three files of a comparison into its directory, each as a whole; return their paths."""
    rows = [_row(s, s is found.chosen[m]) for m, settings in found.settings.items() for s in settings]
    verdict = found.verdict
    whole = {
        "chosen_by": "highest mean val/reward over seeds",
        "intervals": f"half widths of 95 % over {found.intervals_are_over}",
        "prompts": None if verdict is None else verdict.prompts,
        "seeds": None if verdict is None else verdict.seeds,
        "reference_reward": found.reference,
        "verdict": [] if verdict is None else verdict.sentences(),
        "standings": {} if verdict is None else {name: _standing(s) for name, s in verdict.standings.items()},
        "notes": found.at_an_end(),
        "left_out": found.left_out,
        "runs_without_result": found.failed,
        "settings": rows,
    }
    write_atomic(folder / JSON, json.dumps(whole, indent=1, allow_nan=False) + "\n")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([["" if row.get(c) is None else row[c] for c in columns] for row in rows])
    write_atomic(folder / CSV, text.getvalue())
    write_atomic(folder / LATEX, HEAD % found.intervals_are_over + latex_table(chosen_table(found, {})))
    return [folder / name for name in (JSON, CSV, LATEX)]


def _standing(standing: Any) -> dict[str, Any]:
    gain, under = standing.gain, standing.under
    return {
        "on_frontier": under is None,
        "above_reference": None if gain is None else _finite(gain[0]),
        f"above_reference{HALF}": None if gain is None else _finite(gain[1]),
        "under": None if under is None else {"method": under[0], "reward": under[1], f"reward{HALF}": under[2]},
    }


def _row(setting: MethodSetting, chosen: bool) -> dict[str, Any]:
    """Return the row of a setting: its keys as in the config, and every number with half of its interval."""
    row: dict[str, Any] = {"method": setting.method, **setting.values}
    row |= {"seeds": len(setting.runs), "runs": setting.jobs, "chosen": int(chosen)}
    for split in ("val", "test"):
        for name, column in NAMES.items():
            found = setting.estimate(split, name)
            row[f"{split}/{column}"] = None if found is None else _finite(found.mean)
            row[f"{split}/{column}{HALF}"] = None if found is None else _finite(found.half)
    regret = setting.mean("test/regret")
    row |= {} if regret is None else {"test/regret": regret}
    return row | {SECONDS_A_STEP: setting.mean(SECONDS_A_STEP), MEMORY: setting.mean(MEMORY)}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
