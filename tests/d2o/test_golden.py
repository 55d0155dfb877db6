"""Golden cases of H2O, TOVA, SnapKV and D2O, within its stated tolerance."""

import functools
import json

import numpy as np
import pytest
import torch
from golden import Case, by_position, cases, close, drive, held, same
from transformers import LlamaConfig, LlamaForCausalLM

from baselines.h2o import H2O
from baselines.snapkv import SnapKV
from baselines.tova import TOVA
from d2o.allocation import layer_metric, ratios
from d2o.d2o import D2O
from d2o.engine.rotary import Rotation
from d2o.engine.start import open_engine


def notes(look):
    """A list, and a function that puts what `look(layer)` sees into it."""
    seen = []
    return seen, lambda layer: seen.append(look(layer))


def rope(x, theta=10000.0):
    """Keys or queries `[1, H, n, D]` turned to positions 0..n-1."""
    inv_freq = theta ** -(torch.arange(0, x.shape[-1], 2).float() / x.shape[-1])
    return Rotation(inv_freq, False)(x, torch.arange(x.shape[2]).float()), Rotation(inv_freq, False)


def test_h2o(shared):
    for case in cases(shared, "h2o"):
        hh, recent = case.settings["hh_size"], case.settings["recent_size"]
        rolling = "rolling" in case.name
        layer = H2O(recent=recent / (hh + recent) + 1e-9, positions="slot" if rolling else "original")
        q, k, v = case.qkv()
        if rolling:
            (q, layer.rotation), (k, _) = rope(q), rope(k)
        scores, note = notes(lambda x: by_position(x, x.scores))
        trace = drive(layer, q, k, v, case.sizes["S"], hh + recent, note)
        same(torch.stack(trace.held), case.expected["kept_positions"])
        close(torch.stack(scores), case.expected["score"])
        close(trace.prefill[0], case.expected["attn_out_prefill"])
        close(torch.cat(trace.outputs, dim=2)[0].transpose(0, 1), case.expected["attn_out"])


def test_tova(shared):
    for case in cases(shared, "tova"):
        layer = TOVA()
        trace = drive(layer, *case.qkv(), case.sizes["S"], case.settings["cache_size"])
        kept = torch.stack(trace.held)
        for head in range(kept.shape[1]):
            same(kept[:, head], case.expected["kept_positions"])
        close(trace.prefill[0], case.expected["attn_out_prefill"])
        close(torch.cat(trace.outputs, dim=2)[0].transpose(0, 1), case.expected["attn_out"])


def test_snapkv(shared):
    for case in cases(shared, "snapkv"):
        options = case.settings
        group = options["gqa_score_agg"]
        layer = SnapKV(
            options["window_size"], options["kernel_size"], options["pooling"].removesuffix("pool"), group or "mean"
        )
        q, k, v = case.qkv() if group is None else (case.given[name].unsqueeze(0) for name in "qkv")
        trace = drive(layer, q, k, v, case.sizes["S"], options["max_capacity_prompt"])
        kept = case.expected["kept_positions"]
        same(trace.held[0], kept)
        order = case.expected["kept_in_cache_order"].sort(dim=-1).indices
        for ours, reference in ((layer.keys, "k_cache"), (layer.values, "v_cache")):
            stored = case.expected[reference]
            wanted = stored.gather(1, order.unsqueeze(-1).expand_as(stored))
            close(by_position(layer, ours), wanted, 0)


def d2o_layer(case):
    n, m = case.sizes["N"], case.sizes["M"]
    ema = {name: case.settings[name] for name in ("alpha", "belta")}
    return D2O(variant="official", recent=m / (n + m), budget_accounting="nominal", **ema)


def d2o_state(layer):
    """Threshold, keys, values and scores of what is held, by position."""
    tau = None if layer.tau is None else layer.tau.clone()
    return tau, *(by_position(layer, x).clone() for x in (layer.keys, layer.values, layer.scores))


@pytest.mark.parametrize("name", ["d2o__official_layer__", "d2o__official_layer_mha__"])
def test_d2o_layer(shared, name):
    for case in [c for c in cases(shared, "d2o") if c.name.startswith(name)]:
        layer, first = d2o_layer(case), {}
        heads = [0, 9, 18, 31]
        original = layer.absorb

        def absorb(evicted, kept, rows, layer=layer, original=original, first=first):
            first.setdefault("pruned", evicted.positions[0].clone())
            original(evicted, kept, rows)

        layer.absorb = absorb

        log, note = notes(d2o_state)
        trace = drive(layer, *case.qkv(), case.sizes["S"], case.sizes["C"], note)
        tau, keys, values, scores = zip(*log[1:], strict=True)
        same(torch.stack(trace.held[1:]), case.expected["kept_positions"])
        same(first["pruned"], case.expected["first_pruned_positions"])
        close(torch.stack([t.reshape(()) for t in tau]), case.expected["threshold"])
        keys, values, scores = (torch.stack(x) for x in (keys, values, scores))
        close(keys[:, heads], case.expected["k_after"])
        close(values[:, heads], case.expected["v_after"])
        close(keys[-1].sum(1), case.expected["k_sum"], 2e-4)  # sums of 19 keys, each within 2e-5
        close(values[-1].sum(1), case.expected["v_sum"], 2e-4)
        close(keys.norm(dim=-1), case.expected["k_norm"])
        close(values.norm(dim=-1), case.expected["v_norm"])
        finite = case.expected["score"].isfinite()  # the reference stores +inf for its sinks, we protect them by rule
        close(scores[finite], case.expected["score"][finite])
        close(torch.cat(trace.outputs, dim=2)[0].transpose(0, 1), case.expected["attn_out"])


