"""engine.kv_bits as words of a command: which folder, who reads a prompt with whom, what a dry run says."""

import re
from pathlib import Path

import pytest

from d2o.budget import Packing
from d2o.errors import InputError
from eval.cells.identity import folder
from eval.config.compose import compose_cell, configs
from eval.run.models import size_cell
from eval.run.plan import budget_of, plan
from eval.run.together import same_prompts

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
WORDS = ["method=h2o", "task=mini_single", "task.n=2", "task.length=256", "limit=2"]


@pytest.fixture(scope="module")
def cells():
    """{words: the composed cell, settled as a command does}."""
    asked = ("", "engine.kv_group=8", "engine.kv_bits=4", "engine.kv_bits=2", "engine.kv_bits=4 engine.kv_window=8")
    with configs(CONFIGS):
        return {words: plan(compose_cell([*WORDS, *words.split()], CONFIGS)) for words in asked}


def test_a_setting_has_a_folder_of_its_own_and_none_moves_nothing(cells):
    paths = {words: cell.path.parent.name for words, cell in cells.items()}
    plain = paths[""]
    assert paths.pop("engine.kv_group=8") == plain, "there are no groups without bits"
    assert len(set(paths.values())) == len(paths)
    with configs(CONFIGS):
        older = compose_cell(["method=h2o", "task=mini_single"], CONFIGS)
    assert folder(older).parent.name == "h2o-default-b0.2"


def test_what_a_cell_asks_for_and_who_reads_with_it(cells):
    asked = [budget_of(cell.composed.cfg).packing for cell in cells.values()]
    assert asked == [None, None, Packing(4), Packing(2), Packing(4, window=8)]
    assert len(same_prompts([cell.composed for cell in cells.values()])) == 1


def test_a_dry_run_counts_the_bits(cells):
    plain, four, two = (
        size_cell(cells[words]) for words in ("", "engine.kv_bits=4 engine.kv_window=8", "engine.kv_bits=2")
    )
    assert plain.token_bytes == four.token_bytes and two.kept < plain.kept and four.kept < plain.kept
    held = plain.kept - 8  # of 32 channels in float32: codes, the scales of a value, a thirty-second of those of keys
    assert four.kept == 8 + -(-held * (2 * 32 // 2 + 2 * 4 + (2 * 4 * 32 + 8) / 32) // (2 * 32 * 4))


def test_what_cannot_be_is_refused_before_a_model_is_loaded():
    with configs(CONFIGS):
        for words, what in (("method=d2o engine.kv_bits=4", "kv_bits=4 with d2o, which changes"),
                            ("method=h2o engine.kv_bits=3", "kv_bits=3: keys and values"),
                            ("method=h2o engine.kv_bits=4 budget=1MiB", "budget=1MiB and kv_bits=4"),
                            ("method=h2o engine.kv_bits=4 engine.graph=true", "engine.graph=true")):  # fmt: skip
            with pytest.raises(InputError, match=re.escape(what)):
                plan(compose_cell([*WORDS[1:], *words.split()], CONFIGS))
