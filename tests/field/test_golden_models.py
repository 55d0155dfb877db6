"""Golden cases that are whole models."""

import functools

import pytest
import torch
from golden import cases, close, same

from baselines.prefill.duo_attention import DuoAttention
from baselines.prefill.kvzip import KVzip, _in_top, repeated
from d2o.engine.start import open_engine
from d2o.kernels.axes import far_share


def llama(case):
    """The case's model; it has further inputs besides the weights."""
    inputs, case.given = case.given, {n: x for n, x in case.given.items() if n.startswith(("model.", "lm_head"))}
    model, case.given = case.llama(), inputs
    return model


def words(case):
    """The ids that the case has for what is said."""
    first, more, suffix = (case.given[n].tolist() for n in ("instruction_first", "instruction_next", "suffix"))
    return lambda text: suffix if text == "\n" else more if "part" in text else first


def test_kvzip_of_kvpress(shared):
    """Scores, who stays in each layer and head, logits; of KVzip+ behind a prefix that is not repeated.

    The number that stays is given, since there it is rounded by what is evicted.
    """
    for case in [c for c in cases(shared, "kvzip") if "official" not in c.name]:
        options, sizes, ids = case.settings, case.sizes, case.given["input_ids"].tolist()
        fed, model, layerwise = case.given["decode_ids"].tolist(), llama(case), case.settings["layerwise"]
        heads = sizes["Hk"] * (1 if layerwise else sizes["L"])
        for i, ratio in enumerate(options["compression_ratio"], start=1):
            make = functools.partial(KVzip, "layer" if layerwise else "model", options["n_sink"], options["chunk_size"],
                                     options["kvzip_plus_normalization"])  # fmt: skip
            run = open_engine(model, make, 1 - ratio)
            run.about.words, cache = words(case), run.new_cache()
            cache.lead.begins = options["prefix_length"]
            run.read(cache, [ids])
            close(torch.stack([layer.scores[0] for layer in cache.layers]), case.expected["scores"])
            kept = heads * sizes["S"] - int(heads * sizes["S"] * ratio)
            cache.layers[0].shares = functools.partial(shares, kept=kept, layerwise=layerwise)
            cache.finish_prefill(len(fed))
            for layer, wanted in zip(cache.layers, case.expected[f"kept_mask_{i}"], strict=True):
                for own, mask in zip(layer.positions[0], wanted, strict=True):
                    same(own[own >= 0].sort().values, mask.nonzero()[:, 0])
            if i == 1:
                logits = [run.step(cache, torch.tensor([token]))[0] for token in fed]
                close(torch.stack(logits), case.expected["logits"], 2e-4)


def shares(scores, slots, kept, layerwise):
    if layerwise:
        return [count for layer in scores for count in _in_top(layer, kept)]
    return _in_top(scores.flatten(0, 1), kept)


def test_kvzip_of_its_authors(shared):
    """Their scores, and who stays at each of their ratios: the sinks, which are not counted there, put apart."""
    for case in [c for c in cases(shared, "kvzip") if "official" in c.name]:
        options, sink, scores, start = case.settings, case.settings["sink"], [], case.settings["sink"]
        for c, width in enumerate(options["chunks"]):
            k, q, own = (case.given[name] for name in ("k", f"q.{c}", f"k_repeat.{c}"))
            found = []
            for layer in range(k.shape[0]):
                keys = torch.cat((k[layer, :, :sink], k[layer, :, start : start + width], own[layer]), dim=1)
                every = repeated(q[layer : layer + 1], keys.unsqueeze(0), k.shape[-1] ** -0.5, own.shape[2])
                found.append(every[:, sink : sink + width])
            scores.append(torch.stack(found))
            start += width
        scores = torch.cat(scores, dim=2)
        close(scores, case.expected["score"], 1e-6)
        for j, ratio in enumerate(options["ratios"]):
            n = scores.shape[2]
            if ratio < 1:  # one less than the number is theirs: what equals the threshold leaves
                counts = _in_top(scores.flatten(0, 1), max(int(scores.numel() * ratio) - 1, 0))
                same(torch.tensor(counts).view(scores.shape[:2]), case.expected[f"head_budget_global.{j}"])
                uniform = scores.sort(dim=-1, descending=True).indices[:, :, : int(n * ratio)]
                same(torch.zeros(scores.shape).scatter_(2, uniform, 1), case.expected[f"keep_uniform.{j}"])