def test_d2o_prefill_statistics(shared):
    for case in [c for c in cases(shared, "d2o") if "official_layer" in c.name]:
        layer, prompt = d2o_layer(case), case.sizes["S"]
        layer.finish_prefill = lambda reserve: None
        drive(layer, *(x[:, :, :prompt] for x in case.qkv()), prompt, case.sizes["C"])
        close(layer.scores[0, :, :prompt], case.expected["prefill_score"])
        close(layer.metric([prompt]), case.expected["F"])


def test_d2o_allocation(shared):
    for case in [c for c in cases(shared, "d2o") if "allocation" in c.name]:
        hh, recent = case.settings["hh_ratio"], case.settings["recent_ratio"]
        metric = layer_metric(case.given["column_sums"])
        close(metric, case.expected["F"], 1e-5)
        found = ratios(metric, hh + recent)
        close(found, case.expected["R"], 1e-5)
        method = D2O(variant="official", recent=recent / (hh + recent), budget_accounting="nominal")
        for length, layers in zip(case.given["prompt_lengths"].tolist(), case.expected["N_M"], strict=True):
            ours = [method.nominal_slots(float(r), length + 1) for r in found]
            assert ours == layers.sum(dim=-1).tolist()
            assert [method.recent(slots) for slots in ours] == layers[:, 1].tolist()


def expand_heads(weight, groups, dim):
    """A KV projection `[Hkv * D, hidden]` repeated for every query head."""
    return weight.view(-1, dim, weight.shape[1]).repeat_interleave(groups, dim=0).reshape(-1, weight.shape[1])


def whole_model(case, about):
    config = dict(case.model)
    groups = config["num_attention_heads"] // config["num_key_value_heads"]
    rope_parameters = {"rope_type": "default", "rope_theta": config.pop("rope_theta")}
    config["num_key_value_heads"] = config["num_attention_heads"]
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**config, rope_parameters=rope_parameters))
    weights = {}
    for entry in about["tensors"]:
        shape = entry["shape"]
        if entry["rule"] == "all ones":
            weights[entry["name"]] = torch.ones(shape)
            continue
        ints = np.random.RandomState(about["seed"] + entry["index"]).randint(-127, 128, size=shape, dtype=np.int8)
        assert int(ints.astype(np.int64).sum()) == entry["int_sum"]
        tensor = torch.from_numpy(ints).float() * 2.0 ** int(entry["rule"].split("**")[1])
        kv = "k_proj" in entry["name"] or "v_proj" in entry["name"]
        weights[entry["name"]] = expand_heads(tensor, groups, config["head_dim"]) if kv else tensor
    model.load_state_dict(weights, assign=True)
    model.model.rotary_emb = type(model.model.rotary_emb)(config=model.config)
    return model


def asked_for(case):
    """The method and the budget that a case of a whole model says."""
    options, budget = case.settings, case.settings["hh_ratio"] + case.settings["recent_ratio"]
    layers = case.model["num_hidden_layers"]
    protected = [i - layers if i == layers - 1 else i for i in options["layers_never_compressed"]]
    method = functools.partial(
        D2O, variant="official", budget_accounting="nominal", recent=options["recent_ratio"] / budget,
        alpha=options["alpha"], belta=options["belta"], sinks=options["sinks"], protected_layers=protected,
    )  # fmt: skip
    return method, budget


def test_d2o_whole_model(shared):
    folder = next((shared / "golden").glob("d2o__whole_model__*"))
    case = Case.read(folder)
    model = whole_model(case, json.loads((folder / "case.json").read_text())["weight_recipe"])
    engine = open_engine(model, *asked_for(case))
    ids, prompt = case.given["input_ids"].tolist(), case.sizes["S"]
    logits = []
    cache, _ = engine.prefill([ids[:prompt]], 8, every=lambda start, x: logits.append(x[0]))
    lengths = [[len(held(layer)[0]) for layer in cache.layers]]
    inner, kept, tau = cache.layers[2:-1], [], []
    for token in ids[prompt:]:
        logits.append(engine.step(cache, torch.tensor([token])))
        lengths.append([len(held(layer)[0]) for layer in cache.layers])
        tau.append(torch.stack([layer.tau.reshape(()).clone() for layer in inner]))
        kept.append([held(layer) for layer in inner])
    close(torch.cat(logits), case.expected["logits"], 1e-3)
    same(torch.tensor(lengths), case.expected["cache_lengths"])
    close(torch.stack(tau), case.expected["threshold"], 1e-4)
    assert [layer.slots[0] for layer in inner] == case.expected["N_M"].sum(dim=-1).tolist()
    for step, layers in enumerate(kept):
        for index, ours in enumerate(layers):
            same(ours, case.expected["kept_positions"][index, step, :, : ours.shape[1]])
