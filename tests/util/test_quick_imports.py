"""Lightning starts without matplotlib, and matplotlib can be imported afterwards."""

import subprocess
import sys

PROGRAM = """
import sys
from shiqrun.util.quick_imports import without_pictures

with without_pictures():
    import lightning.pytorch
print("matplotlib" in sys.modules)
import matplotlib.pyplot
from lightning_utilities.core.imports import RequirementCache
print(bool(RequirementCache("matplotlib")))
"""


def test_lightning_is_imported_without_matplotlib_which_stays_available():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
