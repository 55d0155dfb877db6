"""lm-eval's own tasks, as far as they go without their data."""

import json

import pytest

pytest.importorskip("lm_eval")

import datasets
from test_lm_eval_cells import run

from baselines.h2o import H2O
from d2o.lab.lab import Lab
from eval.tasks.lm_eval.load import describe
from eval.tasks.lm_eval.readings import readings
from eval.tasks.lm_eval.task import LMEval
from tests.lm_eval_kit import LOCAL, ROOT, loaded, measured, nothing_has_failed  # noqa: F401  # for every test here

STAND_IN = {
    "gsm8k": {"question": "A goat eats 3 apples a day. How many in 2 days?", "answer": "3 * 2 = 6\n#### 6"},
    "coqa": {
        "id": "1", "story": "A goat stood on a roof.",
        "questions": {"input_text": ["Who stood there?"], "turn_id": [1]},
        "answers": {"input_text": ["a goat"], "turn_id": [1], "span_start": [0], "span_end": [6],
                    "span_text": ["A goat"]},
        "additional_answers": {str(i): {"input_text": ["the goat"], "turn_id": [1]} for i in range(3)},
    },
    "truthfulqa_gen": {
        "question": "Do goats fly?", "best_answer": "Goats do not fly.", "correct_answers": ["Goats do not fly."],
        "incorrect_answers": ["Goats fly."], "type": "x", "category": "x", "source": "x",
    },
    "infinitebench_passkey": {
        "id": 1, "context": "The key is 123.", "input": "What is the key?", "answer": ["123"], "options": [],
    },
    "longbench2_table": {"context": "A table.", "question": "Which?", "choices": ["a", "b", "c", "d"], "answer": 2},
}  # fmt: skip
EXPECTED = {
    "gsm8k": ("generate_until", 5, 3.0, {"exact_match,strict-match", "exact_match,flexible-extract"}),
    "coqa": ("generate_until", 0, 3.0, {"em,none", "f1,none"}),
    "truthfulqa_gen": ("generate_until", 0, 3.0, {"bleu_max,none", "bleu_acc,none", "rougeL_max,none"}),
    "infinitebench_passkey": ("generate_until", 0, 1.0, {"score,none"}),
    "longbench2_table": ("multiple_choice", 0, 0.0, {"acc,none"}),
}


def splits(name):
    docs = datasets.Dataset.from_list([STAND_IN[name]] * 7)
    return datasets.DatasetDict({split: docs for split in ("train", "validation", "test", "passkey")})


@pytest.mark.parametrize("name", STAND_IN)
def test_their_tasks_load_and_are_measured(name, monkeypatch):
    """Their YAMLs, prompts, filters and metrics; a document of our own in place of their data."""
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: splits(name))
    task = LMEval([name], LOCAL)
    kind, shots, version, metrics = EXPECTED[name]
    assert (task.task.OUTPUT_TYPE, task.task.get_config("num_fewshot"), task.task.VERSION) == (kind, shots, version)
    sample = next(task.samples())
    text = STAND_IN[name].get("question") or STAND_IN[name].get("story") or STAND_IN[name]["input"]
    assert sample.prompt.count(text) == (len(sample.meta["requests"]) if shots == 0 else shots + 1)
    (row,) = measured(task, 1, H2O)
    assert metrics <= set(row["metrics"]) and readings([row]) and "score" in row
    assert describe(task.task) == describe(LMEval([name], LOCAL).task)
    assert " at 0x" not in json.dumps(task.protocol())


REASONING = {
    "gsm8k": ("openai/gsm8k", [" It is 6.\n#### 6", " It is 7.\n#### 7"]),
    "coqa": ("EleutherAI/coqa", [" A goat, roof"] * 2),  # one word more than there is: F1 2/3, exact match 0
    "truthfulqa_gen": ("truthfulqa/truthful_qa", [" Goats do not fly."] * 2),
}


def test_the_reasoning_table_is_run_and_printed(tmp_path, capsys, monkeypatch):
    """Published and measured stand side by side, in per cent; documents, model and answers are stand-ins."""
    loaded("tiny")
    names = {path: name for name, (path, _) in REASONING.items()}
    monkeypatch.setattr(datasets, "load_dataset", lambda path, *args, **kwargs: splits(names[path]))
    plain = Lab.complete

    def told(self, prompts, max_new_tokens, *args):
        done = plain(self, prompts, 4, *args)
        for one in done:
            one.text = answers.pop(0)
        return done

    monkeypatch.setattr(Lab, "complete", told)
    answers = [answer for _, told in REASONING.values() for answer in told]
    place = f"model.path={ROOT / 'models' / 'tiny'}"
    code, out, err = run(["-m", "table=d2o_reasoning", "method=H2O", "budget=.2", "limit=2", place], tmp_path, capsys)
    assert code == 0 and "3 of 3 cells done" in err, err
    assert {path.name for path in tmp_path.glob("Llama-2-7B/*/*")} == {f"d2o_reasoning-{name}" for name in REASONING}
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if "| H2O " in line]
    shown = {line[0]: line[2:7] for line in lines if line[2] == "20 %"}
    assert all(0.15 < float(line[1]) <= 0.2 and line[2] == "2" for line in shown.values())
    assert {label: line[3].strip("*<u>/") for label, line in shown.items()} == {
        "GSM8K": "10.24", "CoQA F1": "66.09", "TruthfulQA": "",
    }  # fmt: skip
    assert {label: line[4].strip("*") for label, line in shown.items()} == {
        "GSM8K": "50.00", "CoQA F1": "66.67", "TruthfulQA": "100.00",
    }  # fmt: skip


def test_a_hub_that_is_away_is_named_and_asked_once(monkeypatch, capsys, tmp_path):
    asked = []

    def away(path, *args, **kwargs):
        asked.append(path)
        raise ConnectionError(f"Couldn't reach '{path}' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", away)
    code, _, err = run(["-m", "table=d2o_reasoning"], tmp_path, capsys)
    assert code == 2 and err.count("error: ") == err.count("hint: ") == 1 and "Traceback" not in err, err
    assert "2 more of this command cannot start either" in err
    assert "Couldn't reach 'openai/gsm8k'" in err and "HF_HOME" in err and "include_path" in err
    assert asked == ["openai/gsm8k", "EleutherAI/coqa", "truthfulqa/truthful_qa"]
