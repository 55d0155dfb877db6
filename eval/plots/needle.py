"""Needle in a haystack: depth over length, a number in every cell, one colour scale from 0 to 100 for all maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eval.plots.style import MAP, panels, write_title
from eval.scores.cell_data import CellData

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass
class NeedleMap:
    """`values[depth][length]`, 0..100 or None where nothing was measured."""

    title: str
    what: str
    lengths: list[float]
    depths: list[float]
    values: list[list[float | None]]


def needle_maps(cell: CellData) -> list[NeedleMap]:
    """Recall and survival of a cell of eval/tasks/needle/task.py, and what was held or merged where anything was
    merged; [] for another cell.
    """
    rows = [row for row in cell.measured if "depth" in row and isinstance(row.get("survival"), list)]
    points: dict[str, list[tuple[dict[str, Any], float]]] = {
        "recall": [(row, row["recall"]) for row in rows],
        "survival": [(row, _over_layers(row["survival"])) for row in rows],
    }
    if any(_over_layers(row.get("merged")) for row in rows):
        points["held or merged"] = [(row, _over_layers(row["survival"]) + _over_layers(row["merged"])) for row in rows]
    return [_map_of(cell.name, what, found) for what, found in points.items() if found]


def _over_layers(layers: Sequence[float] | None) -> float:
    return sum(layers) / len(layers) if layers else 0.0


def _map_of(title: str, what: str, points: Sequence[tuple[dict[str, Any], float]]) -> NeedleMap:
    places: dict[tuple[float, float], list[float]] = {}
    for row, value in points:
        places.setdefault((row["depth"], row["length"]), []).append(value)
    depths, lengths = (sorted({place[i] for place in places}) for i in (0, 1))
    means = {place: 100 * sum(values) / len(values) for place, values in places.items()}
    return NeedleMap(title, what, lengths, depths, [[means.get((d, n)) for n in lengths] for d in depths])


def needle_figure(maps: Sequence[NeedleMap], columns: int = 1, numbers: bool = True) -> Figure:
    """One map, or a sheet of several side by side."""
    width = 4.6 if columns == 1 else 3.0
    figure, axes = panels(len(maps), columns, width, 0.78 * width)
    for ax, one in zip(axes, maps, strict=True):
        _map(ax, one, numbers, 6.5 if columns == 1 else 5)
    for i, ax in enumerate(axes):
        if i % columns == 0:
            ax.set_ylabel("depth, %")
        if i + columns >= len(axes):
            ax.set_xlabel("length, tokens")
    return figure


def _map(ax: Axes, one: NeedleMap, numbers: bool, size: float) -> None:
    from matplotlib import colormaps

    filled = [[float("nan") if v is None else v for v in row] for row in one.values]
    colours = colormaps[MAP].with_extremes(bad="none")
    ax.imshow(filled, cmap=colours, vmin=0, vmax=100, aspect="auto", interpolation="none")
    ax.grid(False)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    every = -(-len(one.lengths) // (10 if size > 6 else 6))  # in a sheet not all of them have room
    shown = range(0, len(one.lengths), every)
    ax.set_xticks(shown, [short(one.lengths[i]) for i in shown], fontsize=size + 1)
    whole = [f"{d:.0f}" for d in one.depths]
    apart = len(set(whole)) == len(whole)
    ax.set_yticks(range(len(one.depths)), whole if apart else [f"{d:g}" for d in one.depths], fontsize=size + 1)
    there = [value for row in one.values for value in row if value is not None]
    mean = f", mean\N{NO-BREAK SPACE}{sum(there) / len(there):.0f}" if there else ""
    write_title(ax, f"{one.title}, {one.what}{mean}")
    if numbers:
        _write_numbers(ax, one, size)


def _write_numbers(ax: Axes, one: NeedleMap, size: float) -> None:
    """The values in the middle of their cells: one `Text` that is drawn at every place, since a hundred of them take a
    tenth of a second to lay out."""
    from matplotlib.text import Text

    class Numbers(Text):
        def draw(self, renderer: Any) -> None:
            for y, row in enumerate(one.values):
                for x, value in enumerate(row):
                    if value is not None:
                        self.set(x=x, y=y, text=f"{value:.0f}", color="black" if value > 55 else "white")
                        super().draw(renderer)

    ax.add_artist(Numbers(fontsize=size, ha="center", va="center", transform=ax.transData))


def short(tokens: float) -> str:
    """1024 -> 1k, 1536 -> 1.5k, 820 -> 820."""
    return f"{tokens:g}" if tokens < 1000 else f"{tokens / 1024:.1f}".removesuffix(".0") + "k"
