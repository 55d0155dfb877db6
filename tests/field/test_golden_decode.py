"""Golden cases of the methods that go on evicting while decoding.

The references cut every so many tokens and sort their slots by score, and the next score runs over slots in that order.
So each cut is checked from the official slots of the one before it, which are laid down as if they were a text.
"""

import functools
import itertools

import torch
from golden import cases, close, drive, same

from baselines.decode.cake import CAKE, by_preference
from baselines.decode.morphkv import MorphKV
from baselines.decode.rkv import RKV
from baselines.decode.triattention import TriAttention
from baselines.snapkv import SnapKV
from d2o.engine.rotary import Rotation
from d2o.rows import LastRows


def staged(layer, slots, window, scale):
    """A layer that holds `slots`, (keys, values) `[Hkv, n, D]` each, in this order, and whose last queries are
    `window [H, w, D]`."""
    keys, values = (x.unsqueeze(0) for x in slots)
    layer.allocate_storage(keys, values, keys.shape[2])
    layer.append(keys, values, [keys.shape[2]])
    layer.now, layer.queries, layer.scale = layer._position(), window.unsqueeze(0), scale
    return layer


def cuts(case):
    """For every cut: positions held, in the official order, when it is made, and how many tokens were seen."""
    prompt, before = case.sizes["S"], None
    for c, step in enumerate(case.expected["compressed_at_step"].tolist()):
        seen = prompt + step
        if c == 0:
            order = torch.arange(seen).expand(case.sizes["Hk"], -1)
        else:
            new = torch.arange(before, seen).expand(case.sizes["Hk"], -1)
            order = torch.cat((case.expected["kept_in_cache_order"][c - 1], new), dim=1)
        yield c, order, seen
        before = seen


def check_cuts(case, layer):
    options, dim = case.settings, case.sizes["D"]
    q, k, v = (case.given[name] for name in "qkv")
    for c, order, seen in cuts(case):
        held = [x.gather(1, order.unsqueeze(-1).expand(-1, -1, dim)) for x in (k, v)]
        made = staged(layer(), held, q[:, seen - options["window_size"] : seen], dim**-0.5)
        score = made.importance()[0, :, : -options["window_size"]]
        close(score, case.expected[f"score.{c}"])
        made.slots = [options["budget"]]
        kept = order.gather(1, made._top(made.importance(), 0)).sort(dim=-1).values
        same(kept, case.expected["kept_positions"][c])


def check_the_start(case, layer):
    """Prefill, first cut and the steps up to the second, as the engine runs them: its first step sees what is held."""
    q, k, v = (x.unsqueeze(0)[:, :, : case.sizes["S"] + 1] for x in (case.given[name] for name in "qkv"))
    if case.expected["compressed_at_step"][0]:  # a prompt below the budget
        return
    trace = drive(layer, q, k, v, case.sizes["S"], case.settings["budget"])
    close(trace.prefill[0], case.expected["attn_out_prefill"])
    same(trace.held[0], case.expected["kept_positions"][0])
    close(trace.outputs[0][0, :, 0], case.expected["attn_out"][0])


def rkv(options, mix):
    return lambda: RKV(options["window_size"], options["kernel_size"], mix)


def test_rkv(shared):
    for case in cases(shared, "rkv"):
        make = rkv(case.settings, case.settings["mix_lambda"])
        check_cuts(case, make)
        check_the_start(case, make())


def test_snapkv_of_the_repository_of_rkv(shared):
    for case in [c for c in cases(shared, "snapkv_decode") if "rkv_repo" in c.name]:
        make = rkv(case.settings, 1.0)
        check_cuts(case, make)
        check_the_start(case, make())


