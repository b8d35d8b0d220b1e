"""The build writes the git commit into wheels and sdists, so that an installed package knows it without a checkout.

Everything else about the package is in pyproject.toml.
"""

import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

sys.path.insert(0, str(Path(__file__).parent))

from shiqrun.util.code_version import BUILT_FROM, git_commit

COMMIT = git_commit()
"""Asked for before the build makes folders of its own, which would count as changes."""


def write_commit(folder: Path) -> None:
    """Write the commit of this source tree into a copy of its package; leave nothing of a former build there."""
    file = folder / "shiqrun" / BUILT_FROM
    file.unlink(missing_ok=True)  # in an sdist it may be a hard link to the source tree
    if COMMIT:
        file.write_text(f"{COMMIT}\n", encoding="utf-8")


class BuildWithCommit(build_py):
    """A `build_py` that adds the commit, except to an editable install, which has its checkout."""

    def run(self) -> None:
        """Copy the modules, then write the commit beside them."""
        super().run()
        if not self.editable_mode:
            write_commit(Path(self.build_lib))


class SdistWithCommit(sdist):
    """An `sdist` that adds the commit."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        """Make the tree, then write the commit into it."""
        super().make_release_tree(base_dir, files)
        write_commit(Path(base_dir))


setup(cmdclass={"build_py": BuildWithCommit, "sdist": SdistWithCommit})
