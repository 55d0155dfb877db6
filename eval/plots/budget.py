"""Score against budget: a line per method, the full cache dashed, 95 % bootstrap bands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from d2o.budget import budget_name, kind
from eval.plots.methods import FULL, RANDOM, family_of, is_ours
from eval.plots.style import end_lines, legend_below, line_style, name_ends, panels, write_title
from eval.scores.bootstrap import Interval, means_interval
from eval.scores.cell_data import CellData
from eval.tasks.order import task_order

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FEW = 7  # lines that a legend can tell apart
NAME, LETTER = 0.122, 0.0625  # inches of height for a name at the end of a line, of width for a letter of it
WIDE = 0.15  # of the highest score: bands of which several are no more to be told apart
GREY = "#b4b4b4"
AXES = {"parts": "budget", "slots": "slots per layer and head", "bytes": "bytes of keys and values"}


@dataclass
class BudgetCurves:
    """One panel: `lines` {label: {budget: score}}, `full`: the score of the full cache."""

    title: str
    lines: dict[str, dict[float, Interval]]
    full: Interval | None

    @property
    def labels(self) -> list[str]:
        """What a legend names, the full cache last."""
        return [*self.lines, *([FULL] if self.full else [])]

    @property
    def is_curve(self) -> bool:
        """Two budgets or more: of one, a table says it better."""
        return len({budget for line in self.lines.values() for budget in line}) > 1


def scored(cells: Sequence[CellData]) -> list[CellData]:
    """The cells that have a score."""
    return [cell for cell in cells if cell.result.score.value is not None]


def by_task(cells: Sequence[CellData]) -> list[BudgetCurves]:
    """A panel per task; parts of the prompt, slots and bytes apart."""
    found = []
    for task in dict.fromkeys(cell.task for cell in scored(cells)):
        group = [cell for cell in scored(cells) if cell.task == task]
        found += [curves for curves in (_curves(task, group, one) for one in AXES) if curves.lines]
    return found


def mean_over_tasks(cells: Sequence[CellData], family: str) -> BudgetCurves:
    """One panel: the mean over all the tasks of `cells`, for the methods and budgets that have every one of them."""
    cells = sorted(scored(cells), key=lambda cell: task_order(cell.task))
    tasks = list(dict.fromkeys(cell.task for cell in cells))
    title = tasks[0] if len(tasks) == 1 else f"{family}, mean of {len(tasks)} tasks".removeprefix(", ")
    return _curves(title, cells, None, tasks)


def _curves(title: str, cells: Sequence[CellData], which: str | None, tasks: Sequence[str] = ("",)) -> BudgetCurves:
    points: dict[tuple[str, float], dict[str, list[float]]] = {}
    for cell in cells:
        if cell.method == FULL or which is None or kind(cell.budget) == which:
            key = (FULL, 1.0) if cell.method == FULL else (cell.label, cell.budget)
            points.setdefault(key, {})[cell.task] = cell.result.score.per_row
    curves = BudgetCurves(title, {}, None)
    for (label, budget), groups in sorted(points.items(), key=lambda item: item[0]):
        interval = means_interval(list(groups.values())) if len(groups) == len(tasks) else None
        if interval and label == FULL:
            curves.full = interval
        elif interval:
            curves.lines.setdefault(label, {})[budget] = interval
    return curves


def budget_figure(all_curves: Sequence[BudgetCurves], labels: Sequence[str], columns: int = 1) -> Figure:
    """A panel per entry; `labels` are all there are, so that a method has one colour in every figure of a report."""
    shown = [label for label in labels if any(label in curves.labels for curves in all_curves)]
    width, height = (4.6, 3.0) if columns == 1 else (2.6, 2.0)
    if columns == 1 and len(shown) > FEW:
        return _crowded(all_curves[0], labels)
    figure, axes = panels(len(all_curves), columns, width, height, shown)
    for ax, curves in zip(axes, all_curves, strict=True):
        _panel(ax, curves, labels)
    for ax in axes[::columns]:
        ax.set_ylabel("score")
    legend_below(figure, axes)
    return figure


def _crowded(curves: BudgetCurves, labels: Sequence[str]) -> Figure:
    """Many methods in one panel: D2O, the full cache, a random choice and the best of each family in colour, the others
    grey, each named at the end of its line."""
    ends = _ends(curves)
    lines = [line for name in ends for line in end_lines(name)]
    figure, (ax,) = panels(1, 1, 5.0, max(4.2, 0.72 + NAME * len(lines)))
    left, bottom, width, height = ax.get_position().bounds
    longest = max(map(len, lines), default=0)
    ax.set_position((left, bottom, min(0.66, 1 - (0.2 + LETTER * longest) / 5.0) - left, height))
    first, narrow = in_front(curves), _narrow(curves)
    for label in sorted(curves.lines, key=lambda label: label in first):
        points, look = sorted(curves.lines[label].items()), line_style(label, labels)
        if label not in first:
            look |= {"color": GREY, "marker": "", "zorder": 1}
        at, values = [budget for budget, _ in points], [one.value for _, one in points]
        look["linewidth"] = 2.2 if is_ours(label) else 1.4 if label in first else 1
        ax.plot(at, values, label=label, **look)
        if (is_ours(label) or label in first and narrow) and all(one.low is not None for _, one in points):
            low, high = [one.low for _, one in points], [one.high for _, one in points]
            ax.fill_between(at, low, high, color=look["color"], alpha=0.13, linewidth=0)
    if curves.full:
        ax.axhline(curves.full.value, label=FULL, **line_style(FULL, labels))
    budgets = sorted({budget for line in curves.lines.values() for budget in line})
    _limits(ax, curves)
    budget_axis(ax, budgets)
    colours = {label: line_style(label, labels)["color"] for label in (*first, FULL)}
    name_ends(ax, ends, colours, budgets[-1])
    write_title(ax, f"{curves.title}; dashed: the full cache")
    ax.set_ylabel("score")
    return figure


def _narrow(curves: BudgetCurves) -> bool:
    """Whether the bands of several lines can be told from one another; else D2O's alone is drawn."""
    points = [one for line in curves.lines.values() for one in line.values()]
    widths = sorted(one.high - one.low for one in points if one.low is not None)
    return bool(widths) and widths[len(widths) // 2] <= WIDE * max(one.value for one in points)


def in_front(curves: BudgetCurves) -> list[str]:
    """The labels that a crowded figure shows in colour: D2O's own and the plain one without its merge, a random choice,
    and of each family the best at the budget in the middle."""
    budgets = sorted({budget for line in curves.lines.values() for budget in line})
    middle = budgets[(len(budgets) - 1) // 2]
    at = {label: line[middle].value for label, line in curves.lines.items() if middle in line}
    best: dict[str, str] = {}
    for label in sorted(at, key=lambda label: -at[label]):
        best.setdefault(family_of(label), label)
    own = [label for label in curves.lines if is_ours(label) or label == RANDOM]
    return list(dict.fromkeys([*own, *best.values()]))


def _ends(curves: BudgetCurves) -> dict[str, float]:
    """{name: score at the last budget}; lines that lie on one another have one name."""
    names: dict[tuple, list[str]] = {}
    for label, line in curves.lines.items():
        names.setdefault(tuple((b, round(one.value)) for b, one in sorted(line.items())), []).append(label)
    ends = {" = ".join(labels): curves.lines[labels[0]][key[-1][0]].value for key, labels in names.items()}
    return ends | ({FULL: curves.full.value} if curves.full else {})


def _limits(ax: Axes, curves: BudgetCurves) -> None:
    top = max([one.high or one.value for line in curves.lines.values() for one in line.values()]
              + ([curves.full.high or curves.full.value] if curves.full else []))  # fmt: skip
    ax.set_ylim((-3, 103) if top > 60 else (0, 1.08 * max(top, 1)))


def _panel(ax: Axes, curves: BudgetCurves, labels: Sequence[str]) -> None:
    budgets = sorted({budget for line in curves.lines.values() for budget in line})
    for label, line in curves.lines.items():
        look, points = line_style(label, labels), sorted(line.items())
        at, values = [budget for budget, _ in points], [one.value for _, one in points]
        low = [one.value if one.low is None else one.low for _, one in points]
        high = [one.value if one.high is None else one.high for _, one in points]
        ax.plot(at, values, label=label, **look)
        if len(at) > 1:
            ax.fill_between(at, low, high, color=look["color"], alpha=0.13, linewidth=0)
        else:
            ax.vlines(at, low, high, color=look["color"], linewidth=1)
    if curves.full:
        look = line_style(FULL, labels)
        ax.axhline(curves.full.value, label=FULL, **look)
        if curves.full.low is not None:
            ax.axhspan(curves.full.low, curves.full.high, color=look["color"], alpha=0.1, linewidth=0)
    write_title(ax, curves.title)
    ax.set_xlabel(AXES["parts"])
    _limits(ax, curves)
    budget_axis(ax, budgets)


def budget_axis(ax: Axes, budgets: Sequence[float]) -> None:
    """Logarithmic, with a tick at every budget that was run and is not on top of its neighbour."""
    from matplotlib.ticker import NullFormatter, NullLocator

    if not budgets:
        return
    ax.set_xscale("log")
    ticks: list[float] = []
    for budget in budgets:
        if not ticks or budget / ticks[-1] > 1.35:
            ticks.append(budget)
    ax.set_xticks(ticks, [budget_name(budget).removesuffix(" slots") for budget in ticks])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlim(budgets[0] / 1.15, budgets[-1] * 1.15)
    ax.set_xlabel(AXES[kind(budgets[0])])
