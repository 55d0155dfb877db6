"""D2O's merge by counts: a restatement in float64, and whole models against attention over mixed values."""

import functools
import math

import pytest
import torch
from golden import by_position, drive
from test_restatements import GROUP, HEADS, KV_HEADS, PROMPT, SLOTS, PlainD2O, inputs
from zoo import CLOSE, Oracle, build, prompt

from baselines.decode.d2o_counted import CountedD2O
from d2o.engine.start import open_engine
from d2o.feed import Feed
from d2o.rows import PromptRows

BIAS, LAST = 0.5, 120


class PlainCounted(PlainD2O):
    """Values are means over tokens, keys stay, a slot of p tokens has half of log p on its logit."""

    def setup(self):
        super().setup()
        self.count, self.out = [{} for _ in range(KV_HEADS)], {}

    def row(self, head, t):
        own, counts = head // GROUP, self.count[head // GROUP]
        raw = {p: float(self.q[head, t] @ entry[0]) / 4.0 for p, entry in self.held[own].items()}
        weight = {p: math.exp(x) * counts.get(p, 1) ** BIAS for p, x in raw.items()}
        total = sum(weight.values())
        row = {p: x / total for p, x in weight.items()}
        self.out[head, t] = sum(x * self.held[own][p][1] for p, x in row.items())
        return row

    def take_in(self, head, target, merged):
        counts = self.count[head]
        tokens = counts.get(target, 1)
        value = tokens * self.held[head][target][1]
        for _, position, entry in merged:
            more = counts.pop(position, 1)
            value, tokens = value + more * entry[1], tokens + more
        self.held[head][target][1], counts[target] = value / tokens, tokens


def test_slots_values_and_attention_over_many_steps():
    layer, slow = CountedD2O(), PlainCounted()
    history = slow.run(LAST)
    trace = drive(layer, *(x[:, :, : PROMPT + LAST] for x in inputs()), PROMPT, SLOTS)
    assert [ours.tolist() for ours in trace.held] == history
    joined, values = by_position(layer, layer.joined), by_position(layer, layer.values)
    for head, held in enumerate(slow.held):
        counts = [slow.count[head].get(p, 1) - 1 for p in sorted(held)]
        assert joined[head].tolist() == counts and max(counts) > 3
        restated = torch.stack([held[p][1] for p in sorted(held)]).float()
        torch.testing.assert_close(values[head], restated, atol=1e-4, rtol=1e-4)
    for step in (0, 1, LAST - 1):
        wanted = torch.stack([slow.out[head, PROMPT + step] for head in range(HEADS)]).float()
        torch.testing.assert_close(trace.outputs[step][0, :, 0], wanted, atol=1e-4, rtol=1e-3)


class Once(CountedD2O):
    """Evicts after the prompt and never again: what is fed later is fed as a block."""

    decode_eviction = False


def test_a_block_behind_slots_that_took_others_in():
    q, k, v = (x[:, :, : PROMPT + 6] for x in inputs())
    slow, fast = Once(), Once()
    trace = drive(slow, q, k, v, PROMPT, SLOTS)
    drive(fast, q[:, :, :PROMPT], k[:, :, :PROMPT], v[:, :, :PROMPT], PROMPT, SLOTS)
    new = (x[:, :, PROMPT:] for x in (q, k, v))
    out = fast.attend(*new, q.shape[-1] ** -0.5, Feed([6]))
    torch.testing.assert_close(out, torch.cat(trace.outputs, dim=2), **CLOSE)
    assert slow.joined.sum() > 0


def test_rows_of_a_chunk_give_away_all_their_attention():
    """Behind an early cut the sums of a chunk are taken under the bias under which it attended."""
    looked = []

    class Watched(CountedD2O):
        def observe(self, attn):
            if isinstance(attn, PromptRows):
                rows = attn.lengths[0] * attn.queries.shape[1]
                looked.append(float(attn.column_sums().sum()) / rows)
            super().observe(attn)

    run = open_engine(build("llama_gqa"), lambda: Watched(hold="bound"), 0.2, chunk=16)
    cache, _ = run.prefill([prompt(70)])
    assert looked == pytest.approx([1.0] * 15, abs=1e-5) and cache.layers[0].joined.sum() > 0


class Mixed(Oracle):
    """`masks`: per layer a list of (rows, bias `[Hkv, T]`, mixing `[Hkv, T, T]`) of what those rows see of the past:
    position p is seen with the value mixing[p] @ values. Rows of no entry see all of the text before them."""

    def eager(self, layer, query, key, value, scale, cap=None, sinks=None):
        total, groups = query.shape[2], query.shape[1] // key.shape[1]
        spread = lambda x: x.repeat_interleave(groups, dim=0)  # noqa: E731
        logits = query[0] @ spread(key[0]).transpose(-1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)
        causal = torch.ones(total, total).tril().bool()
        bias = torch.zeros(query.shape[1], total, total)
        mixing = {}
        for rows, past, mixed in self.masks[layer]:
            for row in rows:
                own = torch.arange(total) >= rows.start  # tokens fed in the same forward are seen as they are
                bias[:, row] = torch.where(own, 0.0, spread(past))
                mixing[row] = mixed
        probs = torch.softmax((logits + bias).masked_fill(~causal, float("-inf")), dim=-1)
        out = probs @ spread(value[0])
        for row, mixed in mixing.items():
            out[:, row] = (probs[:, row].unsqueeze(1) @ spread(mixed @ value[0])).squeeze(1)
        return out.unsqueeze(0)


