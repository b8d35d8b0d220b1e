"""The notebook of the docs runs from top to bottom, and finds what it says."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


def cells(kind):
    notebook = json.loads((DOCS / "notebook.ipynb").read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == kind]


@pytest.mark.slow
def test_the_notebook_runs_and_the_policy_prefers_the_rewarded_answer_by_about_the_reward_over_beta(tmp_path):
    program = "\n".join(cells("code"))
    found = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    gained = float(re.search(r"gained ([+-][\d.]+)", found.stdout)[1])
    assert 1.5 < gained < 2.5
    assert not re.search(r"(?m)^[!%]", program), "a line that is no Python"


def test_outputs_are_not_kept_in_the_notebook():
    notebook = json.loads((DOCS / "notebook.ipynb").read_text(encoding="utf-8"))
    assert not any(cell.get("outputs") for cell in notebook["cells"])
