"""How setuptools builds this project: the package `d2o`, and inside it, in `d2o/_bench/`, all that the commands need.

The benchmark's folders have names that others have too (`eval`, `models`, `configs`), so none of them becomes a package
of the environment that the wheel is installed into. An editable install has them where they are.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools.command.build_py import build_py

INSIDE = ("baselines", "configs", "eval", "models", "scripts", "run_pred.py", "eval_long_bench.py")
OUTSIDE = ("README.md", "LICENSE", "requirements.txt", "pyproject.toml")


def bundled() -> list[str]:
    """The files that go along, relative to the repository's root."""
    found = []
    for name in INSIDE:
        place = Path(name)
        files = place.rglob("*") if place.is_dir() else [place]
        found += [str(file) for file in files if file.is_file() and "__pycache__" not in file.parts]
    return sorted(found)


class BuildPy(build_py):
    """setuptools' own, and the copy of what goes along."""

    def run(self) -> None:
        """Build from nothing: what an earlier version left in build/ does not get into the wheel."""
        if not self.editable_mode:
            shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()
        for name in [] if self.editable_mode else bundled():
            target = Path(self.build_lib, "d2o", "_bench", name)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(name, target)

    def get_source_files(self) -> list[str]:
        """What a source distribution has to hold besides."""
        return [*super().get_source_files(), *bundled(), *OUTSIDE]
