"""The official LongBench metrics, oddities included: `scorer=official` reproduces published numbers to two decimals.

A metric is a function (prediction, answer, all_classes) -> 0..1 for ONE answer; score.py takes the best over the
answers. `fixed.py` has the same names, corrected, and lists every difference. The oddities:
- classification removes from the list it iterates over, so every second class that should go can stay and halve the
  score;
- code similarity is a rounded percentage of difflib's ratio (with its junk heuristic from 200 characters on), and the
  first line that holds none of ` # // is taken, white space lines included;
- ROUGE-L is that of the package `rouge` 1.0.1, 0.0 where it raises (rouge_official.py);
- the first line is what follows leading newlines only: a line of blanks counts as an answer.
What is installed beside it must not matter: fuzzywuzzy is pinned to difflib (it would use python-Levenshtein when
importable, up to 34 points off on one pair), jieba is a tokenizer of our own, `rouge` is not imported.
"""

from __future__ import annotations

import difflib
import functools
import importlib.util
import re
import warnings
from collections import Counter
from types import ModuleType

from d2o.errors import InputError
from eval.scores import rouge_official
from eval.scores.text_words import cut, need, words_en, words_zh

NUMBER = re.compile(r"\d+")


def first_line(prediction: str) -> str:
    """What is scored where only the first line counts."""
    return prediction.lstrip("\n").split("\n")[0]


def qa_f1(prediction: str, answer: str, all_classes: list[str] | None = None) -> float:
    """F1 over the multisets of words."""
    return overlap_f1(words_en(prediction), words_en(answer))


def qa_f1_zh(prediction: str, answer: str, all_classes: list[str] | None = None) -> float:
    """F1 over the multisets of jieba's words."""
    return overlap_f1(words_zh(prediction), words_zh(answer))


def rouge_l(prediction: str, answer: str, all_classes: list[str] | None = None) -> float:
    """ROUGE-L F as `rouge` 1.0.1."""
    return rouge_official.rouge_l(prediction, answer)


def rouge_l_zh(prediction: str, answer: str, all_classes: list[str] | None = None) -> float:
    """ROUGE-L F as `rouge` 1.0.1 over jieba's words."""
    return rouge_official.rouge_l(" ".join(cut(prediction)), " ".join(cut(answer)), rouge_official.MAX_STEPS_ZH)


def classification(prediction: str, answer: str, all_classes: list[str] | None = None) -> float:
    """1 / (number of classes named) if the right one is among them; parts of the right class's name should not count,
    but can.
    """
    named = classes_named(prediction, all_classes)
    for name in named:  # removes while iterating, as the official code does
        if name in answer and name != answer:
            named.remove(name)
    return 1.0 / len(named) if answer in named else 0.0


def retrieval(prediction: str, answer: str, all_classes: list[str] | None = None) -> float:
    """Share of the numbers in the prediction that are the N of "Paragraph N"."""
    return share_of_numbers(prediction, paragraph_number(answer, "Paragraph "))


def retrieval_zh(prediction: str, answer: str, all_classes: list[str] | None = None) -> float:
    """Share of the numbers in the prediction that are the N of "段落N"."""
    return share_of_numbers(prediction, paragraph_number(answer, "段落"))


def count(prediction: str, answer: str, all_classes: list[str] | None = None) -> float:
    """Share of the numbers in the prediction that equal the answer."""
    return share_of_numbers(prediction, answer)


def code_similarity(prediction: str, answer: str, all_classes: list[str] | None = None) -> float:
    """Similarity of the first line that is neither comment nor fence, in whole percent."""
    return _fuzz().ratio(code_line(prediction), answer) / 100


def overlap_f1(prediction: list[str], answer: list[str]) -> float:
    """F1 of two multisets; 0 where they share nothing."""
    same = sum((Counter(prediction) & Counter(answer)).values())
    if same == 0:
        return 0.0
    precision, recall = same / len(prediction), same / len(answer)
    return 2 * precision * recall / (precision + recall)


def classes_named(prediction: str, all_classes: list[str] | None) -> list[str]:
    """The classes whose name occurs in the prediction, in the order of `all_classes`."""
    if not all_classes:
        raise InputError(
            "all_classes is missing in a row of a classification set", "take all_classes over from the data set's rows"
        )
    return [name for name in all_classes if name in prediction]


def code_line(prediction: str) -> str:
    """The first line without ` # or //, "" if there is none."""
    lines = prediction.lstrip("\n").split("\n")
    return next((line for line in lines if not any(mark in line for mark in ("`", "#", "//"))), "")


def paragraph_number(answer: str, prefix: str) -> str:
    """The number behind `prefix` in the answer."""
    found = re.search(re.escape(prefix) + r"(\d+)", answer)
    if not found:
        raise InputError(f"the answer {answer!r} names no paragraph", f'answers of this set read "{prefix}N"')
    return found[1]


def share_of_numbers(prediction: str, right: str) -> float:
    """How many of the numbers in the prediction are the right one, as a share; 0 without any."""
    numbers = NUMBER.findall(prediction)
    return numbers.count(right) / len(numbers) if numbers else 0.0


@functools.cache
def _fuzz() -> ModuleType:
    """A private copy of fuzzywuzzy.fuzz whose matcher is difflib's, whatever is installed."""
    need("fuzzywuzzy.utils")
    spec = importlib.util.find_spec("fuzzywuzzy.fuzz")
    fuzz = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it recommends the package that would change the scores
        spec.loader.exec_module(fuzz)
    fuzz.SequenceMatcher = difflib.SequenceMatcher
    return fuzz
