"""`python -m shiqrun.tracking.workspace TEAM/PROJECT` saves a W&B workspace that shows the main metrics, by section."""

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from shiqrun.tracking.panels import SECTIONS

AXIS, NAME = "trainer/global_step", "shiqrun"
USAGE = "usage: python -m shiqrun.tracking.workspace TEAM/PROJECT   (W&B's names; it saves a workspace there, once)"


def main(words: Sequence[str]) -> int:
    """Save the workspace in the project that the words name; return the exit code: 0, or 2 for what cannot work."""
    entity, _, project = words[0].partition("/") if len(words) == 1 else ("", "", "")
    if not entity or not project or "/" in project:
        print(USAGE, file=sys.stderr)
        return 2
    if find_spec("wandb_workspaces") is None:
        print("wandb-workspaces is not installed; pip install 'shiqrun[workspace]'", file=sys.stderr)
        return 2
    import wandb

    try:
        print(workspace(entity, project).save().url)
    except (wandb.errors.Error, ValueError, ConnectionError) as error:
        reason = str(error).strip().partition("\n")[0]
        print(f"W&B did not take the workspace for {entity}/{project}: {reason}", file=sys.stderr)
        return 2
    return 0


def workspace(entity: str, project: str) -> Any:
    """Return the workspace: a section for each part of `panels.SECTIONS`, open, a line plot for each metric."""
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    sections = [
        ws.Section(name=title, panels=[wr.LinePlot(x=AXIS, y=[name], title=name) for name in names], is_open=True)
        for title, names in SECTIONS.items()
    ]
    settings = ws.WorkspaceSettings(x_axis=AXIS)
    return ws.Workspace(
        entity=entity, project=project, name=NAME, sections=sections, settings=settings, auto_generate_panels=True
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
