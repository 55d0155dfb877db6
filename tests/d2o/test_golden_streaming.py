"""Golden cases of StreamingLLM, within their stated tolerance."""

import functools

import pytest
import torch
from golden import by_position, held
from test_golden import cases, close, same

from baselines.streaming_llm import StreamingLLM
from d2o.engine.start import open_engine


def streaming(case, **shape):
    settings = case.settings
    engine = open_engine(case.llama(), functools.partial(StreamingLLM, sinks=settings["start_size"]), **shape)
    return engine, settings["start_size"] + settings["recent_size"]


def check_streaming_end(case, cache, engine):
    for index, layer in enumerate(cache.layers):
        positions = by_position(layer, layer.positions)
        close(by_position(layer, layer.values), case.expected["final_values"][index], 1e-4)
        keys = by_position(layer, layer.keys)
        turned = torch.where(positions < layer.sinks, layer.seen[0] - layer.held[0] - case.last_shift, 0)
        close(engine.rotation(keys, -(positions + turned)), case.expected["final_keys_pre_rope"][index], 1e-4)


@pytest.mark.parametrize("name", ["token_by_token", "prefill_decode"])
def test_streaming_llm(shared, name):
    for case in [c for c in cases(shared, "streaming_llm") if name in c.name]:
        ids = case.given["input_ids"].tolist()
        prompt = 1 if name == "token_by_token" else case.sizes["prompt_lengths"][0]
        engine, slots = streaming(case, budget=case.settings["start_size"] + case.settings["recent_size"])
        logits, events = [], []
        cache, _ = engine.prefill([ids[:prompt]], 64, every=lambda start, x, logits=logits: logits.append(x[0]))
        events.append(held(cache.layers[0])[0])
        for token in ids[prompt:] + case.expected.get("tokens", torch.empty(0)).long().tolist():
            logits.append(engine.step(cache, torch.tensor([token])))
            events.append(held(cache.layers[0])[0])
        close(torch.cat(logits), case.expected["logits"], 2e-4)
        ours = torch.nn.utils.rnn.pad_sequence(events, batch_first=True, padding_value=-1)
        same(ours, case.expected["held_positions"][:, : ours.shape[1]])
        # the sinks were last turned for the step before the newest eviction
        case.last_shift = 1
        check_streaming_end(case, cache, engine)


def test_streaming_llm_makes_space_for_a_chat(shared):
    """The reference's chat loop, by hand: cut to make room for prompt and answer, then feed both without cutting."""
    for case in [c for c in cases(shared, "streaming_llm") if "chat" in c.name]:
        engine, slots = streaming(case, budget=case.settings["start_size"] + case.settings["recent_size"])
        ids, greedy = case.given["input_ids"].tolist(), case.expected["tokens"].tolist()
        answer, logits, events, cache = case.sizes["T"], [], [], None
        for turn, length in enumerate(case.sizes["prompt_lengths"]):
            text, ids = ids[:length], ids[length:]
            fed = greedy[turn * answer : (turn + 1) * answer]
            if cache is None:
                cache, _ = engine.prefill([text], answer, every=lambda start, x, logits=logits: logits.append(x[0]))
                text = []
            elif cache.layers[0].held[0] + length + answer > slots:
                for layer in cache.layers:
                    layer.slots = [slots - length - answer]
                    layer.compress(length + answer)
                    layer.slots = [slots]
                    layer.arm()
            logits.append(engine.extend(cache, torch.tensor([text + fed]))[0])
            events.append(held(cache.layers[0])[0])
        close(torch.cat(logits), case.expected["logits"], 2e-4)
        ours = torch.nn.utils.rnn.pad_sequence(events, batch_first=True, padding_value=-1)
        same(ours, case.expected["held_positions"][:, : ours.shape[1]])
        case.last_shift = 0
        check_streaming_end(case, cache, engine)
