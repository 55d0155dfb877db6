"""What every method must satisfy of the rows of a batch, of caches that take turns, and of questions (4, 7 and 8)."""

import pytest
import torch
from test_properties import LENGTHS, STEPS, engine, forced
from zoo import CLOSE, METHODS, home, pairs, prompt, visible_now

from d2o.engine.generation import generate
from d2o.stop import Stop


@pytest.mark.parametrize("family, method", pairs(METHODS))
def test_4_a_row_of_a_batch_is_the_row_alone(family, method):
    prompts = [prompt(n, seed) for seed, n in enumerate(LENGTHS)]
    feed = torch.tensor([prompt(STEPS, 20 + b) for b in range(len(prompts))])
    tried = ((0.3, None), (40, 16))  # 40: one row has nothing, or almost nothing, to evict
    for budget, chunk in tried if family == home(method) else tried[:1]:
        run = engine(family, method, budget, chunk=chunk)
        cache, first = run.prefill(prompts, STEPS)
        rows = torch.stack([first, *(run.step(cache, feed[:, i]) for i in range(STEPS))], dim=1)
        for b, text in enumerate(prompts):
            expected, alone = forced(run, text, feed[b].tolist(), reserve=STEPS)
            torch.testing.assert_close(rows[b], expected, **CLOSE)
            assert cache.close_ledger(b).held_prefill == alone.close_ledger(0).held_prefill
            assert cache.ledgers[b].held_decode == alone.ledgers[0].held_decode


def test_4_generated_tokens_of_a_batch():
    prompts = [prompt(n, seed) for seed, n in enumerate(LENGTHS)]
    run = engine("llama_gqa", "d2o", 0.3)
    stop = Stop(frozenset({143}), least=2)
    together = [g.tokens for g in generate(run, prompts, 30, stop)]
    assert together == [generate(run, [p], 30, stop)[0].tokens for p in prompts]
    assert {len(tokens) for tokens in together} != {30}, "no row stopped early: the comparison shows less"
    assert all(tokens[-1] == 143 or len(tokens) == 30 for tokens in together)


@pytest.mark.parametrize("method", METHODS)
def test_7_caches_take_turns_and_can_be_forked(method):
    run = engine("llama_gqa", method, 0.4)
    texts, feed = [prompt(60), prompt(45, 1)], prompt(STEPS, 2)
    alone = [forced(run, text, feed)[0] for text in texts]
    caches, rows = [], []
    for text in texts:
        cache, first = run.prefill([text])
        caches.append(cache)
        rows.append([first[0]])
    for i, token in enumerate(feed):
        if i == 4:
            fork = caches[0].fork()
            run.extend(fork, torch.tensor([prompt(7, 5)]))  # must not disturb the cache it was forked from
        for cache, row in zip(caches, rows, strict=True):
            row.append(run.step(cache, torch.tensor([token]))[0])
    for row, expected in zip(rows, alone, strict=True):
        torch.testing.assert_close(torch.stack(row), expected, **CLOSE)
    fork = caches[0].fork()
    both = [run.step(cache, torch.tensor([7])) for cache in (caches[0], fork)]
    assert torch.equal(*both)


@pytest.mark.parametrize("family, method", pairs(METHODS))
def test_8_a_question_at_once_is_the_question_token_by_token(family, method):
    run, question = engine(family, method, 0.3), prompt(17, 3)
    one_by_one, slow = forced(run, prompt(LENGTHS[0]), question)
    cache, _ = run.prefill([prompt(LENGTHS[0])])
    at_once = run.extend(cache, torch.tensor([question]))[0]
    torch.testing.assert_close(at_once, one_by_one[1:], **CLOSE)
    for a, b in zip(visible_now(cache), visible_now(slow), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("method", ["full", "h2o", "snapkv", "d2o"])
def test_8_questions_of_a_batch(method):
    run, prompts = engine("llama_gqa", method, 0.3), [prompt(n, seed) for seed, n in enumerate(LENGTHS)]
    questions = [prompt(5, 7), prompt(9, 8), prompt(5, 9)]
    together = generate(run, prompts, STEPS, questions=questions)
    for text, question, row in zip(prompts, questions, together, strict=True):
        cache, _ = run.prefill([text], 40)
        logits = run.extend(cache, torch.tensor([question]))[:, -1]
        tokens = [int(logits.argmax())]
        while len(tokens) < STEPS:
            tokens.append(int(run.step(cache, torch.tensor(tokens[-1:])).argmax()))
        assert row.tokens == tokens
        assert row.ledger.held_prefill == cache.ledgers[0].held_prefill


def test_8_after_a_question_of_a_growing_method_decoding_goes_on():
    """A block fed at once must leave the next free slot right."""
    run, question, feed = engine("llama_gqa", "snapkv", 0.3), prompt(17, 3), prompt(5, 4)
    expected, _ = forced(run, prompt(70), question + feed)
    cache, _ = run.prefill([prompt(70)])
    run.extend(cache, torch.tensor([question]))
    rest = torch.stack([run.step(cache, torch.tensor([token]))[0] for token in feed])
    torch.testing.assert_close(rest, expected[-5:], **CLOSE)
