"""Who may follow a prefill that is done once for many: what a class overrides says so."""

import functools

from zoo import METHODS, build, prompt

from baselines.h2o import H2O
from baselines.streaming_llm import StreamingLLM
from d2o.d2o import D2O
from d2o.engine.engine import Engine
from d2o.engine.generation import generate
from d2o.engine.reading import shares_prefill
from d2o.engine.start import open_engine
from d2o.engine.together import generate_together
from d2o.layer import KeepAll

APART = {"locret", "locret_original", "pyramidinfer", "pyramidinfer_official"}
MODEL = build("llama_gqa")


class Appends(H2O):
    def append(self, key, value, lengths):
        super().append(key, value, lengths)


class Remembers(H2O):
    def observe(self, attn):
        super().observe(attn)

    def of_its_own(self):
        return 1


def test_what_a_class_overrides_says_whether_it_may_follow():
    makers = dict(METHODS) | {
        "stream": functools.partial(StreamingLLM, positions="original", stream=True),
        "bound": functools.partial(D2O, hold="bound"),
        "cam_stream": lambda: METHODS["cam"].func(base_args={"positions": "original", "stream": True}),
        "appends": Appends,
        "remembers": Remembers,
    }
    apart = {name for name, make in makers.items() if not shares_prefill(open_engine(MODEL, make, 0.3))}
    assert apart >= APART | {"stream", "bound", "cam_stream", "appends"}
    assert not apart & (set(METHODS) - APART | {"remembers"})


class Slides(KeepAll):
    """A layer that is no method's, and attends in a way of its own."""

    def attend(self, q, k, v, scale, feed):
        return 2 * super().attend(q, k, v, scale, feed)


class Hybrid(Engine):
    def new_cache(self, *words):
        cache = super().new_cache(*words)
        cache.layers[1] = Slides()
        cache.layers[1].index, cache.layers[1].unlimited = 1, True
        return cache


def test_a_layer_that_is_no_method_s_attends_for_each_follower():
    def opened(name):
        engine = open_engine(MODEL, METHODS[name], 70)
        return Hybrid(engine.model, engine.method, engine.budget)

    engines, prompts = [opened(name) for name in ("h2o", "snapkv", "full")], [prompt(70), prompt(41, 1)]
    for engine, ours in zip(engines, generate_together(engines, prompts, 5), strict=True):
        alone = generate(engine, prompts, 5)
        assert [(x.tokens, x.ledger) for x in ours] == [(x.tokens, x.ledger) for x in alone]
