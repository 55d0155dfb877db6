"""The tables of docs/speed.md that scripts/cost computes, one for every length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from scripts.cost.trace import CARDS, Found, floors
from scripts.measure.marked import put

BEGIN, END = "<!-- cost -->\n", "<!-- cost end -->"
HEADER = ("TFLOP", "GB", "launches", "waits", *(f"{card.name} s" for card in CARDS), "x floor",
          "GFLOP", "GB", "launches", "a layer", *(f"{card.name} ms" for card in CARDS), "x floor",
          "GB again")  # fmt: skip


def length_table(context: int, found: Mapping[str, Found | str], layers: int) -> str:
    """Markdown of one length: prefill and step of every method, or why it was not traced."""
    marks = ["---", *["---:"] * len(HEADER)]
    rows = [_row(name, one, context, layers) for name, one in found.items()]
    head = [f"{context:,} tokens", *HEADER]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, marks, _floor(context, layers), *rows))


def _floor(context: int, layers: int) -> list[str]:
    """What the products of `full` and one reading of its weights and slots take."""
    both = [floors(layers, card.rates) for card in CARDS]
    first = both[0]
    flops = first.prefill("full", 1, context) * first.rates.flops
    held = context * slot_bytes(layers)
    prefills = [f"{one.prefill('full', 1, context):.3f}" for one in both]
    steps = [f"{one.step(held) * 1e3:.2f}" for one in both]
    return ["floor of `full`", f"{flops / 1e12:.1f}", "", "", "", *prefills, "1.00",
            "", f"{(first.read + held) / 1e9:.2f}", "", "", *steps, "1.00", ""]  # fmt: skip


def slot_bytes(layers: int) -> int:
    """Keys and values of one token in all layers, bfloat16: 8 heads of 128 each."""
    return layers * 2 * 8 * 128 * 2


def _row(name: str, one: Found | str, context: int, layers: int) -> list[str]:
    if isinstance(one, str):
        return [f"`{name}`", one, *[""] * (len(HEADER) - 1)]
    first, prefill, step = floors(layers, CARDS[0].rates), one.prefill, one.step
    return [
        f"`{name}`", f"{prefill.flops / 1e12:.1f}", f"{(prefill.read + prefill.written) / 1e9:.0f}",
        f"{prefill.launches:.0f}", f"{prefill.waits:.0f}", *(f"{s:.3f}" for s in prefill.each),
        f"{prefill.each[0] / first.prefill('full', 1, context):.2f}",
        f"{step.flops / 1e9:.1f}", f"{(step.read + step.written) / 1e9:.2f}", f"{step.launches:.0f}", f"{step.own:g}",
        *(f"{s * 1e3:.2f}" for s in step.each), f"{step.each[0] / first.step(step.held):.2f}",
        f"{step.again / 1e9:.2f}",
    ]  # fmt: skip


def write(texts: Sequence[str]) -> None:
    """Put the tables between their marks in docs/speed.md."""
    put("\n\n".join(texts), BEGIN, END)