def test_what_is_repeated_in_float64():
    """The largest share of each key, over the rows and the query heads of a group, in plain loops."""
    generator = torch.Generator().manual_seed(4)
    q, keys = (torch.randn(1, h, n, 8, generator=generator) for h, n in ((4, 70), (2, 90)))
    expected = torch.zeros(2, 90, dtype=torch.float64)
    for head in range(4):
        for row in range(70):
            seen = 20 + row + 1
            shares = torch.softmax(q[0, head, row].double() @ keys[0, head // 2, :seen].double().T / 3, dim=0)
            expected[head // 2, :seen] = torch.maximum(expected[head // 2, :seen], shares)
    close(repeated(q, keys, 1 / 3, 70), expected.float(), 1e-6)


def streaming(gates, slots, length, least, case, total):
    """The slots of heads as the case has them: its streaming heads, and as many in all."""
    least = case.settings["sink_size"] + case.settings["recent_size"]
    return DuoAttention.shares(gates, total, length, least)


def test_duo_attention(shared, tmp_path):
    """`duo_attention__pattern`: which heads stream, who stays, logits. Their own layer, whose window rolls on while
    decoding, is another method by design."""
    for case in [c for c in cases(shared, "duo_attention") if "pattern" in c.name]:
        options, given = case.settings, case.given
        file, model, fed = tmp_path / "gates.tsv", llama(case), given["decode_ids"].tolist()
        file.write_text("\n".join("\t".join(f"{x:.9f}" for x in row) for row in given["head_scores"].tolist()))
        make = functools.partial(DuoAttention, str(file), options["sink_size"], options["recent_size"])
        for i in (1, 2):
            wanted = case.expected[f"kept_mask_{i}"]
            total = int(wanted.sum())  # theirs need not be whole slots for each head
            run = open_engine(model, make, total / wanted.numel())
            cache = run.new_cache()
            run.read(cache, [given["input_ids"].tolist()])
            cache.layers[0].shares = functools.partial(streaming, case=case, total=total)
            cache.finish_prefill(len(fed))
            for layer, masks in zip(cache.layers, wanted, strict=True):
                for own, mask in zip(layer.positions[0], masks, strict=True):
                    same(own[own >= 0].sort().values, mask.nonzero()[:, 0])
            if i == 1:
                logits = [run.step(cache, torch.tensor([token]))[0] for token in fed]
                close(torch.stack(logits), case.expected["logits"], 2e-4)


def test_what_a_budget_buys_of_heads():
    """Ten heads of 4 slots, then whole heads of 20 by their gates, of equal ones the first, the rest for the next."""
    gates = [0.1, 0.9, 0.9, 2.0, 0.0, 0.3, 0.2, 0.9, -1.0, 0.05]
    assert DuoAttention.shares(gates, 40 + 16 * 3 + 5, 20, 4) == [4, 20, 20, 20, 4, 4, 4, 9, 4, 4]
    assert DuoAttention.shares(gates, 40, 20, 4) == [4] * 10


def test_how_far_back_a_head_looks():
    """Of 40 tokens the first 4 and the nearest 10 are what any head would hold."""
    probs = torch.zeros(4, 2, 40)
    probs[:2, :, 1] = 1.0  # the first two query heads look at the beginning
    probs[2, :, 20], probs[3, 0, 28], probs[3, 1, 30] = 1.0, 1.0, 1.0
    assert far_share(probs, 2).tolist() == [0.0, pytest.approx(0.75)]
