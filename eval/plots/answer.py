"""Slots held while an answer is written: a line per method over the tokens generated, the full cache dashed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from d2o.budget import budget_name
from eval.plots.style import FULL, line_style, name_ends, panels, write_title
from eval.scores.cell_data import CellData
from eval.scores.means import Curve, held_curve

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass
class HeldCurves:
    """One figure: `lines` {label: curve}."""

    title: str
    lines: dict[str, Curve] = field(default_factory=dict)


def held_curves(cells: Sequence[CellData]) -> list[HeldCurves]:
    """A figure per task and budget, the full cache in each, from cells whose rows say what was held (`held`)."""
    drawn = [(cell, held_curve(cell.measured)) for cell in cells]
    drawn = [(cell, line) for cell, line in drawn if line]
    found = []
    for task in dict.fromkeys(cell.task for cell, _ in drawn):
        group = [(cell, line) for cell, line in drawn if cell.task == task]
        for budget in sorted({cell.budget for cell, _ in group if cell.method != FULL}) or [1.0]:
            shown = {cell.label: line for cell, line in group if cell.method == FULL or cell.budget == budget}
            found.append(HeldCurves(task if budget == 1 else f"{task}, budget {budget_name(budget)}", shown))
    return found


def answer_figure(curves: HeldCurves, labels: Sequence[str]) -> Figure:
    """Each line is named at its end, those that lie on one another together; `labels` are all there are, so that a
    method has one colour in every figure."""
    figure, (ax,) = panels(1, 1, 5.0, 3.2)
    left, bottom, _, height = ax.get_position().bounds
    ax.set_position((left, bottom, 0.6 - left, height))
    last = max(line[-1][0] for line in curves.lines.values())
    first = sorted(curves.lines, key=lambda label: (label != FULL, label))  # of lines on one another it is seen
    names: dict[tuple[float, ...], list[str]] = {}
    for i, label in enumerate(first):
        line = curves.lines[label]
        look = line_style(label, labels) | {"markersize": 3 if len(line) <= 20 else 0, "zorder": 3 - i / len(first)}
        ax.plot([at for at, _ in line], [held for _, held in line], **look)
        names.setdefault(tuple(round(held) for _, held in line), []).append(label)
    ax.set_xlim(0, last * 1.02)
    ax.set_ylim(0, 1.08 * max(held for line in curves.lines.values() for _, held in line))
    ends = {" = ".join(same): curves.lines[same[0]][-1][1] for same in names.values()}
    name_ends(ax, ends, {label: line_style(label, labels)["color"] for label in curves.lines}, last)
    write_title(ax, curves.title)
    ax.set_xlabel("tokens generated")
    ax.set_ylabel("slots held per layer and head")
    return figure
