"""Cards of all methods, read off their docstrings and configs: paper, reference, defaults, intended differences.

    python scripts/methods.py              all of them
    python scripts/methods.py adakv cam    some
    python scripts/methods.py --write      docs/methods.md anew
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONFIGS, PAGE = ROOT / "configs" / "method", ROOT / "docs" / "methods.md"
HEAD = """# Methods

Written by `python scripts/methods.py --write` from the docstrings and configs. A budget is a fraction of the prompt,
slots per layer and KV head, or bytes; `python scripts/selfcheck.py` checks every method on a model of yours.
"""


def names() -> list[str]:
    return sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def card(name: str) -> str:
    """Markdown: the docstring of the file that the config names, its knobs, and where it is held to its reference."""
    text = (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8")
    target = re.search(r"^_target_: (\S+)$", text, re.MULTILINE).group(1)
    path = source(target)
    title, _, body = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))).partition("\n")
    knobs = [line for line in text.splitlines() if line and not line.startswith(("#", "_"))]
    commands = [line[2:].split("   ")[0].strip() for line in text.splitlines() if line.startswith("# python")]
    parts = [f"## {name}", title.strip(), f"```text\n{body.strip()}\n```" if body.strip() else ""]
    if knobs:
        parts.append("Defaults\n\n```yaml\n" + "\n".join(knobs) + "\n```")
    parts.append("\n".join(f"    {command}" for command in commands))
    held = goldens(name)
    parts.append(f"Reference tensors: {held}. Source: `{path.relative_to(ROOT)}`.")
    return "\n\n".join(part for part in parts if part)


def source(target: str) -> Path:
    """The file of `baselines.x.Y`; of a package its `__init__`."""
    place = ROOT.joinpath(*target.split(".")[:-1])
    return place.with_suffix(".py") if place.with_suffix(".py").is_file() else place / "__init__.py"


def goldens(name: str) -> str:
    """Which tests compare the method with tensors that its reference implementation gave."""
    found = []
    for path in sorted((ROOT / "tests").glob("test_*.py")):
        if re.search(rf'cases\(shared, "{name}"\)|"{name}__', path.read_text(encoding="utf-8")):
            found.append(f"`{path.relative_to(ROOT)}`")
    return "compared in " + ", ".join(found) if found else "none"


def main(words: list[str]) -> int:
    if "-h" in words or "--help" in words:
        print(__doc__)
        return 0
    if words == ["--write"]:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(page(), encoding="utf-8")
        return 0
    unknown = [word for word in words if word not in names()]
    if unknown:
        print(f"error: unknown method {unknown[0]!r}\nhint: {', '.join(names())}", file=sys.stderr)
        return 2
    print("\n\n".join(card(name) for name in words or names()))
    return 0


def page() -> str:
    return "\n".join([HEAD, *(card(name) + "\n" for name in names())])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
