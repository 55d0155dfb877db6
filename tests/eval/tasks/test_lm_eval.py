"""The model that lm-eval is handed, over an evicted cache: against lm-eval's own model, an explicit mask, itself."""

import functools
import json

import pytest
import torch

pytest.importorskip("lm_eval")

from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM

from baselines.h2o import H2O
from baselines.snapkv import SnapKV
from d2o.d2o import D2O
from d2o.engine.engine import Engine
from d2o.engine.generation import generate
from d2o.engine.start import open_engine
from d2o.errors import InputError
from d2o.lab.likelihood import nll
from d2o.lab.oracle import Oracle, run_masks, seen_by
from d2o.models.prompt import decode
from d2o.stop import Stop
from eval.tasks.lm_eval.readings import readings
from eval.tasks.lm_eval.task import LMEval
from tests.lm_eval_kit import LOCAL, MODELS, ask, choices, loaded, measured, ours, requests_of

DROP = functools.partial(D2O, merge=False)  # a mask hides slots, and knows nothing of merged ones


@functools.cache
def theirs(name):
    """lm-eval's own model for transformers, on weights of its own: ours attends through our caches."""
    model = AutoModelForCausalLM.from_pretrained(loaded(name) and MODELS[name], dtype=torch.float32)
    return HFLM(pretrained=model.eval(), tokenizer=loaded(name).tokenizer, batch_size=1, device="cpu")


TEXT = "Once upon a time there was a little cat who lived near a lake. " * 3
PAIRS = [
    (TEXT, " The cat said hello."),
    (TEXT, " a"),
    (TEXT + "Lily saw the cat and", " ran to her mother"),
    ("One day", " it was over"),
    ("", "hello there"),
]


# ---- the full cache: lm-eval's own model


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_full_generates_what_their_model_does(name, batch_size):
    """Prompts of stories260K are longer than its window and lose their beginning, as theirs do."""
    requests = requests_of("local_sums", 3)
    for request in requests[1:]:
        request.arguments = (request.args[0], {"until": ["\n\n", ".", "Question:"], "max_gen_toks": 20})
    lm = ours(name, batch_size=batch_size)
    found = lm.generate_until(requests, disable_tqdm=True)
    assert found == theirs(name).generate_until(requests, disable_tqdm=True)
    assert any(found) and [row["truncated"] for row in lm.rows] == [name == "stories260K"] * 3
    assert lm.realised == 1
    assert lm.rows[2]["new_tokens"] < 20, "a stop string ends it"


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_full_log_likelihoods_are_their_models(name, batch_size):
    requests = requests_of("local_choice", 3) + choices(*PAIRS)
    found = ours(name, batch_size=batch_size).loglikelihood(requests, disable_tqdm=True)
    wanted = theirs(name).loglikelihood(requests, disable_tqdm=True)
    assert [value for value, _ in found] == pytest.approx([value for value, _ in wanted], abs=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in wanted]


@pytest.mark.parametrize("name", MODELS)
def test_full_streams_are_their_rolling_likelihoods(name):
    """The second text is longer than the window of stories260K: it is cut into windows."""
    requests = [ask("loglikelihood_rolling", text) for text in (TEXT, TEXT * 12)]
    lm = ours(name)
    found = lm.loglikelihood_rolling(requests, disable_tqdm=True)
    wanted = theirs(name).loglikelihood_rolling(requests, disable_tqdm=True)
    assert found == pytest.approx(wanted, abs=1e-3, rel=1e-6) and len(lm.rows) == 2


# ---- an evicted cache: an explicit mask


def masked(name, method, context, continuation, again):
    """Log-likelihood from the stock model under masks that hide what the layers evicted, token by token."""
    engine = open_engine(loaded(name).model, method, 0.2)
    cache, _ = engine.prefill([context], reserve=len(continuation))
    steps, after_prefill, n = [], [layer.positions[0].clone() for layer in cache.layers], len(context)
    for i, token in enumerate(continuation[:-1]):
        steps.append([seen_by(layer.positions[0], n + i) for layer in cache.layers])
        engine.extend(cache, torch.tensor([[token]]))
    oracle = Oracle(loaded(name).model)
    heads = cache.layers[0].positions.shape[1]
    causal = [torch.ones(n, n, dtype=torch.bool).tril().repeat(heads, 1, 1) for _ in cache.layers]
    masks = run_masks(n, steps) if steps else causal
    logits = oracle.logits([*context, *continuation[:-1]], masks)[n - 1 :].clone()
    if again:  # the last token of the context, seeing what was kept and itself
        for mask, positions in zip(causal, after_prefill, strict=True):
            mask[:, n - 1] = seen_by(positions, n - 1)[:, :n]
        logits[0] = oracle.logits(context, causal)[-1]
    return float(torch.log_softmax(logits, -1).gather(1, torch.tensor(continuation)[:, None]).sum())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", [H2O, SnapKV, DROP], ids=["h2o", "snapkv", "d2o_drop"])
@pytest.mark.parametrize("question", ["again", "before"])
def test_an_evicted_cache_is_an_explicit_mask(name, method, question):
    pairs = PAIRS[:3]
    lm, full = ours(name, method, 0.2, batch_size=2, question=question), ours(name)
    found = [value for value, _ in lm.loglikelihood(choices(*pairs), disable_tqdm=True)]
    whole = [value for value, _ in full.loglikelihood(choices(*pairs), disable_tqdm=True)]
    for value, of_full, (context, continuation) in zip(found, whole, pairs, strict=True):
        ids = lm._encode_pair(context, continuation)
        assert value == pytest.approx(masked(name, method, *ids, question == "again"), abs=1e-4)
        blind = question == "before" and len(ids[1]) == 1  # it was judged before anything left
        assert (abs(value - of_full) < 1e-4) == blind
    assert all(0.15 < row["budget_realised"] <= 0.2 for row in lm.rows)


