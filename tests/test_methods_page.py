"""The method cards: complete, and docs/methods.md is what the command writes."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from scripts import methods  # noqa: E402

OWN = {"full", "random"}  # no paper


@pytest.mark.parametrize("name", methods.names())
def test_a_card_names_paper_and_reference(name):
    card = methods.card(name)
    assert card.startswith(f"## {name}\n")
    if name not in OWN:
        assert "Paper" in card and "eference: " in card
        assert "ntended differences" in card


def test_the_page_is_up_to_date():
    assert methods.PAGE.read_text(encoding="utf-8") == methods.page(), "python scripts/methods.py --write"


def test_the_command(capsys):
    assert methods.main(["cam"]) == 0 and "kv_cache_cam.py" in capsys.readouterr().out
    assert methods.main(["nonsense"]) == 2 and "unknown method 'nonsense'" in capsys.readouterr().err
