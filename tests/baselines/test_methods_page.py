"""The method cards: complete, and docs/methods.md is what the command writes."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from d2o.errors import InputError  # noqa: E402
from eval.cli import main  # noqa: E402
from eval.config import cards  # noqa: E402
from scripts import methods  # noqa: E402

OWN = {"full", "random"}  # no paper


@pytest.mark.parametrize("name", cards.methods(methods.CONFIGS))
def test_a_card_names_paper_and_reference(name):
    card = cards.card(name, methods.CONFIGS)
    assert card.startswith(f"## {name}\n")
    if name not in OWN:
        assert "Paper" in card and "eference: " in card
        assert "ntended differences" in card


def test_the_page_is_up_to_date():
    """A method that is not on the page yet is no fault of it; what stands there is as the files say."""
    page = methods.PAGE.read_text(encoding="utf-8")
    told = re.findall(r"^## (\w+)$", page, re.MULTILINE)
    assert page == methods.page(told), "python scripts/methods.py --write"
    assert {"d2o", "h2o", "locret"} <= set(told)


def test_the_command(capsys):
    assert methods.main(["cam"]) == 0 and "kv_cache_cam.py" in capsys.readouterr().out
    with pytest.raises(InputError, match="unknown method 'nonsense'"):
        methods.main(["nonsense"])


def test_the_cards_of_the_main_command_need_nothing_heavy():
    code = "import sys, run_pred; from eval.cli import main; code = main(['--methods'], None, run_pred.CONFIGS)"
    code += "; sys.exit(code or sum(name in sys.modules for name in ('torch', 'transformers', 'hydra')))"
    done = subprocess.run([sys.executable, "-c", code], cwd=methods.ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n## ") == len(cards.methods(methods.CONFIGS)) - 1
    for words in ("Paper:", "Reference", "Variant: `paper`", "Defaults", "ntended differences", "Goldens passed"):
        assert words in done.stdout


def test_some_cards_and_a_slip_of_the_hand(capsys):
    assert main(["--methods", "h2o"], None, methods.CONFIGS) == 0
    out = capsys.readouterr().out
    assert out.startswith("## h2o\n") and "Goldens passed: `tests/d2o/test_golden.py`: test_h2o" in out
    assert main(["--methods", "h20"], None, methods.CONFIGS) == 2
    assert "unknown method 'h20'" in capsys.readouterr().err
