"""Equal budgets: what every method holds is what was asked for, with the knobs of its config."""

import functools
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM, LlamaForCausalLM
from zoo import FAMILIES, prompt

import run_pred
from baselines.h2o import H2O
from baselines.knorm import KNorm
from d2o.budget import Budget
from d2o.engine.generation import generate
from d2o.engine.start import open_engine
from d2o.errors import InputError
from eval.cli import main
from eval.config.build import build

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "method"
NAMES = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
LENGTHS, LAYERS, NEW = (400, 133), 8, 2
TOKEN_BYTES = 1024  # 8 layers, 2 KV heads of 8, keys and values in float32
ASKED = {"60KiB": 60, "200.5KiB": 200}
KINDS = ((0.15, 0.2), (0.5, 0.9), (100, 350), ("60KiB", "200.5KiB"))


@functools.cache
def model():
    torch.manual_seed(0)
    config = FAMILIES["llama_gqa"]()
    config.num_hidden_layers = LAYERS
    return LlamaForCausalLM(config).eval()


def method(name, **knobs):
    node = OmegaConf.load(CONFIGS / f"{name}.yaml")
    if name == "locret":
        knobs["heads"] = "random"  # the config's are the bundled model's
    knobs |= {key: "prompt" for key in ("stats", "gates", "scores") if node.get(key) == "model"}  # so are those
    try:
        return build(OmegaConf.merge(node, knobs), "method")
    except InputError as error:
        pytest.skip(str(error))


def ledgers(factory, budget):
    prompts = [prompt(n, seed) for seed, n in enumerate(LENGTHS)]
    return [g.ledger for g in generate(open_engine(model(), factory, budget), prompts, NEW)]


@pytest.mark.parametrize(  # of each kind one for a method, the other for its neighbour
    "name, budget",
    [(name, kind[(i >> j) % 2]) for i, name in enumerate(NAMES) if name != "full" for j, kind in enumerate(KINDS)],
)
def test_the_realised_budget_is_the_one_asked_for(name, budget):
    """Parts, slots and bytes, one prompt long and one short: no method holds more or less than the others."""
    for n, ledger in zip(LENGTHS, ledgers(method(name), budget), strict=True):
        wanted = min(n, ASKED[budget] if isinstance(budget, str) else Budget(budget).slots(n))
        assert abs(sum(ledger.held_prefill) - wanted * LAYERS) <= 1
        assert abs(ledger.realised / (wanted / n) - 1) <= 0.01
        if isinstance(budget, str) and n > wanted:
            size = sum(ledger.held_prefill) * TOKEN_BYTES / LAYERS
            assert Budget(budget).size * 0.98 - TOKEN_BYTES < size <= Budget(budget).size


@pytest.mark.parametrize("name", [name for name in NAMES if name != "full"])
def test_small_budgets(name):
    """Down to one slot per layer and head; protected windows and sinks give way."""
    by_share = name in ("d2o", "d2o_counted", "layerwise")  # their layers hold at least 1 % of the prompt
    for budget in (0.05, 8) if by_share else (0.05, 8, 2, "2KiB"):
        for n, ledger in zip(LENGTHS, ledgers(method(name), budget), strict=True):
            slots = 2 if isinstance(budget, str) else Budget(budget).slots(n)
            assert sum(ledger.held_prefill) == pytest.approx(slots * LAYERS, abs=LAYERS)


