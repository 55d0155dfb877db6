"""Golden cases of the further baselines, within their stated tolerance."""

import functools

import torch
from golden import by_position, drive, held
from test_golden import cases, close, same

from baselines.cam import behind, cam, spread
from baselines.pyramidinfer import PyramidInfer
from baselines.pyramidkv import PyramidKV
from d2o.budget import Budget
from d2o.engine.start import open_engine


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
    for row, wanted in zip(case.given["settings"].tolist(), case.expected["held_per_layer"].tolist(), strict=True):
        layers, length, slots, window, beta = row
        ours = PyramidKV("kvcf", beta, window).pyramid(slots, length, layers)
        assert [min(x, length) for x in ours] == wanted[:layers]
        exact = PyramidKV("exact", beta, window).pyramid(slots, length, layers)
        assert sum(min(x, length) for x in exact) == min(slots, length) * layers
        assert max(abs(a - b) for a, b in zip(ours, exact, strict=True)) <= layers


def watch(layer, uniform):
    """Draws are the stored numbers; probabilities and decisions are noted, an entry of each per event."""
    found, decisions, probability = [], [], layer.probability

    def noted(own, mean):
        found.append(probability(own, mean))
        decisions.append(uniform[len(found) - 1] < found[-1][0, :, 0])
        return found[-1]

    layer.probability = noted
    layer.draw = lambda at: uniform[len(found)].view(1, -1, 1)
    return found, decisions


def test_cam(shared, monkeypatch):
    monkeypatch.setenv("D2O_STEP", "attend,write,victim")  # a draw inside of a kernel cannot be watched
    for case in [c for c in cases(shared, "cam") if "lm_eval" not in c.name]:
        options, hh = case.settings, "hh_mask" in case.name
        start, recent = (options[f"{name}_{'budget' if hh else 'size'}"] for name in ("start", "recent"))
        layer = cam("streaming_llm", options["merge_budget"], "hh_mask" if hh else "streaming",
                    {"sinks": start, "positions": "original"})  # fmt: skip
        uniform, log = case.given["uniform"], []

        def look(x, log=log):
            log.append((held(x), by_position(x, x.values)))

        probabilities, decisions = watch(layer, uniform)
        # the reference masks before a step what we evict after the one before it
        prompt, slots = (case.sizes["S"], start + recent - 1) if hh else (1, start + recent)
        trace = drive(layer, *case.qkv(), prompt, slots, look)
        close(torch.stack(probabilities)[:, 0, :, 0], case.expected["merge_probability"])
        same(torch.stack(decisions), case.expected["merge_mask"])
        assert 0 < int(torch.stack(decisions).sum()) < uniform.numel()
        outputs = torch.cat(trace.outputs, dim=2)[0].transpose(0, 1)
        close(outputs, case.expected["attn_out"][-len(outputs) :])
        for (positions, values), wanted in zip(log[-len(uniform) :], case.expected["values"], strict=True):
            close(values, wanted[torch.arange(len(wanted))[:, None], positions] if hh else wanted)


def test_cam_spreading_in_a_prompt(shared):
    """lm_eval merges inside a prompt, all rows masked alike: its probabilities restated, the merging ours."""
    (case,) = [c for c in cases(shared, "cam") if "lm_eval" in c.name]
    options, length = case.settings, case.sizes["S"]
    start, recent = options["start_budget"], options["recent_budget"]
    q, k, v = case.qkv()
    at = torch.arange(length)
    seen = (at[None] <= at[:, None]) & ((at[None] < start) | (at[None] >= at[:, None] - recent))
    probs = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).masked_fill(~seen, float("-inf")).softmax(-1)[0]
    values, positions = v.clone(), at.expand(1, q.shape[1], -1).int()
    for event, t in enumerate(range(start + recent, length)):
        victim, received = t - recent, probs[:, :t].sum(1)
        rivals = torch.cat((received[:, :start], received[:, victim:t]), dim=1).amax(1)
        chance = (received[:, victim] / rivals).clamp(0, 1)
        close(chance, case.expected["merge_probability"][event])
        merged = case.given["uniform"][event] < chance
        same(merged, case.expected["merge_mask"][event])
        slots, real = behind(positions, torch.full((1, q.shape[1], 1), victim), recent)
        spread(values, values[:, :, victim : victim + 1], slots, real & merged.view(1, -1, 1), options["merge_budget"])
    close(values[0], case.expected["values"])
    close((probs @ values[0]), case.expected["attn_out"])


def test_pyramidinfer(shared):
    for case in cases(shared, "pyramidinfer"):
        options = case.settings
        method = functools.partial(
            PyramidInfer, "official", options["prefill_decay_ratio"], options["recent_ratio"],
            options["streamingllm_sink_len"], options["min_context_length"],
            options["layerwise_downsample_interval"], options["distance_weight"],
        )  # fmt: skip
        ids = case.given["input_ids"].tolist()
        cache, logits = open_engine(case.llama(), method, 0.5).prefill([ids])
        for layer, wanted in zip(cache.layers, case.expected["layer_positions"], strict=True):
            for kept in held(layer):
                same(kept, wanted[wanted >= 0])
        close(logits[0], case.expected["last_logits"], 2e-4)
        for layer, name in ((cache.layers[0], "first_layer_keys"), (cache.layers[-1], "last_layer_keys")):
            close(by_position(layer, layer.keys), case.expected[name], 2e-4)
