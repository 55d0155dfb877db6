"""scripts/cost: what a prefill and a step take, counted on a GPU that is not there."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

from baselines.h2o import H2O
from d2o.budget import Budget
from d2o.d2o import D2O
from d2o.errors import InputError
from scripts.cost import page
from scripts.cost.count import attention
from scripts.cost.device import fake
from scripts.cost.trace import CARDS, at_depths, carried, floors
from scripts.cost.watch import Watch

pytest.importorskip("triton")
command = importlib.import_module("scripts.cost.__main__")
N, LAYERS = 1024, 2
LINEAR = LAYERS * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)  # weights of products, Llama-3-8B's shape
HEAD = 4096 * 128256


@pytest.fixture(scope="module")
def d2o():
    (found,) = at_depths(D2O, Budget(0.2), N, (LAYERS,))
    return found


def test_the_products_of_a_prefill_are_those_of_the_model(d2o):
    """Linear layers, causal attention, the column sums' second half of it, the nearest slot of each that leaves."""
    slots, pairs = int(0.2 * N), N * (N + 1) // 2
    linear = 2 * (N * LINEAR + HEAD)
    attended = LAYERS * 32 * pairs * (4 * 128 + 2 * 128)
    nearest = LAYERS * 8 * (N - slots) * slots * 2 * 128
    assert d2o.prefill.flops == linear + attended + nearest


def test_a_step_reads_its_weights_and_slots_once_and_the_keys_twice(d2o):
    slots = int(0.2 * N) + 1  # one to write to before one leaves
    keys = LAYERS * 8 * slots * 128 * 2
    assert d2o.step.flops == 2 * (LINEAR + HEAD) + LAYERS * slots * 128 * (32 * 4 + 8 * 2)
    assert d2o.step.held == 2 * keys
    assert keys <= d2o.step.again <= 1.1 * keys + 2**20  # the cosines of the merge, and the new token's small tensors
    floor = floors(LAYERS, CARDS[0].rates)
    assert floor.read + d2o.step.held < d2o.step.read < 1.02 * (floor.read + d2o.step.held)
    assert d2o.step.waits == 0


def test_launches_are_those_of_the_fake_device(d2o):
    from tests.d2o.device.test_fake import NEAR

    assert d2o.step.own == NEAR["d2o"]
    assert d2o.step.launches > LAYERS * d2o.step.own


def test_two_depths_are_carried_on_to_a_third():
    one, two, three = (at_depths(H2O, Budget(0.2), 64, (depth,))[0] for depth in (1, 2, 3))
    for part in ("prefill", "step"):
        found, wanted = (vars(getattr(x, part)) for x in (carried((one, two), (1, 2), 3), three))
        for name in wanted:
            assert found[name] == pytest.approx(wanted[name], rel=1e-9), name


def test_weights_and_the_products_of_attention_are_counted():
    first = floors(32, CARDS[0].rates)
    assert first.weights == 2 * 8030261248  # the number of weights that the model's card names
    assert attention((1, 32, 7, 128), 7, 128, True) == 32 * 28 * 4 * 128
    assert attention((1, 32, 7, 128), 9, 64, False) == 32 * 63 * 2 * 192


def test_what_an_operation_reads_and_writes():
    with fake(), Watch() as seen:
        x = torch.ones(6, 5, device="cuda")
        index = torch.tensor([1, 4], device="cuda")
        x.index_select(0, index)
        x.expand(3, 6, 5).sum()
        x.copy_(x + 1)
        x.index_fill_(0, index, 0.0)
    costs = {one.name: one for one in seen.costs}
    assert (costs["index_select"].read, costs["index_select"].written) == (40 + 16, 40)
    assert costs["sum"].read == 120 and costs["sum"].written == 4
    assert (costs["copy_"].read, costs["copy_"].written) == (120, 120)
    assert (costs["index_fill_"].read, costs["index_fill_"].written) == (16, 40)


def test_a_table_says_what_was_not_traced(tmp_path, monkeypatch, d2o):
    text = page.length_table(N, {"d2o": d2o, "other": "not traced: RuntimeError"}, LAYERS)
    assert "| `other` | not traced: RuntimeError |" in text and len(set(map(len, map(cells, text.splitlines())))) == 1
    place = tmp_path / "speed.md"
    place.write_text(f"a\n{page.BEGIN}old\n{page.END}\nb\n")
    monkeypatch.setattr("scripts.measure.marked.PAGE", place)
    page.write([text])
    assert place.read_text() == f"a\n{page.BEGIN}\n{text}\n\n{page.END}\nb\n"
    assert page.BEGIN in Path("docs/speed.md").read_text()


def cells(line: str) -> list[str]:
    return line.split("|")


@pytest.mark.parametrize("word", ["methods=h3o", "layers=0", "layers=1,2,3", "contexts=3", "turbo=1"])
def test_a_wrong_word_is_refused(word):
    with pytest.raises(InputError):
        command.main([word])


def test_every_method_is_in_the_table(monkeypatch, capsys, tmp_path, d2o):
    """And is computed once: a second call reads the file."""
    names, out = [], tmp_path / "deep" / "cost.json"
    monkeypatch.setattr(command, "_found", lambda name, context, given: names.append(name) or d2o)
    for _ in range(2):
        command.main(["contexts=64", f"out={out}"])
        said = capsys.readouterr().out
        assert "64 tokens" in said and "| `d2o` | 0.9 |" in said
    known = {path.stem for path in Path("configs/method").glob("*.yaml")} - set(command.PACKAGED)
    assert names[0] == "full" and set(names) == known and len(names) == len(known)
