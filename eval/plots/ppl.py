"""Perplexity under eviction: NLL over the position in the text, a line per method, the full cache dashed; around each
the 95 % interval of its mean over the segments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from d2o.budget import budget_name
from eval.plots.style import FULL, legend_below, line_style, panels, write_title
from eval.scores.bootstrap import mean_interval
from eval.scores.cell_data import CellData

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEAST = 0.5  # nats that the axis spans
Curve = list[tuple[float, float]]  # (middle of a bucket of positions, mean NLL in nats of its tokens)
Band = list[tuple[float, float, float]]  # (middle of a bucket, low, high)


@dataclass
class NllCurves:
    """One figure: `lines` {label: curve} and their `bands` {label: band}, none for a single segment; `window`: what the
    model was made for, where the text goes beyond it."""

    title: str
    lines: dict[str, Curve] = field(default_factory=dict)
    bands: dict[str, Band] = field(default_factory=dict)
    window: int | None = None
    model: str = ""


def nll_curves(cells: Sequence[CellData]) -> list[NllCurves]:
    """A figure per task and budget, from cells of eval/tasks/ppl/task.py; the full cache has a cell or was fed
    alongside."""
    cells = [cell for cell in cells if any(row.get("bucket_nll") for row in cell.measured)]
    found = []
    for task in dict.fromkeys(cell.task for cell in cells):
        group = [cell for cell in cells if cell.task == task]
        budgets = sorted({cell.budget for cell in group if cell.method != FULL}) or [1.0]
        for budget in budgets:
            shown = [cell for cell in group if cell.method == FULL or cell.budget == budget]
            found.append(_nll_curves(task if budget == 1 else f"{task}, budget {budget_name(budget)}", shown))
            found[-1].model = group[0].model
    return found


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
    """`labels` are all there are, so that a method has one colour in every figure of a report."""
    figure, (ax,) = panels(1, 1, 4.6, 3.0, curves.lines)
    for label, line in sorted(curves.lines.items()):
        look = line_style(label, labels) | {"markersize": 3 if len(line) <= 20 else 0}
        ax.plot([at for at, _ in line], [nll for _, nll in line], label=label, **look)
        if band := curves.bands.get(label):
            at, low, high = zip(*band, strict=True)
            ax.fill_between(at, low, high, color=look["color"], alpha=0.15, linewidth=0)
    if curves.window:
        ax.axvline(curves.window, color="#999999", linewidth=0.8, linestyle=(0, (1, 2)))
        ax.text(curves.window, 0.97, " the model's window", transform=ax.get_xaxis_transform(), fontsize=7, va="top")
    low, high = ax.get_ylim()
    if high - low < LEAST:  # noise would fill a narrower axis
        ax.set_ylim((low + high - LEAST) / 2, (low + high + LEAST) / 2)
    write_title(ax, ", ".join(filter(None, (curves.model, curves.title))))
    said = "; bands: 95 % over the segments" if any(curves.bands.values()) else ""
    ax.set_xlabel(f"position, tokens{said}")
    ax.set_ylabel("NLL, nats per token")
    legend_below(figure, [ax])
    return figure