def test_snapkv_at_every_step(shared):
    """Of a fork of kvpress: in decoding its window of queries is the newest alone, and what is protected are its last
    slots, which after the first cut lie in the order of their scores. So each cut is of its slots laid down as a text,
    by the one query; the last ones hold the largest score there and are left out here."""
    for case in [c for c in cases(shared, "snapkv_decode") if "kvpress_d" in c.name]:
        options, prompt, window = case.settings, case.sizes["S"], case.settings["window_size"]
        q, k, v = (case.given[name] for name in "qkv")
        make = functools.partial(SnapKV, window, options["kernel_size"], "avg")
        layer = make()
        trace = drive(layer, *(x.unsqueeze(0)[:, :, :prompt] for x in (q, k, v)), prompt, options["budget"])
        close(trace.prefill[0], case.expected["attn_out_prefill"])
        close(layer.scores[0, :, :-window] / window, case.expected["score.0"][:, :-window])
        same(trace.held[0], case.expected["kept_positions"][0])
        for t, (before, after) in enumerate(itertools.pairwise(case.expected["kept_in_cache_order"]), start=1):
            seen = prompt + t
            order = torch.cat((before, torch.full((before.shape[0], 1), seen - 1)), dim=1)
            held = [x.gather(1, order.unsqueeze(-1).expand(-1, -1, x.shape[2])) for x in (k, v)]
            layer = staged(make(decoding="evict"), held, q[:, seen - 1 : seen], q.shape[2] ** -0.5)
            close(layer.importance()[0, :, :-window], case.expected[f"score.{t}"][:, :-window])
            layer.slots = [options["budget"]]
            same(order.gather(1, layer._top(layer.importance(), 0)).sort(dim=-1).values, after.sort(dim=-1).values)


def cake(case, layer):
    options = case.settings
    made = CAKE(options["window_size"], options["kernel_size"], options["gamma"], options["tau1"], options["tau2"])
    return made, [case.given[name][layer].unsqueeze(0) for name in "qkv"]


def test_cake(shared):
    """Preferences, scores and what is held after the prompt; where the reference cascades, of as many as that holds."""
    for case in [c for c in cases(shared, "cake") if "official" in c.name]:
        prompt, window = case.sizes["S"], case.settings["window_size"]
        for i in range(case.sizes["L"]):
            (layer, qkv), wanted = cake(case, i), case.expected[f"kept_after_prefill.{i}"]
            trace = drive(layer, *(x[:, :, :prompt] for x in qkv), prompt, wanted.shape[1])
            close(trace.prefill[0], case.expected["attn_out_prefill"][i])
            close(layer.scores[0, :, : prompt - window], case.expected["score"][i], 6e-6)
            close(layer.preference[0], case.expected["preference"][i], 2e-3)
            same(trace.held[0], wanted.sort(dim=-1).values)


def test_the_steps_of_cake(shared):
    """Each from the official slots of the one before it."""
    for case in [c for c in cases(shared, "cake") if "official" in c.name and "short" not in c.name]:
        for i in range(case.sizes["L"]):
            _, (q, k, v) = cake(case, i)
            slots = case.expected[f"kept_after_prefill.{i}"]
            for t, after in enumerate(case.expected[f"kept_after_step.{i}"]):
                new = case.sizes["S"] + t
                order = torch.cat((slots, torch.full((slots.shape[0], 1), new)), dim=1)
                held = [x[0].gather(1, order.unsqueeze(-1).expand(-1, -1, x.shape[3])) for x in (k, v)]
                layer = staged(cake(case, i)[0], held, q[0, :, new : new + 1], q.shape[3] ** -0.5)
                layer.scores = torch.zeros(1)  # the prompt was seen
                layer.observe(LastRows(q[:, :, new : new + 1], layer.keys, None, layer.scale))
                layer.slots = [slots.shape[1]]
                same(order.gather(1, layer._top(layer.importance(), 0)).sort(dim=-1).values, after.sort(dim=-1).values)
                slots = after


def test_the_budgets_of_cake(shared):
    (table,) = [c for c in cases(shared, "cake") if "table" in c.name]
    rows = zip(table.given["settings"].tolist(), table.given["preference"], table.expected["layer_budget"], strict=True)
    for (layers, known, length, size, window), preference, wanted in rows:
        ours = by_preference(preference[:known], (size - window) * layers, length - window)
        assert ours == wanted[:known].tolist()
        if known == layers:
            slots = CAKE(window).row_slots(preference[:known], size, length)
            assert sum(slots) == min(size, length) * layers and max(slots) <= max(size, length)
    for case in [c for c in cases(shared, "cake") if "cascading" in c.name]:
        total = (case.settings["cache_size"] - case.settings["window_size"]) * case.sizes["L"]
        for i, wanted in enumerate(case.expected["layer_budget_after_layer"].tolist()):
            most = case.sizes["S"] - case.settings["window_size"]
            assert by_preference(case.expected["preference"][: i + 1], total, most) == wanted[: i + 1]


