"""Cards of methods, read off their docstrings and configs: paper, reference, variant, defaults, intended differences.

Nothing is imported to make them, so that they are quick: the sources are parsed.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from pathlib import Path

from d2o.errors import InputError


def methods(config_dir: Path) -> list[str]:
    """The names of all methods that have a config."""
    return sorted(path.stem for path in (config_dir / "method").glob("*.yaml"))


def cards(names: Sequence[str], config_dir: Path) -> str:
    """The cards of `names`, of all methods where none is named. Raises InputError for one that is not there."""
    known = methods(config_dir)
    for name in names:
        if name not in known:
            raise InputError(f"unknown method {name!r}", f"methods are {', '.join(known)}")
    return "\n\n".join(card(name, config_dir) for name in names or known)


def card(name: str, config_dir: Path) -> str:
    """Markdown: the docstring of the file that the config names, its knobs, and where it is held to its reference."""
    root, text = config_dir.resolve().parent, (config_dir / "method" / f"{name}.yaml").read_text(encoding="utf-8")
    path = source(re.search(r"^_target_: (\S+)$", text, re.MULTILINE).group(1), root)
    title, _, body = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))).partition("\n")
    knobs = [line for line in text.splitlines() if line and not line.startswith(("#", "_"))]
    commands = [line[2:].split("   ")[0].strip() for line in text.splitlines() if line.startswith("# python")]
    parts = [f"## {name}", title.strip(), f"```text\n{body.strip()}\n```" if body.strip() else ""]
    variant = re.search(r"^variant: (\w+)", text, re.MULTILINE)
    if variant:
        parts.append(f"Variant: `{variant[1]}` by default.")
    if knobs:
        parts.append("Defaults\n\n```yaml\n" + "\n".join(knobs) + "\n```")
    parts.append("\n".join(f"    {command}" for command in commands))
    held = [f"`{file}`: {', '.join(tests)}" for file, tests in goldens(name, root).items()]
    parts.append(f"Goldens passed: {'; '.join(held) or 'none, no reference tensors'}.")
    parts.append(f"Source: `{path.relative_to(root)}`.")
    return "\n\n".join(part for part in parts if part)


def source(target: str, root: Path) -> Path:
    """The file of `baselines.x.Y`; of a package its `__init__`."""
    place = root.joinpath(*target.split(".")[:-1])
    return place.with_suffix(".py") if place.with_suffix(".py").is_file() else place / "__init__.py"


def goldens(name: str, root: Path) -> dict[str, list[str]]:
    """{test file: its tests that compare the method with tensors that its reference implementation gave}."""
    found: dict[str, list[str]] = {}
    for path in sorted((root / "tests").rglob("test_*golden*.py")):
        text = path.read_text(encoding="utf-8")
        for node in ast.parse(text).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                body = "\n".join(text.splitlines()[first - 1 : node.end_lineno])
                if re.search(rf'cases\(shared, "{name}"\)|"{name}__', body):
                    found.setdefault(str(path.relative_to(root)), []).append(node.name)
    return found
