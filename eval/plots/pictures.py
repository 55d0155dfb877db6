"""All figures of a set of cells, by name: for files (`plots=true`), for the report, for W&B.

A figure is drawn when it is asked for, inside `style`; drawing needs nothing but rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d2o.budget import budget_name
from d2o.errors import InputError
from eval.cells.checked import reading
from eval.plots import answer as plot_answer
from eval.plots import atlas as plot_atlas
from eval.plots import budget as plot_budget
from eval.plots import efficiency as plot_efficiency
from eval.plots import held as plot_held
from eval.plots import needle as plot_needle
from eval.plots import ppl as plot_ppl
from eval.plots.atlas_file import FILE, read_atlas
from eval.plots.style import save, style
from eval.scores.cell_data import CellData
from eval.scores.result import CellResult
from eval.scores.score import Score

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUMBERED = 24  # heat maps with numbers in their cells; in a page of more the colours must do
ATLASES = 24  # rasters in one page


@dataclass(frozen=True)
class Picture:
    """`name`: a file's name without its ending; `kind`: the section it belongs to; `sheet`: too wide for a phone."""

    kind: str
    name: str
    title: str
    draw: Callable[[], Figure]
    sheet: bool = False


def labels_of(cells: Sequence[CellData]) -> list[str]:
    """Every label there is, which fixes its colour."""
    return sorted({cell.label for cell in cells})


def pictures(cells: Sequence[CellData]) -> list[Picture]:
    """Everything that the rows of `cells` can show, model by model."""
    found, labels = [], labels_of(cells)
    for model in dict.fromkeys(cell.model for cell in cells):
        group = [cell for cell in cells if cell.model == model]
        for part in (_budget, _needle, _ppl, _efficiency, _held, _answer, _atlas):
            found += part(model, group, labels)
    return found


def _budget(model: str, cells: Sequence[CellData], labels: Sequence[str]) -> list[Picture]:
    found = []
    for family in dict.fromkeys(cell.family for cell in cells):
        group = [cell for cell in cells if cell.family == family]
        curves = [one for one in plot_budget.by_task(group) if one.is_curve]
        if len(curves) > 1:
            mean = plot_budget.mean_over_tasks(group, family)
            panels = [(f"{family}-mean", mean, mean.title)] * mean.is_curve
        else:
            panels = []
        for name, one, title in [*panels, *((one.title, one, one.title) for one in curves)]:
            draw = lambda one=one: plot_budget.budget_figure([one], labels)  # noqa: E731
            found.append(Picture("budget", f"budget-{model}-{name}", f"{model}, {title}: score against budget", draw))
        if len(curves) > 1:
            bare = [replace(one, title=one.title.removesuffix(f" {group[0].protocol_label}")) for one in curves]
            draw = lambda curves=bare: plot_budget.budget_figure(curves, labels, columns=3)  # noqa: E731
            title = f"{model}, all tasks of {family}"
            found.append(Picture("budget", f"budget-{model}-{family}-sheet", title, draw, sheet=True))
    return found


def _needle(model: str, cells: Sequence[CellData], labels: Sequence[str]) -> list[Picture]:
    by_cell = [(cell, plot_needle.needle_maps(cell)) for cell in cells]
    maps: dict[tuple[str, str], list[tuple[CellData, plot_needle.NeedleMap]]] = {}
    for cell, one in ((cell, one) for cell, all_maps in by_cell for one in all_maps):
        maps.setdefault((cell.task, one.what), []).append((cell, one))
    numbers, found = sum(map(len, maps.values())) <= NUMBERED, []
    for (task, what), group in maps.items():
        for cell, one in group:
            draw = lambda one=one: plot_needle.needle_figure([one], numbers=numbers)  # noqa: E731
            title = f"{model}, {task}, {cell.name}: {what}"
            found.append(Picture("needle", f"{task}-{model}-{cell.name}-{what}", title, draw))
    for (task, what), group in maps.items():
        if len(group) > 1:
            draw = lambda sheet=[one for _, one in group]: plot_needle.needle_figure(sheet, columns=3)  # noqa: E731
            title = f"{model}, {task}, {what}"
            found.append(Picture("needle", f"{task}-{model}-{what}-sheet", title, draw, sheet=True))
    return found


def _ppl(model: str, cells: Sequence[CellData], labels: Sequence[str]) -> list[Picture]:
    return [
        Picture("ppl", f"nll-{model}-{curves.title}", f"{model}, {curves.title}: NLL over position",
                lambda curves=curves: plot_ppl.nll_figure(curves, labels))
        for curves in plot_ppl.nll_curves(cells)
    ]  # fmt: skip