def triattention(case, layer, positions, seen):
    """A layer that holds the candidates at `positions [Hkv, n]` when `seen` tokens have passed."""
    options = case.settings
    made = TriAttention(
        "model", options["offset_max_length"], options["score_aggregation"], options["normalize_scores"]
    )
    made.rotation = Rotation(case.given["inv_freq"], False)
    mean, modulus = (torch.cat([case.given[f"q_mean_{part}"][layer] for part in ("real", "imag")], dim=-1),
                     case.given["q_abs_mean"][layer])  # fmt: skip
    keys = case.given["k"][layer].gather(1, positions.unsqueeze(-1).expand(-1, -1, case.sizes["D"]))
    staged(made, (keys, keys), mean[:, :0].unsqueeze(1), 1.0)
    made.usual, made.now = [mean.unsqueeze(0), modulus.unsqueeze(0)], torch.tensor([[[seen - 1]]])
    return made


CHOICES = {  # who chooses: scores `[L, Hkv, n]`, of every layer and KV head, to those of the choice
    "per_layer_per_head": lambda x: x,
    "per_head": lambda x: x.mean(0, keepdim=True).expand_as(x),
    "global": lambda x: x.amax((0, 1), keepdim=True).expand_as(x),
}


def test_triattention(shared):
    """Scores of every query head; and who stays, also where layers choose together, which ours cannot do in a step."""
    for case in cases(shared, "triattention"):
        options, prompt, layers = case.settings, case.sizes["S"], range(case.sizes["L"])
        kept = torch.arange(prompt).expand(len(layers), case.sizes["Hk"], -1)
        before = prompt
        for c, step in enumerate(case.expected["compressed_at_step"].tolist()):
            seen = prompt + step
            new = torch.arange(before, seen).expand(*kept.shape[:2], -1)
            held = torch.cat((kept, new), dim=2)
            spared = 0 if options["allow_prefill_compression"] else prompt
            made = [triattention(case, i, held[i, :, spared:], seen) for i in layers]
            for i, layer in enumerate(made):
                close(layer.by_head()[0].flatten(0, 1), case.expected[f"score.{c}"][i], 1e-3)
            scores = CHOICES[options["mode"]](torch.stack([layer.importance()[0] for layer in made]))
            best = scores.sort(dim=-1, descending=True, stable=True).indices[:, :, : options["budget"] - spared]
            chosen = held[:, :, spared:].gather(2, best)
            kept = torch.cat((held[:, :, :spared], chosen), dim=2).sort(dim=-1).values
            same(kept, case.expected["kept_positions"][c])
            before = seen


def test_morphkv(shared):
    """Every eviction from what was held before it; of the case with groups the first, whose rows and cache agree."""
    for case in cases(shared, "morphkv"):
        window, kept = case.settings["window_size"], case.expected["kept_positions"]
        q, k, v = (case.given[name] for name in "qkv")
        evicted, grouped = 0, case.sizes["H"] > case.sizes["Hk"]
        for t in range(case.sizes["T"]):
            before, after = (x[:, x[0] >= 0] for x in kept[t : t + 2])
            seen = case.sizes["S"] + t + 1
            if before.shape[1] + 1 == after.shape[1] or (grouped and evicted):
                continue
            order = torch.cat((before, torch.full((before.shape[0], 1), seen - 1)), dim=1)
            held = [x.gather(1, order.unsqueeze(-1).expand(-1, -1, x.shape[2])) for x in (k, v)]
            layer = MorphKV(window, case.settings["morph_type"].split("_")[0])
            staged(layer, held, q[:, seen - window - 1 : seen], q.shape[2] ** -0.5)
            layer.slots, layer.free = [after.shape[1]], torch.zeros(1)  # a step
            same(order.gather(1, layer._top(layer.importance(), 0)), after)
            evicted += 1
        assert evicted
