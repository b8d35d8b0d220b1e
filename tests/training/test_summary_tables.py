"""What is printed at the end of a run."""

from shiqrun.training.summary_tables import print_metrics_table


def test_the_end_of_a_run_shows_each_figure_once_with_its_interval(tmp_path, capfd):
    before = {"val/reward": 1.0, "val/reward_ci95": 0.5}
    after = {"val/reward": 2.0, "val/reward_ci95": 0.25}
    for k, value in ((10, 0.5), (2, 0.25)):
        after |= {f"val/pass@{k}": value, f"val/pass@{k}_ci95_low": 0.125, f"val/pass@{k}_ci95_high": 0.75}
    print_metrics_table(tmp_path, before, after, 1.0)
    lines = [line for line in capfd.readouterr().out.splitlines() if "│" in line]
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]
    assert rows == [
        ["val/reward", "1", "2 ± 0.25"],
        ["val/pass@2", "", "0.25 [0.125, 0.75]"],
        ["val/pass@10", "", "0.5 [0.125, 0.75]"],
    ]
