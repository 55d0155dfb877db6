"""Equal budgets: what every method holds is what was asked for, with the knobs of its config."""

import functools
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from transformers import LlamaForCausalLM
from zoo import FAMILIES, prompt

from d2o.budget import Budget
from d2o.engine import Engine
from d2o.errors import InputError
from eval.build import build

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "method"
NAMES = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
LENGTHS, LAYERS, NEW = (400, 333), 8, 4
TURNED = {"knorm": {"skip_layers": 1}}  # two whole layers of eight are more than a small budget


@functools.cache
def model():
    torch.manual_seed(0)
    config = FAMILIES["llama_gqa"]()
    config.num_hidden_layers = LAYERS
    return LlamaForCausalLM(config).eval()


def method(name, **knobs):
    node = OmegaConf.load(CONFIGS / f"{name}.yaml")
    try:
        return build(OmegaConf.merge(node, TURNED.get(name, {}), knobs), "method")
    except InputError as error:
        pytest.skip(str(error))


def ledgers(factory, budget):
    prompts = [prompt(n, seed) for seed, n in enumerate(LENGTHS)]
    return [g.ledger for g in Engine(model(), factory, budget).generate(prompts, NEW)]


@pytest.mark.parametrize("name", [name for name in NAMES if name != "full"])
def test_the_realised_budget_is_the_one_asked_for(name):
    for budget in (0.15, 0.2, 0.5, 0.9, 100, 350):
        for n, ledger in zip(LENGTHS, ledgers(method(name), budget), strict=True):
            wanted = min(1.0, budget if budget <= 1 else budget / n)
            assert abs(ledger.realised - wanted) * n <= 1  # a fraction of a slot per layer is all that rounding takes
            assert abs(ledger.realised - wanted) <= 0.01 * wanted + 1 / n


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("full", "knorm")])
def test_small_budgets(name):
    """Down to one slot per layer and head; protected windows and sinks give way."""
    for budget in (0.05, 8, 2) if name != "d2o" else (0.05, 8):  # its layers hold at least 1 % of the prompt
        for n, ledger in zip(LENGTHS, ledgers(method(name), budget), strict=True):
            assert sum(ledger.held_prefill) == pytest.approx(Budget(budget).slots(n) * LAYERS, abs=LAYERS)


@pytest.mark.parametrize(
    "name, knobs",
    [("pyramidkv", {"variant": "kvcf"}), ("pyramidinfer", {"variant": "official", "min_context": 8}),
     ("d2o", {"variant": "official", "budget_accounting": "nominal"})],
)  # fmt: skip
def test_what_does_not_meet_its_budget_says_so(name, knobs):
    factory = method(name, **knobs)
    (first, _) = ledgers(factory, 0.2)
    assert factory().nominal and abs(first.realised - 0.2) > 0.002


def test_knorm_pays_for_its_skipped_layers():
    ledger = ledgers(method("knorm"), 0.2)[0]
    assert ledger.held_prefill[0] == LENGTHS[0]
    assert max(ledger.held_prefill[1:]) - min(ledger.held_prefill[1:]) <= 1
