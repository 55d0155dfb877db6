"""Perplexity under eviction: NLL over the position in the text, a line per method, the full cache dashed; around each
the 95 % interval of its mean over the segments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from d2o.budget import budget_name
from eval.plots.methods import is_ours
from eval.plots.style import END, FULL, legend_below, line_style, name_ends, panels, write_title
from eval.scores.bootstrap import mean_interval
from eval.scores.cell_data import CellData

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEAST = 0.5  # nats that the axis spans
NAMED = 12  # lines that are named at their ends; more, and longer names, stand in a legend
BANDS = 5  # lines that have their intervals; more would lie over each other
Curve = list[tuple[float, float]]  # (middle of a bucket of positions, mean NLL in nats of its tokens)
Band = list[tuple[float, float, float]]  # (middle of a bucket, low, high)


@dataclass
class NllCurves:
    """One figure: `lines` {label: curve} and their `bands` {label: band}, none for a single segment; `window`: what the
    model was made for, where the text goes beyond it; `above`: nats above the full cache's."""

    title: str
    lines: dict[str, Curve] = field(default_factory=dict)
    bands: dict[str, Band] = field(default_factory=dict)
    window: int | None = None
    model: str = ""
    above: bool = False


def nll_curves(cells: Sequence[CellData], above: bool = False) -> list[NllCurves]:
    """A figure per task and budget, from cells of eval/tasks/ppl/task.py; the full cache has a cell or was fed
    alongside. `above`: the difference to that which was fed alongside, segment by segment, of cells that have one."""
    cells = [cell for cell in cells if any(row.get("bucket_nll") for row in cell.measured)]
    if above:
        cells = [cell for cell in map(_above, cells) if cell.method != FULL and cell.rows]
    found = []
    for task in dict.fromkeys(cell.task for cell in cells):
        group = [cell for cell in cells if cell.task == task]
        budgets = sorted({cell.budget for cell in group if cell.method != FULL}) or [1.0]
        for budget in budgets:
            shown = [cell for cell in group if cell.method == FULL or cell.budget == budget]
            found.append(_nll_curves(task if budget == 1 else f"{task}, budget {budget_name(budget)}", shown))
            found[-1].model, found[-1].above = group[0].model, above
    return found


def _above(cell: CellData) -> CellData:
    """A cell whose nats are those above the full cache's on the same tokens, of the rows for which it was fed."""
    rows = [
        row | {"bucket_nll": [a - b for a, b in zip(row["bucket_nll"], row["bucket_full_nll"], strict=True)],
               "bucket_full_nll": []}
        for row in cell.rows
        if row.get("bucket_full_nll")
    ]  # fmt: skip
    return replace(cell, rows=rows)


def _nll_curves(title: str, cells: Sequence[CellData]) -> NllCurves:
    curves, rows = NllCurves(title), [row for cell in cells for row in cell.rows]
    for cell in cells:
        curves.lines[cell.label] = nll_curve(cell.rows, "bucket_nll")
        curves.bands[cell.label] = nll_band(cell.rows, "bucket_nll")
    alongside = next((cell.rows for cell in cells if cell.rows[0].get("bucket_full_nll")), None)
    if alongside and FULL not in curves.lines:
        curves.lines[FULL] = nll_curve(alongside, "bucket_full_nll")
        curves.bands[FULL] = nll_band(alongside, "bucket_full_nll")
    if any(row.get("past_window") for row in rows):
        curves.window = next(row["window"] for row in rows if row.get("past_window"))
    return curves


def _buckets(row: dict[str, Any], key: str) -> Iterator[tuple[float, int, float]]:
    """(middle, tokens, mean) of every bucket of a row; none where the row has no such mean."""
    for first, n, nll in zip(row["bucket_from"], row["bucket_n"], row[key], strict=True) if row[key] else ():
        yield first + n / 2, n, nll


