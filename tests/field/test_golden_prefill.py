"""Golden cases of the methods that score once, after the prefill."""

import pytest
import torch
from golden import by_position, cases, close, drive, same

from baselines.prefill.expected_attention import ExpectedAttention
from baselines.prefill.keydiff import KeyDiff
from d2o.engine.rotary import Rotation


def inputs(case):
    """Queries, keys and values `[1, H, S, D]` as they lie in a cache; no queries where the case has none."""
    k, v = (case.given[name].unsqueeze(0) for name in "kv")
    q = case.given.get("q", torch.zeros(case.sizes["H"], case.sizes["S"], case.sizes["D"])).unsqueeze(0)
    return q, k, v


def scored(layer, case, slots, q=None):
    """The layer after a prefill under `slots`, its scores as they were at the cut, and what it held."""
    seen, importance = [], layer.importance

    def noted():
        seen.append(importance())
        return seen[-1]

    layer.importance = noted
    own, k, v = inputs(case)
    held = drive(layer, own if q is None else q, k, v, case.sizes["S"], slots).held[0]
    return seen[0], held


def test_keydiff(shared):
    for case in cases(shared, "keydiff"):
        if "block" in case.name:
            layer = KeyDiff(case.settings["block_size"])
            same(scored(layer, case, case.settings["n_kept"])[1], case.expected["kept_positions"])
            order = case.expected["kept_in_cache_order"].sort(dim=-1).indices
            wanted = case.expected["k_cache"].gather(1, order.unsqueeze(-1).expand_as(case.expected["k_cache"]))
            close(by_position(layer, layer.keys), wanted, 0)
            continue
        for i, slots in enumerate(case.settings["n_kept"], start=1):
            scores, held = scored(KeyDiff(), case, slots)
            close(scores[0], case.expected["scores"])
            same(held, case.expected[f"kept_positions_{i}"])


@pytest.fixture
def turn():
    return lambda case: Rotation(
        case.settings["rope_theta"] ** -(torch.arange(0, case.sizes["D"], 2).float() / case.sizes["D"]), False
    )


def test_expected_attention(shared, turn):
    for case in cases(shared, "expected_attention"):
        options, rotation = case.settings, turn(case)
        q = rotation(case.given["q_pre"], torch.arange(case.sizes["S"])).unsqueeze(0)
        for i, slots in enumerate(options["n_kept"], start=1):
            layer = ExpectedAttention(
                options["n_future_positions"], options["n_sink"], options["use_covariance"], options["use_vnorm"],
                options["epsilon"],
            )  # fmt: skip
            layer.rotation = rotation
            scores, held = scored(layer, case, slots, q)
            sinks = options["n_sink"]
            close(scores[0, :, sinks:], case.expected["scores"][:, sinks:])
            same(held, case.expected[f"kept_positions_{i}"])
