"""The LongBench metrics without the official scorer's faults. Same names and signature as official.py; the
differences are

- classification: classes that are only a part of the right class's name are all dropped, not every second one;
- rouge_l: rouge-score's ROUGE-L (one longest common subsequence over the whole texts, F1 over all words, letters and
  digits only, lower case, no stemming) instead of the package `rouge`; nothing that raises is turned into a score,
  long texts are scored;
- rouge_l_zh: the same over jieba's words without punctuation;
- code_similarity: difflib's ratio, not rounded to whole percent and without the heuristic that treats frequent
  characters of lines from 200 characters on as junk;
- first line: leading blanks and blank lines of any kind are skipped, not only newlines.

Everything else is the official metric: token F1, retrieval, count. They are kept where a change would be another
benchmark and not a correction (for example: which line of code is taken; no credit for a class that is only similar
to what was written, which the official code intends and never reaches).
"""

from __future__ import annotations

import difflib
import functools

from eval.scores.official import classes_named, code_line, count, qa_f1, qa_f1_zh, retrieval, retrieval_zh
from eval.scores.text_words import need, words_zh

__all__ = [
    "classification",
    "code_similarity",
    "count",
    "first_line",
    "qa_f1",
    "qa_f1_zh",
    "retrieval",
    "retrieval_zh",
    "rouge_l",
    "rouge_l_zh",
]


def first_line(prediction: str) -> str:
    """What is scored where only the first line counts."""
    return prediction.strip().split("\n")[0].rstrip()


def rouge_l(prediction: str, answer: str, all_classes: list[str] | None = None) -> float:
    """rouge-score's ROUGE-L F."""
    return _scorer(chinese=False).score(answer, prediction)["rougeL"].fmeasure


def rouge_l_zh(prediction: str, answer: str, all_classes: list[str] | None = None) -> float:
    """rouge-score's ROUGE-L F over jieba's words."""
    return _scorer(chinese=True).score(answer, prediction)["rougeL"].fmeasure


def classification(prediction: str, answer: str, all_classes: list[str] | None = None) -> float:
    """1 / (number of classes named) if the right one is among them; parts of the right class's name do not count."""
    named = [name for name in classes_named(prediction, all_classes) if name == answer or name not in answer]
    return 1.0 / len(named) if answer in named else 0.0


def code_similarity(prediction: str, answer: str, all_classes: list[str] | None = None) -> float:
    """Similarity of the first line that is neither comment nor fence."""
    return difflib.SequenceMatcher(None, code_line(prediction), answer, autojunk=False).ratio()


class _Words:
    """The tokenizer that rouge-score wants for Chinese: its own keeps nothing but a-z and 0-9."""

    def tokenize(self, text: str) -> list[str]:
        return words_zh(text)


@functools.cache
def _scorer(chinese: bool):
    rouge = need("rouge_score.rouge_scorer")
    return rouge.RougeScorer(["rougeL"], use_stemmer=False, tokenizer=_Words() if chinese else None)
