"""SQuAD's exact match and token F1: CoQA's scorer in lm-eval looks for them where transformers 5 has them no more."""

from __future__ import annotations

import importlib.util
import re
import string
import sys
import types
from collections import Counter

PLACE = "transformers.data.metrics.squad_metrics"
ARTICLES = re.compile(r"\b(a|an|the)\b", re.UNICODE)


def words(text: str) -> list[str]:
    """Lower case, without punctuation and articles."""
    bare = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return ARTICLES.sub(" ", bare).split()


def compute_exact(a_gold: str, a_pred: str) -> int:
    """1 where both say the same words."""
    return int(words(a_gold) == words(a_pred))


def compute_f1(a_gold: str, a_pred: str) -> float:
    """F1 over the words in common; where one of them says nothing, 1 if the other does neither."""
    gold, told = words(a_gold), words(a_pred)
    if not gold or not told:
        return int(gold == told)
    same = sum((Counter(gold) & Counter(told)).values())
    return 2 * same / (len(gold) + len(told))


def stand_in() -> None:
    """Put these where they are looked for, unless transformers has its own."""
    above = PLACE.rpartition(".")[0]
    if PLACE in sys.modules or importlib.util.find_spec(above):
        return
    package, module = types.ModuleType(above), types.ModuleType(PLACE)
    module.compute_exact, module.compute_f1 = compute_exact, compute_f1
    package.squad_metrics = module
    sys.modules[above], sys.modules[PLACE] = package, module
