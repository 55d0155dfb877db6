"""What a task makes of a model that thinks, and of a tokenizer that ends every text: mini, a needle test, lm-eval."""

import copy
import dataclasses

import pytest
from tokenizers.processors import TemplateProcessing

import d2o.lab.lab
from baselines.full import Full
from d2o.errors import InputError
from d2o.lab.lab import Lab
from eval.tasks.mini.task import Mini
from eval.tasks.needle.task import Needle
from tests.lm_eval_kit import LOCAL, ask, choices, loaded

SAID = "<think>red, or blue?</think>\nblue."


@pytest.fixture
def thinks(monkeypatch):
    """Every answer is SAID."""
    plain, tokenizer = d2o.lab.lab.respond, loaded("tiny").tokenizer

    def respond(*args, **how):
        tokens = tokenizer(SAID, add_special_tokens=False).input_ids
        return [dataclasses.replace(one, tokens=tokens) for one in plain(*args, **how)]

    monkeypatch.setattr(d2o.lab.lab, "respond", respond)


def lab_of(**changes):
    return Lab(dataclasses.replace(loaded("tiny"), **changes), Full, 1.0)


def rows_of(task, lab, count=2):
    samples = [sample for _, sample in zip(range(count), task.samples(), strict=False)]
    task.begin(samples, lab)
    return [row for batch in task.in_batches(samples, 2) for row in task.measure(batch, lab)]


@pytest.mark.parametrize("question", ["before", "again", "after"])
def test_thoughts_are_no_part_of_a_prediction(question, thinks):
    for task in (Mini("single", 256, question=question), Needle([200], 2, question=question)):
        for row in rows_of(task, lab_of()):
            assert (row["pred"], row["raw"]) == ("blue.", SAID)
        for row in rows_of(task, lab_of(strip_thinking=False)):
            assert row["pred"] == SAID and "raw" not in row


def test_a_row_without_thoughts_has_no_raw_text():
    (row,) = rows_of(Mini("single", 256), lab_of(), 1)
    assert "raw" not in row


# ---- lm-eval


def test_lm_eval_gets_the_answer_and_the_row_all_of_it(thinks):
    pytest.importorskip("lm_eval")
    from eval.tasks.lm_eval.task import LMEval

    for row in rows_of(LMEval(["local_sums"], LOCAL), lab_of()):
        assert row["responses"] == [row["pred"]] == ["blue."] and row["raw"] == SAID
    for row in rows_of(LMEval(["local_sums"], LOCAL), lab_of(strip_thinking=False)):
        assert row["responses"] == [SAID] and "raw" not in row


@pytest.fixture
def ended():
    """The bundled tokenizer, which now puts its EOS behind a text."""
    tokenizer = copy.deepcopy(loaded("tiny").tokenizer)
    bos, eos = (tokenizer.bos_token, tokenizer.bos_token_id), (tokenizer.eos_token, tokenizer.eos_token_id)
    single = f"{bos[0]} $A {eos[0]}"
    tokenizer._tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=[bos, eos])
    assert tokenizer("a").input_ids[-1] == tokenizer.eos_token_id
    return tokenizer


def test_lm_eval_leaves_the_eos_out_of_prompts_and_continuations(ended):
    pytest.importorskip("lm_eval")
    from eval.tasks.lm_eval.model import EvictingLM

    plain, other = EvictingLM(lab_of()), EvictingLM(lab_of(tokenizer=ended))
    pairs = [("The cat", " said hello."), ("One day", " a"), ("", "hello")]
    for text in ("The cat said", "<s>The cat", ""):
        assert other.tok_encode(text) == plain.tok_encode(text)
    for pair in pairs[:2]:
        assert other._encode_pair(*pair) == plain._encode_pair(*pair)
    for kind, requests in (
        ("loglikelihood", choices(*pairs)),
        ("loglikelihood_rolling", [ask("loglikelihood_rolling", "The cat said hello. " * 9)]),
        ("generate_until", [ask("generate_until", "The cat", {"until": ["."], "max_gen_toks": 6})]),
    ):
        assert getattr(other, kind)(requests, disable_tqdm=True) == getattr(plain, kind)(requests, disable_tqdm=True)


def test_lm_eval_s_turns_go_through_the_same_template(ended):
    pytest.importorskip("lm_eval")
    from eval.tasks.lm_eval.model import EvictingLM

    tokenizer = copy.deepcopy(ended)
    tokenizer.chat_template = "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}|{% endfor %}"
    lm = EvictingLM(lab_of(tokenizer=tokenizer))
    turns = [{"role": "user", "content": "1 and 1?"}, {"role": "assistant", "content": "2"}]
    assert lm.apply_chat_template(turns) == "1 and 1?|2|", "as parts"
    assert lm.apply_chat_template(turns, False) == "1 and 1?|2", "left open"
    tokenizer.chat_template = "{{ messages[0].content }}"
    with pytest.raises(InputError, match="leaves a message out"):
        lm.apply_chat_template([*turns, {"role": "user", "content": "and 3?"}])