def _efficiency(model: str, cells: Sequence[CellData], labels: Sequence[str]) -> list[Picture]:
    found = []
    for (protocol, budget), group in plot_efficiency.groups(cells).items():
        for name, what, figure in (
            ("speed", "tokens per second against the batch", plot_efficiency.speed_figure),
            ("memory", "memory against the context", plot_efficiency.memory_figure),
        ):
            title = f"{', '.join(filter(None, (model, protocol)))}, budget {budget_name(budget)}: {what}"
            draw = lambda figure=figure, group=group: figure(group, labels)  # noqa: E731
            name = "-".join(filter(None, (name, model, protocol, f"b{budget:g}")))
            found.append(Picture("efficiency", name, title, draw))
    return found


def _held(model: str, cells: Sequence[CellData], labels: Sequence[str]) -> list[Picture]:
    found = []
    for budget, held in plot_held.held_by_budget(cells).items():
        what = plot_held.title_of(cells, budget)
        draw = lambda held=held, what=what: plot_held.held_figure(what, held, labels)  # noqa: E731
        title = f"{model}: slots held per layer at budget {budget_name(budget)}"
        found.append(Picture("held", f"held-{model}-b{budget:g}", title, draw))
    return found


def _answer(model: str, cells: Sequence[CellData], labels: Sequence[str]) -> list[Picture]:
    return [
        Picture("held", f"answer-{model}-{curves.title}", f"{model}, {curves.title}: slots held while answering",
                lambda curves=curves: plot_answer.answer_figure(curves, labels))
        for curves in plot_answer.held_curves(cells)
    ]  # fmt: skip


def _atlas(model: str, cells: Sequence[CellData], labels: Sequence[str]) -> list[Picture]:
    found = []
    for cell in cells:
        if len(found) < ATLASES and (atlas := read_atlas(cell.path)):
            title = f"{cell.name}, {cell.task}, row {atlas['id']}"
            spans = cell.needles(atlas["id"])
            found.append(
                Picture("atlas", f"atlas-{model}-{cell.name}-{cell.task}", f"{model}, {title}",
                        lambda title=title, atlas=atlas, spans=spans: plot_atlas.atlas_figure(atlas, title, spans))
            )  # fmt: skip
    return found


READ = (_needle, _ppl, _efficiency, _held, _answer, _atlas)  # what reads more of a row than its score


@contextmanager
def noted(note: Callable[[str], None]) -> Iterator[None]:
    """An InputError inside costs a note, and what it was raised of is left out."""
    try:
        yield
    except InputError as error:
        note(f"left out: {error}")


def drawable(cells: Sequence[CellData], note: Callable[[str], None]) -> list[CellData]:
    """The cells whose rows hold what their pictures read; each of the others costs a note."""
    found = []
    for cell in cells:
        with noted(note), reading(f"{cell.path}"):
            for part in READ:
                part(cell.model, [cell], [cell.label])
            found.append(cell)
        if (cell.path / FILE).exists() and read_atlas(cell.path) is None:
            note(f"left out: {cell.path / FILE} is no atlas")
    return found


def write_plots(cells: Sequence[CellData], folder: Path, note: Callable[[str], None]) -> list[Path]:
    """Every picture as SVG and PNG in `folder`; the files, sorted. One that cannot be drawn costs a note."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for picture in pictures(cells):
        with style(), noted(note), reading(f"the figure {picture.title!r}"):
            figure = picture.draw()
            for ending in ("svg", "png"):
                file = folder / f"{file_name(picture.name)}.{ending}"
                save(figure, file)
                files.append(file)
    return sorted(files)


def file_name(name: str) -> str:
    """A picture's name as a file may be called."""
    return re.sub(r"[^\w.=-]+", "_", name.replace(" %", "pc"))


def cell_figures(config: Mapping[str, Any], rows: Sequence[dict[str, Any]], path: Path) -> dict[str, Figure]:
    """{name: figure} of one cell, for a tracker: needle maps, NLL, efficiency, slots per layer, atlas.

    `config` is the cell's config.json, `rows` its rows, `path` its folder. Names suit files and addresses (a per cent
    sign breaks an upload). No pyplot, which keeps every figure: wandb.Image takes them.
    """
    names = dict(config["cell"])
    result = CellResult(str(path), names, Score(None, 0), {}, None, None, config.get("protocol_hash"))
    label = str(names.get("method"))
    cell = CellData(path, result, dict(config), list(rows), label)
    with style(), reading(f"the rows of {path}"):
        return {file_name(one.name): one.draw() for one in pictures([cell])}


def write_figures(figures: Mapping[str, Figure], folder: Path) -> list[Path]:
    """Every figure of `cell_figures` as PNG in `folder`; the files, in their order."""
    folder.mkdir(exist_ok=True)
    files = [folder / f"{name}.png" for name in figures]
    with style():
        for figure, file in zip(figures.values(), files, strict=True):
            save(figure, file)
    return files
