"""Metrics of the bundled benchmark, in [0, 1]; the same for every scorer."""

import re


def exact(prediction: str, answer: str, all_classes: list[str] | None = None) -> float:
    """The answer and nothing else, up to the full stop or line end that closes it."""
    return float(re.split(r"\.|\n", prediction.lstrip(), maxsplit=1)[0].strip() == answer)


def told(prediction: str, answer: str, all_classes: list[str] | None = None) -> float:
    """The answer stands in the prediction as a word of its own."""
    return float(re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", prediction) is not None)


def last(prediction: str, answer: str, all_classes: list[str] | None = None) -> float:
    """The answer is the last word: where a chain of steps is told, only its end counts."""
    words = re.findall(r"\w+", prediction)
    return float(bool(words) and words[-1] == answer)