def test_bytes_are_those_of_the_stored_keys_and_values():
    """What `Budget` divides by is what the storages of a cache take, whatever the family stores."""
    for family in ("llama_gqa", "falcon_new", "falcon_multi_query", "phi3"):
        torch.manual_seed(0)
        run = open_engine(AutoModelForCausalLM.from_config(FAMILIES[family]()), functools.partial(H2O), "24KiB")
        (row,) = generate(run, [prompt(200)], 1)
        slots = int(24 * 1024 // run.budget.token_bytes)
        assert row.ledger.held_prefill == [slots] * run.layers
        assert row.ledger.kv_bytes_prefill == (slots + 1) * run.budget.token_bytes  # and the slot that a step writes


def test_a_size_below_one_token_is_refused():
    with pytest.raises(InputError, match="less than one token takes in all layers, 1024 bytes") as error:
        ledgers(method("h2o"), "1023B")
    assert error.value.hint == "write budget=1024B or more"
    for bad in ("64MB", "64", "MiB", "-1MiB", "1.0001KiB", "0KiB", "64MiB "):
        with pytest.raises(InputError, match="is no unit|neither a number nor a size|no whole number of bytes"):
            Budget(bad)


@pytest.mark.parametrize(
    "name, knobs",
    [("pyramidkv", {"variant": "kvcf"}), ("pyramidinfer", {"variant": "official", "min_context": 8}),
     ("d2o", {"variant": "official", "budget_accounting": "nominal"})],
)  # fmt: skip
def test_what_does_not_meet_its_budget_says_so(name, knobs):
    factory = method(name, **knobs)
    (first, _) = ledgers(factory, 0.2)
    assert factory().nominal and abs(first.realised - 0.2) > 0.002


@pytest.mark.parametrize("accounting", ["realised", "nominal"])
def test_the_ledger_of_a_late_cut_is_of_that_step(accounting):
    """D2O as published cuts at the first step: tokens fed together with it are none of the prompt's."""
    protected, found = [0] * (accounting == "nominal"), []
    make = method("d2o", variant="official", protected_layers=protected, budget_accounting=accounting)
    for pieces in ([1] * 30, [30], [7, 23]):
        run, fed = open_engine(model(), make, 0.3), prompt(30, 5)
        cache, _ = run.prefill([prompt(120), prompt(60)], 30)
        for m in pieces:
            run.extend(cache, torch.tensor([fed[:m]] * 2))
            fed = fed[m:]
        found.append([cache.close_ledger(row).as_row() for row in range(2)])
    assert found[0] == found[1] == found[2]
    asked = [abs(row["budget_realised"] - 0.3) < 0.01 for row in found[0]]
    assert asked == [accounting == "realised"] * 2


def test_knorm_skips_what_the_budget_allows():
    rows = KNorm().row_slots(Budget(0.2), 1000, 32)
    assert rows[:2] == [1000, 1000] and max(rows[2:]) < 200 and sum(rows) == 32 * 200
    assert KNorm().row_slots(Budget(0.1), 1000, 32)[:2] == [1000, 71]
    assert KNorm().row_slots(Budget(0.05), 1000, 32) == [50] * 32
    assert KNorm().row_slots(Budget(0.2), 1000, 4) == [200] * 4
    with pytest.raises(InputError, match="budget 0.05 is too small for knorm's 2 protected layers"):
        KNorm(2).row_slots(Budget(0.05), 1000, 32)


def test_knorm_pays_for_its_skipped_layers():
    ledger = ledgers(method("knorm", skip_layers=1), 0.2)[0]
    assert ledger.held_prefill[0] == LENGTHS[0]
    assert max(ledger.held_prefill[1:]) - min(ledger.held_prefill[1:]) <= 1


@pytest.mark.parametrize("task", ["mini_single", "ppl", "needle", "passkey", "efficiency", "lm_eval"])
def test_bytes_that_buy_no_token_are_refused_before_anything_is_written(task, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("eval.run.models.load_model", lambda cfg: pytest.fail("weights were loaded"))
    words = [f"task={task}", "budget=10B", f"results_dir={tmp_path / 'r'}"]
    if task == "lm_eval":
        pytest.importorskip("lm_eval")
        words.append("task.tasks=[local_sums]")
    assert main(words, run_pred.run_cell, CONFIGS.parent) == 2
    error, hint = capsys.readouterr().err.strip().split("\n")
    assert error == "error: budget 10B is less than one token takes in all layers, 2048 bytes"
    assert hint == "hint: write budget=2048B or more" and not (tmp_path / "r").exists()


@pytest.mark.parametrize("name", NAMES)
def test_the_bytes_of_a_row_are_its_own(name):
    """Whatever stands beside it in the batch, cut or not: what it takes alone."""
    prompts = [prompt(n) for n in (90, 37, 24)]
    for budget in (0.3, 40, 1):
        run = open_engine(model(), method(name), budget)
        alone = [row.ledger for one in prompts for row in generate(run, [one], 4)]
        found = [row.ledger for row in generate(run, prompts, 4)]
        for key in ("kv_bytes_prefill", "kv_bytes_decode"):
            assert [getattr(one, key) for one in found] == [getattr(one, key) for one in alone], (budget, key)
