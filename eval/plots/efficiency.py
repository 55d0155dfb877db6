"""Efficiency: tokens per second against the batch, memory against the context; the full cache dashed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from eval.plots.needle import short
from eval.plots.style import FULL, legend_below, line_style, panels
from eval.scores.cell_data import CellData

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Point = dict[str, Any]
MEMORY = {"kv_bytes": "keys and values", "prefill_peak": "peak of the prefill"}
PANELS = 4  # contexts in one figure of speeds: the shortest, the longest and some between


def points(cell: CellData) -> list[Point]:
    """The grid of a cell of eval/tasks/efficiency/task.py, [] for another."""
    return [row for row in cell.measured if row.get("kind") == "point"]


def groups(cells: Sequence[CellData]) -> dict[tuple[str, float], list[CellData]]:
    """{(label of their protocol, budget): the cells that are shown together}; the full cache alone stands under 1."""
    timed, found = [cell for cell in cells if points(cell)], {}
    for protocol in dict.fromkeys(cell.protocol_label for cell in timed):
        group = [cell for cell in timed if cell.protocol_label == protocol]
        for budget in sorted({cell.budget for cell in group if cell.method != FULL}) or [1.0]:
            found[protocol, budget] = [cell for cell in group if cell.method == FULL or cell.budget == budget]
    return found


def lines_of(cells: Sequence[CellData]) -> dict[str, tuple[list[Point], str]]:
    """{label: (points, prefix of its readings)}; the full cache as it ran beside the first of the cells."""
    found = {cell.label: (points(cell), "") for cell in cells if cell.method != FULL}
    own = next((cell for cell in cells if cell.method == FULL), None)
    return found | {FULL: (points(own), "") if own else (points(cells[0]), "full_")}


def speed_figure(cells: Sequence[CellData], labels: Sequence[str]) -> Figure:
    """A panel per context; the whiskers are the slowest and the fastest run."""
    drawn = lines_of(cells)
    shapes = sorted({(p["prompt"], p["new"]) for rows, _ in drawn.values() for p in rows})
    if len(shapes) > PANELS:
        shapes = [shapes[round(i * (len(shapes) - 1) / (PANELS - 1))] for i in range(PANELS)]
    figure, axes = panels(len(shapes), 2, 4.6 if len(shapes) == 1 else 2.6, 2.6, drawn)
    for ax, shape in zip(axes, shapes, strict=True):
        for label, (rows, prefix) in sorted(drawn.items()):
            own = sorted((p for p in rows if (p["prompt"], p["new"]) == shape), key=lambda p: p["batch"])
            _whiskers(ax, label, own, "batch", prefix + "decode_tokens_per_s", labels)
        ax.set_title(f"{short(shape[0])} + {shape[1]} tokens")
        ax.set_xlabel("batch")
        _doubling(ax, sorted({p["batch"] for rows, _ in drawn.values() for p in rows}))
        ax.set_ylim(0, 1.08 * max(ax.dataLim.y1, 1e-3))
    axes[0].set_ylabel("tokens/s, decoding")
    legend_below(figure, axes)
    return figure


def memory_figure(cells: Sequence[CellData], labels: Sequence[str]) -> Figure:
    """Resident keys and values, and the peak of the prefill, which eviction hardly makes smaller; the least batch."""
    drawn = lines_of(cells)
    batch = min(p["batch"] for rows, _ in drawn.values() for p in rows)
    figure, axes = panels(2, 2, 2.6, 2.6, drawn)
    for ax, (key, title) in zip(axes, MEMORY.items(), strict=True):
        for label, (rows, prefix) in sorted(drawn.items()):
            sizes = {p["prompt"]: p[prefix + key] / 2**20 for p in rows if p["batch"] == batch and p.get(prefix + key)}
            at = sorted(sizes)
            ax.plot(at, [sizes[prompt] for prompt in at], label=label, **_look(label, labels, len(at)))
        ax.set_title(title)
        ax.set_xlabel("context, tokens")
        _doubling(ax, sorted({p["prompt"] for rows, _ in drawn.values() for p in rows}))
        ax.set_ylim(0, 1.08 * max(ax.dataLim.y1, 1e-3))
    axes[0].set_ylabel(f"MiB, batch {batch}")
    legend_below(figure, axes)
    return figure


def _whiskers(ax: Axes, label: str, rows: Sequence[Point], x: str, y: str, labels: Sequence[str]) -> None:
    """A run out of memory has no reading: the line ends before it."""
    read = [row for row in rows if row.get(y)]
    look = _look(label, labels, len(read))
    ax.plot([row[x] for row in read], [row[y]["median"] for row in read], label=label, **look)
    least, most = ([row[y][key] for row in read] for key in ("least", "most"))
    ax.vlines([row[x] for row in read], least, most, color=look["color"], linewidth=0.8)


def _look(label: str, labels: Sequence[str], points: int) -> dict[str, Any]:
    """A line of one point is seen by its marker, which the full cache has none of."""
    look = line_style(label, labels) | {"clip_on": False}
    return look if points > 1 or look["marker"] else look | {"marker": "o", "markerfacecolor": "none"}


def _doubling(ax: Axes, values: Sequence[float]) -> None:
    """A logarithmic axis with a tick at each value that was run."""
    from matplotlib.ticker import NullLocator

    ax.set_xscale("log", base=2)
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xticks(values, [short(value) for value in values])
    if len(values) > 1:
        ax.set_xlim(values[0] / 1.12, values[-1] * 1.12)