@pytest.mark.parametrize("method", [H2O, SnapKV, D2O])
def test_batches_change_nothing(method):
    requests = requests_of("local_choice", 2) + choices(*PAIRS[:3])
    sums = requests_of("local_sums", 3)
    one, many = (ours("tiny", method, 0.2, batch_size=size) for size in (1, 4))
    alone, together = (lm.loglikelihood(requests, disable_tqdm=True) for lm in (one, many))
    assert [v for v, _ in together] == pytest.approx([v for v, _ in alone], abs=2e-4)
    alone, together = (lm.generate_until(sums, disable_tqdm=True) for lm in (one, many))
    assert together == alone
    assert [row["held_prefill"] for row in many.rows] == [row["held_prefill"] for row in one.rows]


def test_an_answer_begins_where_the_question_says():
    """From the evicted cache, or from the prefill, as the engine itself generates; the two differ."""
    requests, said = requests_of("local_sums", 3), {}
    for question in ("again", "before"):
        lm = ours("tiny", H2O, 0.1, question=question)
        said[question] = lm.generate_until(requests, disable_tqdm=True)
        engine = open_engine(loaded("tiny").model, H2O, 0.1)
        for request, text in zip(requests, said[question], strict=True):
            prompt = [lm.tok_encode(request.args[0])]
            (found,) = generate(engine, prompt, 48, Stop(loaded("tiny").eos_ids), again=question == "again")
            assert text == decode(loaded("tiny"), found.tokens).split("Question:")[0]
    assert said["again"] != said["before"]


def test_choices_share_one_prefill(monkeypatch):
    lm, fed = ours("tiny", H2O, 0.2), []
    plain = Engine.prefill

    def counted(self, prompts, *args, **kwargs):
        fed.append(len(prompts))
        return plain(self, prompts, *args, **kwargs)

    monkeypatch.setattr(Engine, "prefill", counted)
    lm.loglikelihood(requests_of("local_choice", 2), disable_tqdm=True)
    assert fed == [1, 1] and len(lm.rows) == 8
    task = LMEval(["local_choice"], LOCAL)
    for row, sample in zip(measured(task, 2), task.samples(), strict=False):
        requests = sample.meta["requests"]
        assert row["prompt_tokens"] == len(lm.tok_encode(requests[0].args[0])), "counted once"
        assert row["new_tokens"] == sum(len(lm._encode_pair(*request.args)[1]) for request in requests)


def test_a_stream_evicts_as_it_goes():
    request = [ask("loglikelihood_rolling", TEXT * 2)]
    lm = ours("tiny", H2O, 64)
    (found,), (full,) = (one.loglikelihood_rolling(request, disable_tqdm=True) for one in (lm, ours("tiny")))
    ids = lm.tok_encode(TEXT * 2)
    lost = nll(open_engine(loaded("tiny").model, H2O, 64), [lm.prefix_token_id, *ids], prefill=1)
    assert found == pytest.approx(-float(lost.sum()), abs=1e-2) and abs(found - full) > 0.1
    assert lm.rows[0]["held_decode"] == [64.0] * 4
    assert lm.rows[0]["budget_realised"] == pytest.approx(64 / len(ids), abs=1e-6), "at the end, of all that was fed"


# ---- from Python


@pytest.mark.parametrize("task", ["local_sums", "local_choice"])
def test_simple_evaluate_says_what_a_cell_says(task):
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=LOCAL, include_defaults=False)
    lm = ours("tiny", D2O, 0.2, batch_size=4)
    found = simple_evaluate(lm, tasks=[task], task_manager=manager, limit=4, verbosity=None)
    rows = measured(LMEval([task], LOCAL), 4)
    own = readings(rows)
    for key, value in found["results"][task].items():
        if "," in key:
            assert own[key] == pytest.approx(value, abs=1e-12), key
    assert [row["responses"] for row in rows] == [
        json.loads(json.dumps([response[0] for response in sample["resps"]]))
        for sample in found["samples"][task]
        if sample["filter"] == found["samples"][task][0]["filter"]
    ]
    assert lm.realised == pytest.approx(sum(row["budget_realised"] for row in rows) / 4, abs=1e-6)


def test_values_are_joined_as_they_join_them():
    from lm_eval.api.metrics import mean, mean_stderr, perplexity

    values = [0.0, 1.0, 0.5, 1.0, 0.25]
    about = {"task": "x", "version": 1, "n_shot": 0, "aggregation": {"a": "mean", "p": "perplexity"}}
    rows = [{"metrics": {"a,none": value, "p,none": -value}, "lm_eval": about} for value in values]
    wanted = {"a,none": mean(values), "a_stderr,none": mean_stderr(values), "p,none": perplexity([-v for v in values])}
    assert readings(rows) == pytest.approx(wanted)


# ---- what is refused


@pytest.mark.parametrize("kwargs", [{"do_sample": True, "num_beams": 4}, {"num_beams": 4}, {"length_penalty": 2}])
def test_beams_and_the_like_are_refused(kwargs):
    with pytest.raises(InputError, match="greedily"):
        ours("tiny").generate_until([ask("generate_until", "a", {"until": ["x"], **kwargs})], disable_tqdm=True)


def test_streams_need_slots_and_a_method_that_goes_on():
    request = [ask("loglikelihood_rolling", TEXT)]
    with pytest.raises(InputError, match=r"budget=0\.2 is a share"):
        ours("tiny", H2O, 0.2).loglikelihood_rolling(request)
    with pytest.raises(InputError, match="evicts once"):
        ours("tiny", SnapKV, 64).loglikelihood_rolling(request)
