"""Metrics for data sets of others, 0..1 for one answer each; the same for every scorer. The scorer's own (qa_f1,
rouge_l, classification, ...) can be named beside them.

Exam metrics are those of L-Eval: what is compared is read out of the answer first. ROUGE is the package rouge-score's,
without stemming, as ZeroSCROLLS and L-Eval take it; `rouge` is the geometric mean of its three kinds of one row, where
those suites take that of three means.
"""

from __future__ import annotations

import functools
import re

from eval.scores.text_words import need, words_en

LETTER = re.compile(r"(?<![A-Za-z])([A-J])(?![A-Za-z'’])")
SAID = re.compile(r"(?:answer|option|choice)\s*(?:is|:)?\s*:?\s*\(?([A-J])(?![A-Za-z])", re.IGNORECASE)
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
LETTERS = re.compile(r"\s*([A-D](?:\s*(?:,|and|&)?\s*[A-D])*)(?![A-Za-z])")
OUTPUT = re.compile(r"[\s,'\\]+")


def contains(prediction: str, answer: str, classes: list[str] | None = None) -> float:
    """The answer stands in the prediction, in whatever case."""
    return float(answer.strip().casefold() in prediction.casefold())


def exact(prediction: str, answer: str, classes: list[str] | None = None) -> float:
    """The same words, without case, articles and punctuation."""
    return float(words_en(prediction) == words_en(answer))


def choice(prediction: str, answer: str, classes: list[str] | None = None) -> float:
    """One letter: that of "the answer is (B)", else the first that stands alone. `answer`: a letter, or begins so."""
    found = SAID.search(prediction) or LETTER.search(prediction)
    right = LETTER.search(answer.upper())
    return float(found is not None and right is not None and found[1].upper() == right[1])


def choices(prediction: str, answer: str, classes: list[str] | None = None) -> float:
    """Several letters of A to D, all and no others; those at the start of the prediction, else all that stand alone."""
    first = LETTERS.match(prediction)
    found = set(re.sub(r"[^A-D]", "", first[1]) if first else LETTER.findall(prediction))
    return float(found == set(re.sub(r"[^A-D]", "", answer.split()[0] if answer.split() else "")))


def number(prediction: str, answer: str, classes: list[str] | None = None) -> float:
    """The number behind "the answer is", else the last one; an answer's own is its last."""
    return float(_number(prediction) is not None and _number(prediction) == _number(answer))


def output(prediction: str, answer: str, classes: list[str] | None = None) -> float:
    """What a program prints: the prediction ends with it, or says it behind "the final output", whatever the blanks,
    commas and quotes."""
    said, right = _output(prediction.casefold().rpartition("the final output")[2]), _output(answer.casefold())
    return float(bool(right) and right in said)


def first_number(prediction: str, answer: str, classes: list[str] | None = None) -> float:
    """The first number of the prediction is the answer."""
    found = re.search(r"\d+", prediction)
    return float(found is not None and found[0] == answer.strip())


def rouge1(prediction: str, answer: str, classes: list[str] | None = None) -> float:
    """F of single words."""
    return _rouge(prediction, answer)["rouge1"]


def rouge2(prediction: str, answer: str, classes: list[str] | None = None) -> float:
    """F of pairs of words."""
    return _rouge(prediction, answer)["rouge2"]


def rougeL(prediction: str, answer: str, classes: list[str] | None = None) -> float:  # noqa: N802, its name everywhere
    """F of the longest common subsequence."""
    return _rouge(prediction, answer)["rougeL"]


def rouge(prediction: str, answer: str, classes: list[str] | None = None) -> float:
    """The geometric mean of the three."""
    one, two, longest = _rouge(prediction, answer).values()
    return (one * two * longest) ** (1 / 3)


def _number(text: str) -> float | None:
    said = re.search(r"answer is[^\d-]*(-?\d[\d,]*(?:\.\d+)?)", text, re.IGNORECASE)
    found = said[1] if said else next(reversed(NUMBER.findall(text)), None)
    return None if found is None else float(found.replace(",", ""))


def _output(text: str) -> str:
    return OUTPUT.sub(" ", text).replace(".0", "").replace("[ ", "[").replace(" ]", "]").strip(" .")


@functools.lru_cache(maxsize=256)
def _rouge(prediction: str, answer: str) -> dict[str, float]:
    return {name: score.fmeasure for name, score in _scorer().score(answer, prediction).items()}


@functools.cache
def _scorer():
    kinds = ["rouge1", "rouge2", "rougeL"]
    return need("rouge_score.rouge_scorer").RougeScorer(kinds, use_stemmer=False)
