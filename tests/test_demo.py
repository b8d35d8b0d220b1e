"""What `make demo` promises, by its own two commands."""

import pytest

from shiqrun.cli import main
from tests.support.command_line import metrics, summary


@pytest.mark.slow
def test_the_demo_takes_four_fifths_of_the_regret_on_maps_it_never_saw(workplace, capsys):
    shared = ("logger=none", "seed=0")
    assert main(["train", "experiment=demo_reference", "run_dir=reference", *shared]) == 0
    assert main(["train", "experiment=demo", "model.path=reference/policy", "run_dir=shiq", *shared]) == 0
    before, after = metrics(workplace / "shiq")[0], summary(workplace / "shiq")
    assert after["val/regret"] < 0.2 * before["val/regret"]
    assert after["val/illegal"] < before["val/illegal"] < 0.02
    shown = capsys.readouterr().out
    assert "Episodes of the trained policy" in shown
    assert "optimum" in shown