def nll_curve(rows: Sequence[dict[str, Any]], key: str) -> Curve:
    """Mean over the rows' tokens, bucket by bucket."""
    sums: dict[float, list[float]] = {}
    for row in rows:
        for at, n, nll in _buckets(row, key):
            total = sums.setdefault(at, [0.0, 0.0])
            total[0] += n * nll
            total[1] += n
    return [(at, total / n) for at, (total, n) in sorted(sums.items()) if n]


def nll_band(rows: Sequence[dict[str, Any]], key: str) -> Band:
    """The interval of the mean over segments, around the mean over their tokens, of the buckets that several have."""
    values: dict[float, list[float]] = {}
    for row in rows:
        for at, _, nll in _buckets(row, key):
            values.setdefault(at, []).append(nll)
    found, curve = [], dict(nll_curve(rows, key))
    for at, interval in ((at, mean_interval(values[at])) for at in sorted(values)):
        if interval.low is not None and at in curve:
            low, high = (curve[at] + (bound - interval.value) / 100 for bound in (interval.low, interval.high))
            found.append((at, low, high))
    return found


def nll_figure(curves: NllCurves, labels: Sequence[str]) -> Figure:
    """Each line is named at its end, those that lie on one another together, or by a legend where there are many;
    `labels` are all there are, so that a method has one colour in every figure of a report."""
    named = len(curves.lines) <= NAMED and max(map(len, curves.lines), default=0) <= END
    figure, (ax,) = panels(1, 1, 5.0 if named else 4.6, 3.2, [] if named else curves.lines)
    if named:
        left, bottom, _, height = ax.get_position().bounds
        ax.set_position((left, bottom, 0.6 - left, height))
    for label, line in sorted(curves.lines.items(), key=lambda item: (item[0] == FULL, item[0])):
        look = line_style(label, labels) | {"markersize": 3 if len(line) <= 20 else 0}
        look |= {"linewidth": 2.2} if is_ours(label) else {}
        ax.plot([at for at, _ in line], [nll for _, nll in line], label=label, **look)
        if _with_bands(curves) and (band := curves.bands.get(label)):
            at, low, high = zip(*band, strict=True)
            ax.fill_between(at, low, high, color=look["color"], alpha=0.15, linewidth=0)
    _marks(ax, curves)
    if named:
        colours = {label: line_style(label, labels)["color"] for label in curves.lines}
        name_ends(ax, _ends(curves), colours, max(line[-1][0] for line in curves.lines.values()))
    else:
        legend_below(figure, [ax])
    return figure


def _with_bands(curves: NllCurves) -> bool:
    return len(curves.lines) <= BANDS and any(curves.bands.values())


def _ends(curves: NllCurves) -> dict[str, float]:
    """{name: nats at the end}; lines that lie on one another to the second digit have one name."""
    names: dict[tuple[Any, ...], list[str]] = {}
    for label, line in curves.lines.items():
        names.setdefault(tuple((at, round(nll, 2)) for at, nll in line), []).append(label)
    return {" = ".join(same): curves.lines[same[0]][-1][1] for same in names.values()}


def _marks(ax: Axes, curves: NllCurves) -> None:
    """Title, axes, and the model's window."""
    if curves.window:
        ax.axvline(curves.window, color="#999999", linewidth=0.8, linestyle=(0, (1, 2)))
        ax.text(curves.window, 0.97, " the model's window", transform=ax.get_xaxis_transform(), fontsize=7, va="top")
    if curves.above:
        full = line_style(FULL, [FULL])
        ax.axhline(0, **{key: full[key] for key in ("color", "linestyle", "linewidth", "zorder") if key in full})
    low, high = ax.get_ylim()
    if high - low < LEAST:  # noise would fill a narrower axis
        ax.set_ylim((low + high - LEAST) / 2, (low + high + LEAST) / 2)
    write_title(ax, ", ".join(filter(None, (curves.model, curves.title))))
    said = "; bands: 95 %" if _with_bands(curves) else ""
    ax.set_xlabel(f"position, tokens{said}")
    ax.set_ylabel("nats a token above the full cache" if curves.above else "NLL, nats per token")
