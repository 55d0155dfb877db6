"""Golden cases of the further baselines, within their stated tolerance."""

import torch
from golden import drive
from test_golden import cases, same

from baselines.pyramidkv import PyramidKV
from d2o.budget import Budget


def test_pyramidkv(shared):
    found = [case for case in cases(shared, "pyramidkv") if "kvcf" in case.name]
    for case in found:
        options, sizes = case.settings, case.sizes
        group, layers = options["gqa_score_agg"], sizes["L"]
        made = [
            PyramidKV("kvcf", options["beta"], options["window_size"], options["kernel_size"],
                      options["pooling"].removesuffix("pool"), group or "mean")
            for _ in range(layers)
        ]  # fmt: skip
        slots = PyramidKV.allocate(made, Budget(options["max_capacity_prompt"]), [sizes["S"]])
        same(torch.tensor(slots)[:, 0].clamp_max(sizes["S"]), case.expected["budgets"])
        for i, layer in enumerate(made):
            q, k = (case.given[name][i].unsqueeze(0) for name in "qk")
            if group is None:
                k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
            kept = drive(layer, q, k, k, sizes["S"], slots[i][0]).held[0]
            wanted = case.expected["kept_positions"][i]
            same(kept, wanted[:, : kept.shape[1]])
            assert (wanted[:, kept.shape[1] :] == -1).all()
    assert len(found) == 3


def test_pyramidkv_budgets(shared):
    (case,) = [case for case in cases(shared, "pyramidkv") if "table" in case.name]
    for row, held in zip(case.given["settings"].tolist(), case.expected["held_per_layer"].tolist(), strict=True):
        layers, length, slots, window, beta = row
        ours = PyramidKV("kvcf", beta, window).pyramid(slots, length, layers)
        assert [min(x, length) for x in ours] == held[:layers]
        exact = PyramidKV("exact", beta, window).pyramid(slots, length, layers)
        assert sum(min(x, length) for x in exact) == min(slots, length) * layers
        assert max(abs(a - b) for a, b in zip(ours, exact, strict=True)) <= layers