class Followed:
    """What every slot of every layer is made of, counted from who was merged into whom alone."""

    def __init__(self, cache, total):
        self.cache, self.total = cache, total
        self.mix = [[torch.eye(total) for _ in range(2)] for _ in cache.layers]
        self.count = [[torch.ones(total) for _ in range(2)] for _ in cache.layers]
        for layer in cache.layers:
            layer.around_absorb, layer.merge_log = self.look, []

    def look(self, layer, evicted, kept, rows):
        layer.absorb(evicted, kept, rows)
        log = layer.merge_log.pop()
        for head in range(2):
            mix, count = self.mix[layer.index][head], self.count[layer.index][head]
            old_mix, old = mix.clone(), count.clone()
            sums = {}
            columns = (x[0, head].tolist() for x in (log.positions, log.into, log.merged))
            for p, into, merged in zip(*columns, strict=True):
                if merged:
                    sums.setdefault(into, []).append(p)
            for into, gone in sums.items():
                tokens = old[into] + sum(old[p] for p in gone)
                mix[into] = (old[into] * old_mix[into] + sum(old[p] * old_mix[p] for p in gone)) / tokens
                count[into] = tokens

    def now(self, rows, hidden=()):
        """Per layer what the next tokens `rows` see: as Mixed takes it."""
        found = []
        for layer, mix, count in zip(self.cache.layers, self.mix, self.count, strict=True):
            bias = torch.full((2, self.total), float("-inf"))
            for head, positions in enumerate(layer.positions[0].long()):
                held = positions[positions >= 0]
                bias[head, held] = BIAS * count[head][held].log()
                bias[head, list(hidden)] = 0
            mixed = torch.stack(mix)
            for position in hidden:
                mixed[:, position] = torch.eye(self.total)[position]
            found.append((rows, bias, mixed))
        return found


def cut(entry, total):
    rows, bias, mixed = entry
    return rows, bias[:, :total], mixed[:, :total, :total]


@torch.inference_mode()
@pytest.mark.parametrize("hold, chunk", [("all", None), ("bound", 16)])
def test_a_whole_model_equals_attention_over_what_was_mixed(hold, chunk):
    """Prefill in chunks that are cut early, steps, a block that is fed at once, and the last token read again."""
    text, feed = prompt(60), prompt(9, 9)
    run = open_engine(build("llama_gqa"), functools.partial(CountedD2O, hold=hold, threshold=-1.0), 0.2, chunk=chunk)
    cache, total = run.new_cache(), len(text) + len(feed)
    followed, seen, ours = Followed(cache, total), [[] for _ in cache.layers], []

    def note(rows):
        for layer, one in zip(seen, followed.now(rows), strict=True):
            layer.append(one)

    def every(start, logits):
        ours.append(logits[0])
        note(range(start + logits.shape[1], min(start + logits.shape[1] + (chunk or 60), len(text))))

    run.read(cache, [text], len(feed), every)
    cache.finish_prefill(len(feed))
    last = len(text) - 1
    again = [[*layer, one] for layer, one in zip(seen, followed.now(range(last, last + 1), (last,)), strict=True)]
    expected = Mixed(build("llama_gqa")).logits(text, [[cut(one, last + 1) for one in layer] for layer in again])[-1]
    torch.testing.assert_close(run.read_again(cache, torch.tensor(text[-1:]))[0], expected, **CLOSE)
    for i in range(3):
        note(range(len(text) + i, len(text) + i + 1))
        ours.append(run.extend(cache, torch.tensor([feed[i : i + 1]]))[0])
    fork = cache.fork()  # a block is fed at once, and seen token by token
    for layer in fork.layers:
        layer.around_absorb = None
    at_once = run.extend(fork, torch.tensor([feed[3:]]))[0]
    for i in range(3, len(feed)):
        note(range(len(text) + i, len(text) + i + 1))
        ours.append(run.extend(cache, torch.tensor([feed[i : i + 1]]))[0])
    expected = Mixed(build("llama_gqa")).logits(text + feed, seen)
    torch.testing.assert_close(torch.cat(ours), expected, **CLOSE)
    torch.testing.assert_close(at_once, expected[len(text) + 3 :], **CLOSE)
    assert max(float(x.max()) for layer in followed.count for x in layer) > 3
