"""Golden cases of the methods that score once, after the prefill."""

import pytest
import torch
from golden import by_position, cases, close, drive, same

from baselines.h2o import H2O
from baselines.over.chunkkv import chunkkv
from baselines.over.criticalkv import criticalkv
from baselines.prefill.expected_attention import ExpectedAttention
from baselines.prefill.keydiff import KeyDiff
from baselines.prefill.lagkv import LagKV
from baselines.prefill.lava import LAVa
from baselines.prefill.qfilter import QFilter
from d2o.budget import Budget
from d2o.engine.rotary import Rotation
from d2o.models.about import About


def inputs(case):
    """Queries, keys and values `[1, H, S, D]` as they lie in a cache; no queries where the case has none."""
    k, v = (case.given[name].unsqueeze(0) for name in "kv")
    heads = case.sizes.get("H", case.sizes["Hk"])
    q = case.given.get("q", torch.zeros(heads, k.shape[2], case.sizes["D"])).unsqueeze(0)
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


class Given(About):
    """A model of which one projection is known."""

    def __init__(self, weight):
        self.weight, self.words = weight, None

    def output(self, layer):
        return self.weight


def snapkv(case):
    """The base of kvpress's wrappers, which averages where ours sums."""
    return {"window": case.settings["window_size"], "kernel": case.settings["kernel_size"], "pooling": "avg"}


def over_snapkv(make, case, *knobs):
    layer = make("snapkv", *knobs, base_args=snapkv(case))
    layer.about = Given(case.given.get("self_attn.o_proj.weight"))
    return layer


def test_criticalkv(shared, turn):
    for case in cases(shared, "criticalkv"):
        options, sinks = case.settings, case.settings.get("n_sink", 0)
        for i, slots in enumerate(options["n_kept"], start=1):
            if options["inner"] == "snapkv":
                layer = over_snapkv(criticalkv, case, options["first_stage_ratio"], options["epsilon"])
                scores, held = scored(layer, case, slots)
                apart, rows = slice(0, case.sizes["S"] - options["window_size"]), options["window_size"]
            else:
                knobs = {"future": options["n_future_positions"], "sinks": sinks, "value_norm": options["use_vnorm"],
                         "covariance": options["use_covariance"]}  # fmt: skip
                layer = criticalkv("expected_attention", options["first_stage_ratio"], options["epsilon"], knobs)
                layer.about, layer.rotation = Given(case.given["self_attn.o_proj.weight"]), turn(case)
                q = layer.rotation(case.given["q_pre"], torch.arange(case.sizes["S"])).unsqueeze(0)
                scores, held = scored(layer, case, slots, q)
                apart, rows = slice(sinks, None), 1
            same(held, case.expected[f"kept_positions_{i}"])
            first = scores.isinf()[0]
            same(first.nonzero()[:, 1].view(first.shape[0], -1), case.expected[f"stage1_positions_{i}"])
            second = case.expected["scores_stage2"][:, apart].masked_fill(first[:, apart], 0.0)
            close(scores[0, :, apart].masked_fill(first[:, apart], 0.0) / rows, second, 5e-4)


def test_chunkkv(shared):
    """Under as many slots as the chunks that it keeps have tokens, which is not always what was asked for there."""
    for case in cases(shared, "chunkkv"):
        for i in (1, 2):
            wanted = case.expected[f"kept_positions_{i}"]
            layer = over_snapkv(chunkkv, case, case.settings["chunk_length"])
            same(scored(layer, case, wanted.shape[1])[1], wanted)


def test_vatp(shared):
    """`method=h2o method.value_norm=true`, and with `method.last_rows=400` the scissorhands mode."""
    for case in cases(shared, "vatp"):
        heavy, recent = case.expected["budget"].tolist()
        knobs = {"value_norm": case.settings["apply_value_norm"], "sink_tokens": case.settings["sink_len"]}
        layer = H2O(recent / (heavy + recent) + 1e-9, **knobs, last_rows=None if case.settings["h2o"] else 400)
        scores = []

        def note(x, scores=scores):
            scores.append(by_position(x, x.importance()))

        trace = drive(layer, *case.qkv(), case.sizes["S"], heavy + recent, note)
        same(torch.stack(trace.held), case.expected["kept_positions"])
        finite = case.expected["score"].isfinite()
        ours, wanted = torch.stack(scores)[finite], case.expected["score"][finite]
        torch.testing.assert_close(ours, wanted, atol=1e-4, rtol=1e-6)  # sums of hundreds, in float32
        close(torch.cat(trace.outputs, dim=2)[0].transpose(0, 1), case.expected["attn_out"], 5e-5)


