"""The cache atlas as a raster: a line per layer and head, a column per position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from eval.plots.atlas_file import DROPPED, HELD, LEFT_LATER, MERGED, NAMES, fates
from eval.plots.style import write_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {DROPPED: "#88888830", MERGED: "#E69F00", LEFT_LATER: "#56B4E9", HELD: "#0072B2"}
SHARP = 6  # pixels per line: a picture that is smoothed when it is scaled keeps its lines apart


def atlas_figure(atlas: Mapping[str, Any], title: str, spans: Sequence[Sequence[int]] = ()) -> Figure:
    """`spans`: [first, last + 1] of positions to point at, the needles of the row."""
    import numpy as np
    from matplotlib.colors import to_rgba
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    found, layers, heads = fates(atlas), atlas["layers"], atlas["heads"]
    height = min(4.2, max(1.1, 0.09 * layers * heads))
    figure = Figure(figsize=(4.6, height + 1.36))
    ax = figure.add_axes((0.1, 0.92 / (height + 1.36), 0.88, height / (height + 1.36)))
    table = np.array([[int(255 * part) for part in to_rgba(COLOURS[fate])] for fate in sorted(COLOURS)], dtype=np.uint8)
    picture = np.repeat(table[found], SHARP, axis=0)
    ax.imshow(picture, aspect="auto", interpolation="none", extent=(0, atlas["seen"], layers, 0))
    ax.grid(False)
    ax.spines[:].set_visible(False)
    step = -(-layers // 12)
    ax.set_yticks([layer + 0.5 for layer in range(0, layers, step)], [str(layer) for layer in range(0, layers, step)])
    for layer in range(1, layers):
        ax.axhline(layer, color="white", linewidth=0.8)
    ax.axvline(atlas["prompt_tokens"], color="#D55E00", linewidth=0.8, label="end of the prompt")
    _point_at(ax, spans, 0.012 * atlas["seen"])
    ax.set_xlabel("position")
    ax.set_ylabel("layer")
    write_title(ax, title, 3.0 if spans else 0.0)
    patches = [Patch(color=COLOURS[fate], label=NAMES[fate]) for fate in sorted(COLOURS, reverse=True)]
    lines = {line.get_label(): line for line in ax.lines if not line.get_label().startswith("_")}
    handles = [*patches, *lines.values()]
    figure.legend(handles=handles, loc="lower left", ncols=2, fontsize=7.5, bbox_to_anchor=(0.02, 0.0),
                  borderaxespad=0.2, handlelength=1, handleheight=1, columnspacing=1.2, labelspacing=0.3)  # fmt: skip
    return figure


def _point_at(ax: Axes, spans: Sequence[Sequence[int]], least: float) -> None:
    """A bar above the axes over each span of positions, as long as it is, and `least` positions where it is shorter."""
    from matplotlib.transforms import ScaledTranslation

    above = ax.get_xaxis_transform() + ScaledTranslation(0, 3 / 72, ax.figure.dpi_scale_trans)
    for first, last in spans:
        middle, half = (first + last) / 2, max(last - first, least) / 2
        ax.plot((middle - half, middle + half), (1, 1), transform=above, color="#D55E00", linewidth=3.5,
                solid_capstyle="butt", clip_on=False, label="needle")  # fmt: skip
