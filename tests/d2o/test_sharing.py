"""Who may follow a prefill that is done once for many: what a class overrides says so."""

import functools

import pytest
from transformers import AutoModelForCausalLM, LlamaConfig
from zoo import GQA, METHODS, build, prompt

from baselines.decode.rkv import RKV
from baselines.h2o import H2O
from baselines.over.criticalkv import CriticalKV
from baselines.prefill import compactor
from baselines.prefill.expected_attention import ExpectedAttention
from baselines.prefill.kvzip import KVzip
from baselines.prefill.sirllm import SirLLM
from baselines.streaming_llm import StreamingLLM
from d2o.d2o import D2O
from d2o.engine.engine import Engine
from d2o.engine.generation import generate
from d2o.engine.reading import prefill_each, prefill_together, shares_prefill
from d2o.engine.start import open_engine
from d2o.engine.together import generate_together
from d2o.errors import InputError
from d2o.layer import KeepAll

APART = {"locret", "locret_original", "pyramidinfer", "pyramidinfer_official"}
MODEL = build("llama_gqa")
TEXTS, NEW = [prompt(70), prompt(41, 1)], 5


class Appends(H2O):
    def append(self, key, value, lengths):
        super().append(key, value, lengths)


class Hooks(SirLLM):
    def around_forward(self, model, layers, feed):
        return super().around_forward(model, layers, feed)


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
        "hooks": Hooks,
        "remembers": Remembers,
    }
    apart = {name for name, make in makers.items() if not shares_prefill(open_engine(MODEL, make, 0.3))}
    own = {"d2o_counted_bound", "keydiff_blocks", "lagkv_recursive"}  # they cut, or attend otherwise, while they read
    assert apart == APART | own | {"stream", "bound", "cam_stream", "appends", "hooks"}


@pytest.mark.parametrize(
    ("family", "slides", "shares"), [("gemma3", True, False), ("gemma3", False, True), ("gemma2", False, False),
                                     ("gpt_oss", False, False)]
)  # fmt: skip
def test_layers_that_slide_caps_and_sinks_keep_methods_apart(family, slides, shares):
    engine = open_engine(build(family), METHODS["h2o"], 0.3)
    assert any(engine.windows)
    if not slides:
        engine.windows = [None] * engine.layers  # as over texts that no window is shorter than
    assert shares_prefill(engine) == shares


def test_a_rotation_that_changes_with_the_text_keeps_methods_apart():
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "factor": 16.0,
            "long_factor": [1.0, 2.0, 4.0, 8.0], "original_max_position_embeddings": 64}  # fmt: skip
    served = AutoModelForCausalLM.from_config(LlamaConfig(**GQA | {"rope_parameters": rope})).eval()
    engines = [open_engine(served, METHODS[name], 0.3) for name in ("h2o", "full")]
    assert not any(map(shares_prefill, engines))
    prompts = [prompt(40), prompt(62, 1), prompt(70, 2)]  # the second crosses
    for engine, ours in zip(engines, generate_together(engines, prompts, 5), strict=True):
        assert [x.tokens for x in ours] == [x.tokens for x in generate(engine, prompts, 5)]


def test_steps_of_a_graph_keep_a_method_apart():
    engine = open_engine(MODEL, METHODS["h2o"], 0.3)
    engine.graph = True
    assert not shares_prefill(engine)


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


def test_one_that_looks_on_refuses_for_itself_and_a_model_that_fails_fails_for_all():
    odd = build("llama_gqa")
    odd.config.logit_scale = 1.5  # of which its head knows nothing
    engines = [open_engine(odd, make, 0.4) for make in (SirLLM, H2O, KVzip)]
    for chunk in (None, 16):
        for engine in engines:
            engine.chunk = chunk
        refused, *others = generate_together(engines, TEXTS, NEW)
        assert isinstance(refused, InputError) and "sirllm" in str(refused)
        for engine, ours in zip(engines[1:], others, strict=True):
            assert [x.tokens for x in ours] == [x.tokens for x in generate(engine, TEXTS, NEW)]
    assert not any(one._forward_pre_hooks or one._forward_hooks for one in odd.modules())
    with pytest.raises(RuntimeError, match="broke"):
        odd.model.layers[1].forward = broken
        generate_together(engines, TEXTS, NEW)
    assert not any(one._forward_pre_hooks or one._forward_hooks for one in odd.modules())


def broken(*args, **kwargs):
    raise RuntimeError("broke")


@pytest.mark.parametrize(
    ("name", "of", "counted", "each"),
    [("rkv", RKV, "likeness", 1), ("criticalkv", CriticalKV, "output_norms", 1),
     ("expected_attention", ExpectedAttention, "_expected", 1), ("compactor", compactor, "leverage", 2),
     ("compactor", compactor, "received", None)],
)  # fmt: skip
@pytest.mark.parametrize("read", [prefill_together, prefill_each])
@pytest.mark.parametrize("chunk", [None, 16])
def test_what_no_budget_is_in_is_computed_once_for_all_budgets(monkeypatch, name, of, counted, each, read, chunk):
    """`each`: calls for a layer of the model, in which there are two rows; None: as many as one budget alone makes."""
    engines = [open_engine(MODEL, METHODS[name], budget) for budget in (0.2, 0.5, 0.7)]
    for engine in engines:
        engine.chunk = chunk
    alone = [engine.prefill(TEXTS, NEW)[0] for engine in engines]
    plain, calls = getattr(of, counted), []
    monkeypatch.setattr(of, counted, lambda *words: calls.append(1) or plain(*words))
    engines[0].prefill(TEXTS, NEW)
    most = len(calls) if each is None else each * engines[0].layers
    assert len(calls) == most
    calls.clear()
    found = [one[-2] for one in read(engines, TEXTS, NEW)]
    assert len(calls) == most
    for ours, cache in zip(found, alone, strict=True):
        for one, other in zip(ours.layers, cache.layers, strict=True):
            assert one.positions.equal(other.positions) and one.once_found is None


def test_a_cut_that_waits_for_the_first_token_remembers_nothing_of_the_prompt():
    def late():
        layer = METHODS["rkv"]()
        layer.compress_at = "first_decode"
        return layer

    engines = [open_engine(MODEL, make, budget) for make in (METHODS["rkv"], late) for budget in (0.2, 0.5)]
    for engine, ours in zip(engines, generate_together(engines, TEXTS, NEW), strict=True):
        assert [(x.tokens, x.ledger) for x in ours] == [(x.tokens, x.ledger) for x in generate(engine, TEXTS, NEW)]