def test_lagkv(shared):
    for case in [c for c in cases(shared, "lagkv") if "official_cache" not in c.name]:
        for i, slots in enumerate(case.settings["n_kept"], start=1):
            layer = LagKV(case.settings["n_sink"], case.settings["lag_size"], case.settings["cross_scoring"])
            scores, held = scored(layer, case, slots)
            if "too_short" not in case.name:  # there the newest have most here too, by another number
                close(scores[0, :, layer.sinks :].clamp_max(1.0), case.expected["scores"][:, layer.sinks :])
            same(held, case.expected[f"kept_positions_{i}"])


def test_lagkvs_own_cache(shared):
    """`recursive: true`: what is held after the prompt and every step, and the keys in the end."""
    for case in [c for c in cases(shared, "lagkv") if "official_cache" in c.name]:
        options, prompt = case.settings, case.sizes["S"]
        layer = LagKV(options["sink_size"], options["lag_size"], recursive=True)
        ((slots,),) = LagKV.allocate([layer], Budget(options["ratio"]), [prompt])
        attended = [prompt]
        trace = drive(layer, *inputs(case), prompt, slots, lambda layer, seen=attended: seen.append(layer.held[0] + 1))
        for ours, wanted in zip(trace.held, case.expected["held_positions"], strict=True):
            same(ours, wanted[:, : ours.shape[1]])
            assert (wanted[:, ours.shape[1] :] == -1).all()
        assert attended[:-1] == case.expected["length_attended"].tolist()
        order = case.expected["k_cache_positions"].sort(dim=-1).indices.unsqueeze(-1)
        wanted = case.expected["k_cache"].gather(1, order.expand_as(case.expected["k_cache"]))
        close(by_position(layer, layer.keys), wanted, 0)


def test_qfilter(shared):
    """Their filters point the other way, and their score has a minus."""
    for case in cases(shared, "qfilter"):
        for i, slots in enumerate(case.settings["n_kept"], start=1):
            layer = QFilter()
            layer.axis = -case.given["q_filters"].unsqueeze(0)
            scores, held = scored(layer, case, slots)
            close(scores[0], case.expected["scores"])
            same(held, case.expected[f"kept_positions_{i}"])


def test_lava(shared):
    """Scores, measures, budgets of layers; and who stays where each head keeps as many as there."""
    for case in cases(shared, "lava"):
        options, length = case.settings, case.sizes["S"]
        window, made = options["window_size"], []
        for i in range(case.sizes["L"]):
            layer = LAVa(window, options["kernel_size"], options["floor_alpha"])
            q, k, v = (case.given[name][i].unsqueeze(0) for name in "qkv")
            wanted = case.expected["kept_positions"][i]
            layer.split = lambda scores, row, wanted=wanted: (wanted >= 0).sum(-1).tolist()
            held = drive(layer, q, k, v, length, length - 1).held[0]
            same(held, wanted[:, : held.shape[1]])
            close(layer.scores[0, :, : length - window], case.expected["score"][i], 1e-5)
            close(torch.tensor(layer.measure), case.expected["normalised_entropy"][i : i + 1], 1e-5)
            made.append(layer.measure[0])
        if (
            all(x >= 0 for x in case.expected["layer_budget_after_layer"][-1].tolist())
            and case.settings.get("skip") == 0
        ):
            ours = LAVa(window).row_slots(made, options["base_capacity"], length)
            theirs = case.expected["layer_budget_after_layer"][-1] + window  # rounded down there, without a rest
            assert sum(ours) == options["base_capacity"] * len(made)
            assert max(theirs) > length or all(0 <= a - b <= 1 for a, b in zip(ours, theirs.tolist(), strict=True))
