"""Golden cases of the methods that go on evicting while decoding.

The references cut every so many tokens and sort their slots by score, and the next score runs over slots in that order.
So each cut is checked from the official slots of the one before it, which are laid down as if they were a text.
"""

import torch
from golden import cases, close, drive, same

from baselines.decode.rkv import RKV


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
