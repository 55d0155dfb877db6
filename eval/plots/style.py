"""How every figure looks, and writing it so that two runs give the same bytes.

Which colour a method has is said in eval/plots/methods.py. A figure is at most 5 inches wide, so that its letters can
be read on a phone.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.plots.methods import FULL, is_ours, look_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, LINE = "#222222", "#dddddd"
# stand-ins for a page's own colours: eval/plots/svg.py
PAGE_INK, PAGE_LINE = "#010203", "#040506"
MAP = "cividis"
LETTERS = 16  # of a legend, in an inch
END = 26  # letters of a line of names at the end of a curve


@contextmanager
def style(page: bool = False) -> Iterator[None]:
    """matplotlib's settings for what is drawn inside; `page`: for `eval.plots.svg`."""
    import matplotlib

    ink, line = (PAGE_INK, PAGE_LINE) if page else (INK, LINE)
    settings = {
        "svg.hashsalt": "d2o", "svg.fonttype": "none", "font.family": ["DejaVu Sans"], "font.size": 9,
        "text.color": ink, "axes.labelcolor": ink, "xtick.labelcolor": ink, "ytick.labelcolor": ink,
        "axes.edgecolor": line, "xtick.color": line, "ytick.color": line, "grid.color": line, "grid.linewidth": 0.6,
        "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True,
        "axes.titlesize": 9, "axes.titlelocation": "left", "axes.titleweight": "bold", "axes.labelsize": 9,
        "xtick.labelsize": 8, "ytick.labelsize": 8, "xtick.major.size": 0, "ytick.major.size": 0,
        "lines.linewidth": 1.4, "lines.markersize": 4.2, "legend.frameon": False, "legend.fontsize": 8,
        "figure.facecolor": "none" if page else "white", "axes.facecolor": "none", "savefig.dpi": 200,
        "savefig.facecolor": "auto", "image.composite_image": False, "text.parse_math": False,
    }  # fmt: skip
    with matplotlib.rc_context(settings):
        yield


def line_style(label: str, labels: Sequence[str]) -> dict[str, Any]:
    """Colour, marker and dash of `label` among all labels of a figure or a report; the full cache alone is dashed."""
    return look_of(label, labels)


