"""`verdict_of_groups` says in words what a sweep found: which methods improved, and which stand on the frontier."""

from collections.abc import Sequence

from shiqrun.report.answers import answers_of
from shiqrun.report.run_records import RunRecord
from shiqrun.report.seed_groups import REWARD, best_groups, group_runs
from shiqrun.report.verdict_of_methods import Curve, verdict_of

UNMEASURED = (
    "No method can be called better: the losses of different methods have different units. Set eval.reward to have "
    "answers scored."
)
CHOSEN_HERE = "The best settings were chosen on these prompts, which flatters them: shiqrun compare reports on others."


def verdict_of_groups(runs: Sequence[RunRecord]) -> list[str]:
    """Return sentences about the methods of a sweep on its validation prompts; none where nothing can be said.

    Raises:
        InputError: a file of a run is broken.
    """
    groups = [group for group in group_runs(runs) if group.finished]
    best = best_groups(groups)
    if not any(group.final(REWARD) for group in groups):
        return [UNMEASURED] if len({group.runs[0].algo for group in groups}) > 1 else []
    curves = {}
    for method, chosen in best.items():
        own = [
            (group, found) for group in groups if group.method == method if (found := answers_of(group.finished, "val"))
        ]
        at = [number for number, (group, _) in enumerate(own) if group is chosen]
        if at:
            curves[method] = Curve([found for _, found in own], at[0])
    verdict = verdict_of(curves, "validation prompts") if curves else None
    said = [] if verdict is None else verdict.sentences()
    return [*said, CHOSEN_HERE] if said and len(groups) > len(best) else said
