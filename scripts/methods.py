"""Cards of all methods: paper, reference, defaults, intended differences. `python run_pred.py --methods` prints them.

python scripts/methods.py              all of them
python scripts/methods.py adakv cam    some
python scripts/methods.py --write      docs/methods.md anew
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from eval.config.cards import cards, methods  # noqa: E402

CONFIGS, PAGE = ROOT / "configs", ROOT / "docs" / "methods.md"
HEAD = """# Methods

Written by `python scripts/methods.py --write` from the docstrings, configs and tests. A budget is a fraction of the
prompt, slots per layer and KV head, or bytes; `python scripts/selfcheck.py` checks every method on a model of yours.
Goldens are tensors that the reference implementations gave; the tests named here compare with them.
"""


def main(words: list[str]) -> int:
    """Print cards, or write the page."""
    from eval.exits import report

    if "-h" in words or "--help" in words:
        print(__doc__)
        return 0
    if words == ["--write"]:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(page(), encoding="utf-8")
        return 0
    try:
        print(cards(words, CONFIGS))
    except BaseException as error:
        return report(error)
    return 0


def page(names: Sequence[str] | None = None) -> str:
    """docs/methods.md: the cards of `names`, of all methods by default."""
    return "\n".join([HEAD, *(cards([name], CONFIGS) + "\n" for name in names or methods(CONFIGS))])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