def panels(
    count: int, columns: int, width: float, height: float, legend: Iterable[str] = ()
) -> tuple[Figure, list[Axes]]:
    """A figure of `count` equal panels, `width` x `height` inches each, with room for the labels of a legend below."""
    from matplotlib.figure import Figure

    columns = min(columns, count)
    labels = legend_labels(legend, columns * width)
    wrapped = sum(label.count("\n") for label in labels)
    lines = wrapped - (-len(labels) // legend_columns(labels, columns * width))
    rows, below = -(-count // columns), 0.155 * lines + (0.14 if labels else 0)
    whole = columns * width, rows * height + below
    figure = Figure(figsize=whole)
    left, right, bottom, top = 0.55, 0.12, 0.43, 0.28
    axes = []
    for i in range(count):
        x, y = i % columns * width + left, whole[1] - (i // columns + 1) * height + bottom
        box = x / whole[0], y / whole[1], (width - left - right) / whole[0], (height - top - bottom) / whole[1]
        axes.append(figure.add_axes(box))
    return figure, axes


def legend_labels(labels: Iterable[str], width: float) -> list[str]:
    """Those that are wider than `width` inches in two lines or more."""
    return ["\n".join(textwrap.wrap(label, int(LETTERS * (width - 0.6)))) for label in labels]


def legend_columns(labels: Sequence[str], width: float) -> int:
    """As many as fit into `width` inches: a handle, and the longest line."""
    longest = max((len(line) for label in labels for line in label.split("\n")), default=0)
    entry = max(1.35, 0.5 + longest / LETTERS)
    return max(1, int(width / entry))


def legend_below(figure: Figure, axes: Sequence[Axes]) -> None:
    """One legend for all panels under them, each label once, in their order, the full cache last."""
    found = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    entries = dict(sorted(found.items(), key=lambda item: (item[0] == FULL, item[0])))
    labels = legend_labels(entries, figure.get_figwidth())
    columns = legend_columns(labels, figure.get_figwidth())
    figure.legend(
        entries.values(), labels, loc="lower left", ncols=columns, bbox_to_anchor=(0.02, 0.0),
        borderaxespad=0.2, columnspacing=1.2, handlelength=2.4, labelspacing=0.35,
    )  # fmt: skip


def name_ends(ax: Axes, ends: Mapping[str, float], colours: Mapping[str, str], last: float) -> None:
    """The names of lines that end at `last`, right of the axes at the heights where they end, moved apart where they
    would touch; grey where `colours` has none. A thin line leads from an end to its name; many names of one line stand
    below each other."""
    low, high = ax.get_ylim()
    inch = (high - low) / (ax.get_position().height * ax.figure.get_figheight())
    shown = {name: "\n".join(end_lines(name)) for name in ends}
    tall = {name: 0.118 * inch * (1 + text.count("\n")) for name, text in shown.items()}
    places = apart(ends, tall, low, high + 0.18 * inch)
    for name, value in ends.items():
        parts = name.split(" = ")
        colour = next((colours[one] for one in parts if one in colours), "#8a8a8a")
        lead = {"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 2, "relpos": (0, 0.5)}
        ax.annotate(shown[name], (last, value), (1.07, places[name]), "data", ("axes fraction", "data"), color=colour,
                    fontsize=8, va="center", weight="bold" if FULL in parts or any(map(is_ours, parts)) else "normal",
                    annotation_clip=False, arrowprops=lead)  # fmt: skip


def end_lines(name: str) -> list[str]:
    """A name beside the axes: names of one line that are too long together go on below."""
    lines = [""]
    for i, one in enumerate(name.split(" = ")):
        one = f" = {one}" if i else one
        if i and len(lines[-1] + one) > END:
            lines.append("")
            one = one.lstrip()
        lines[-1] += one
    return lines


def apart(ends: Mapping[str, float], tall: Mapping[str, float], low: float, high: float) -> dict[str, float]:
    """{name: place} near its end, half of what both are `tall` from the next one at least, between `low` and `high`
    where there is room."""
    names = sorted(ends, key=lambda name: ends[name])
    places = [ends[name] for name in names]
    for _ in range(100 * len(places)):  # many names in a heap push each other a long way
        for i in range(len(places) - 1):
            lacking = (tall[names[i]] + tall[names[i + 1]]) / 2 - (places[i + 1] - places[i])
            if lacking > 0:
                places[i], places[i + 1] = places[i] - lacking / 2, places[i + 1] + lacking / 2
        places[-1:] = [min(place, high) for place in places[-1:]]
        places[:1] = [max(place, low) for place in places[:1]]
    return dict(zip(names, places, strict=True))


def write_title(ax: Axes, text: str, lift: float = 0.0) -> None:
    """Above the axes, `lift` points higher than usual: one line, or two small ones where it is longer than they are
    wide."""
    letters = 72 * ax.get_position().width * ax.figure.get_figwidth() / 0.68  # of bold type, at one point
    size = min(9.0, max(7.5, letters / len(text)))
    lines = [text]
    if len(text) * size > letters * 1.02:
        size = max(5.5, min(7.0, 2 * letters / (len(text) + 12)))
        lines = textwrap.wrap(text, int(letters / size), max_lines=2, placeholder=" …")
    pad = lift + (6.0 if len(lines) == 1 else 3.0)
    ax.set_title("\n".join(lines), fontsize=size, pad=pad, y=1.0)  # y: or each axis is laid out twice to find one


def to_svg(figure: Figure) -> str:
    """Inside `style`, like drawing."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()


def save(figure: Figure, path: Path) -> None:
    """SVG or PNG, by the name's ending, inside `style`; the same bytes for the same figure."""
    if path.suffix == ".svg":
        path.write_text(to_svg(figure), encoding="utf-8")
    else:
        figure.savefig(path, format="png", metadata={"Software": None})
