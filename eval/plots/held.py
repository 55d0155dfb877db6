"""How the budget lies over the layers: slots held at the end of the prefill, as a share of the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from d2o.budget import budget_name
from eval.plots.style import FULL, legend_below, line_style, panels, write_title
from eval.scores.cell_data import CellData
from eval.scores.means import mean_layers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STREAM = "stream"  # of eval/tasks/ppl/task.py: its prefill is one token
Held = dict[str, list[float]]  # {label: per layer, per cent of the prompt}


def held_by_budget(cells: Sequence[CellData]) -> dict[float, Held]:
    """{budget: {label: layers}}, the mean over all tasks; of cells with as many layers as the first."""
    found: dict[float, dict[str, list[list[float]]]] = {}
    for cell in cells:
        rows = [row for row in cell.measured if row.get("mode") != STREAM] if cell.measured else cell.rows
        layers = mean_layers(rows, "held_prefill")
        if cell.method != FULL and layers:
            group = found.setdefault(cell.budget, {}).setdefault(cell.label, [])
            if not group or len(group[0]) == len(layers):
                group.append(layers)
    return {
        budget: {
            label: [100 * sum(layer) / len(group) for layer in zip(*group, strict=True)]
            for label, group in sorted(by_label.items())
        }
        for budget, by_label in sorted(found.items())
    }


def together(held: Held) -> dict[tuple[str, ...], list[float]]:
    """Methods whose lines lie on one another, uniform budgets for one, as one line with all their names."""
    found: dict[tuple[float, ...], list[str]] = {}
    for label, layers in held.items():
        found.setdefault(tuple(round(layer, 1) for layer in layers), []).append(label)
    return {tuple(names): held[names[0]] for names in found.values()}


def title_of(cells: Sequence[CellData], budget: float) -> str:
    """What the figure of a budget is of: model, task or how many, rows of a cell, budget."""
    shown = [cell for cell in cells if cell.method != FULL and cell.budget == budget]
    tasks, rows = sorted({cell.task for cell in shown}), max(len(cell.rows) for cell in shown)
    over = tasks[0] if len(tasks) == 1 else f"mean of {len(tasks)} tasks"
    return f"{shown[0].model}, {over}, {rows} row{'s' if rows > 1 else ''} each, budget {budget_name(budget)}"


def held_figure(title: str, held: Held, labels: Sequence[str]) -> Figure:
    """A line per method over the layers; `labels` are all there are, for one colour in every figure."""
    figure, (ax,) = panels(1, 1, 4.6, 2.6, [" = ".join(names) for names in together(held)])
    for names, layers in together(held).items():
        look = line_style(names[0], labels) | {"linewidth": 1.3, "markersize": 2.5}
        ax.plot(range(len(layers)), layers, label=" = ".join(names), **look)
    write_title(ax, title)
    ax.set_xlabel("layer")
    ax.set_ylabel("slots held, % of the prompt")
    ax.set_ylim(0, 1.12 * max(max(layers) for layers in held.values()))
    ax.xaxis.get_major_locator().set_params(integer=True)
    legend_below(figure, [ax])
    return figure
