"""One colour and one marker per method, the same in every figure; one that is not named here has its own by its name.

Colours are those of Okabe and Ito, and for the others Tol's muted ones, which all kinds of colour vision tell apart; a
marker says it again. Of a method with other knobs the colour is that of the method, paler, and the marker is hollow.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

FULL, RANDOM, OURS = "full", "random", "d2o"
FIXED = {
    OURS: ("#D55E00", "o"), "h2o": ("#0072B2", "s"), "snapkv": ("#009E73", "D"), "streaming_llm": ("#E69F00", "^"),
    "tova": ("#56B4E9", "v"), "pyramidkv": ("#CC79A7", "P"), "adakv": ("#8C6D31", "X"), RANDOM: ("#777777", "."),
    "keepkv": ("#882255", "D"), "headkv": ("#661100", "H"), "rkv": ("#332288", "X"), "locret": ("#999933", "P"),
    "compactor": ("#44AA99", "H"),
}  # fmt: skip
OTHERS = ("#117733", "#AA4499", "#6699CC", "#88CCEE", "#DDCC77", "#CC6677")
MARKERS = "p*h<>8d"
FAMILIES = {  # of which a crowded figure shows the best one in colour
    "every step": ("h2o", "tova", "cam", "morphkv", "rkv", "triattention", "headwise", "layerwise"),
    "merging": ("keepkv", "d2o_counted"),
    "after the prefill": ("snapkv", "chunkkv", "criticalkv", "pyramidkv", "cake"),
    "heads apart": ("adakv", "lava", "headkv", "duo_attention"),
    "without attention": ("streaming_llm", "knorm", "keydiff", "lagkv", "qfilter", "sirllm", "compactor",
                          "expected_attention"),
    "in the prefill": ("pyramidinfer", "locret", "kvzip"),
}  # fmt: skip
PALER = 0.38  # towards white, for each further knob


def method_of(label: str) -> str:
    """The method of a label: "d2o, no merge" and "d2o merge=false" -> d2o."""
    return label.replace(",", " ").split(" ")[0]


def is_ours(label: str) -> bool:
    """D2O as published, with no knob turned."""
    return label in (OURS, f"{OURS} paper")


def family_of(label: str) -> str:
    """The family of a label's method; one that is in none is its own."""
    method = method_of(label)
    return next((name for name, methods in FAMILIES.items() if method in methods), method)


def look_of(label: str, labels: Sequence[str]) -> dict[str, Any]:
    """Colour and marker of `label`; `labels` are all of a figure or a report, among which it may be a further knob of
    its method."""
    if method_of(label) == FULL:
        return {"color": "#222222", "marker": "", "linestyle": (0, (4, 2)), "zorder": 1.5}
    method = method_of(label)
    colour, marker = FIXED.get(method) or _by_name(method, [method_of(one) for one in labels])
    same = sorted((one for one in {*labels, label} if method_of(one) == method), key=lambda one: (len(one), one))
    further = same.index(label)
    look: dict[str, Any] = {"color": _paler(colour, min(further, 2)), "marker": marker, "linestyle": "-"}
    if further:
        look |= {"markerfacecolor": "white", "marker": (marker + MARKERS)[further % (1 + len(MARKERS))]}
    return look | ({"zorder": 3} if method == OURS else {})


def _by_name(method: str, others: Sequence[str]) -> tuple[str, str]:
    """The colour is the name's own; of several methods with one colour each has another marker."""
    colour = _drawn(method)
    same = sorted({one for one in (*others, method) if one not in FIXED and one != FULL and _drawn(one) == colour})
    return OTHERS[colour], MARKERS[same.index(method) % len(MARKERS)]


def _drawn(method: str) -> int:
    return zlib.crc32(method.encode("utf-8", "surrogatepass")) % len(OTHERS)


def _paler(colour: str, steps: int) -> str:
    parts = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(255 - (255 - part) * (1 - PALER) ** steps):02X}" for part in parts)
