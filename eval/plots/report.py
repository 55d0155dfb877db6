"""One HTML file of everything that was measured: opens without a network, links to the cells beside it.

The same cells give the same bytes: nothing in it says when it was written, only when its cells were.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from eval.cells.checked import reading
from eval.cells.files import write_whole
from eval.cells.status import read_status
from eval.plots.atlas_file import read_atlas
from eval.plots.pictures import ATLASES, noted, pictures
from eval.plots.report_answers import ROWS, answer_tables
from eval.plots.report_items import Table
from eval.plots.report_tables import (
    all_cells_table,
    atlas_tables,
    point_tables,
    provenance_tables,
    readings_tables,
    sampled_tables,
    score_tables,
)
from eval.plots.style import style
from eval.plots.svg import Sheet
from eval.scores.cell_data import CellData
from eval.text import visible

TEMPLATES = Path(__file__).parent / "templates"
SECTIONS = {
    "scores": ("Scores", "Means over rows, in per cent. vs full: the mean difference to the full cache over the rows "
               "that both have, with a 95 % paired bootstrap interval. The mean over tasks weighs them alike. Best "
               "bold, second underlined, within a budget; the full cache is not counted."),
    "answers": ("Answers", f"The first {ROWS} rows of each cell: what was right, what was said, and its score."),
    "budget": ("Score against budget", "Bands: 95 % bootstrap over rows. Dashed: the full cache."),
    "needle": ("Needle in a haystack", "Recall: does the answer stand in the prediction. Survival: the share of the "
               "needle's slots still held after the eviction, mean over layers. One colour scale, 0 to 100."),
    "ppl": ("Perplexity under eviction", "Mean negative log-likelihood of a token, in nats, over its position. KL in "
            "nats and top-1 in per cent: against the full cache."),
    "efficiency": ("Efficiency", "Medians of repeated runs with a fixed number of new tokens. x: over the full cache, "
                   "which runs on the same attention kernel; a cell is shown at the largest point that both reached."),
    "held": ("Slots per layer", "Held at the end of the prefill, as a share of the prompt, mean over heads and rows."),
    "atlas": ("Cache atlas", "One row of one cell: what became of every position, a line per layer and head. Vertical "
              "line: the end of the prompt. Marks above: the needles."),
    "figures": ("Measurements", "What the rows of other tasks say that measure more than a score."),
    "cells": ("Cells", "Every cell with the config that made it and its rows."),
    "provenance": ("Provenance", "What made the rows, as their config.json says."),
}  # fmt: skip


@dataclass
class Section:
    """A part of the page, one of SECTIONS."""

    key: str
    figures: list[tuple[str, str]] = field(default_factory=list)  # title, svg
    tables: list[Table] = field(default_factory=list)

    @property
    def title(self) -> str:
        """Its heading."""
        return SECTIONS[self.key][0]

    @property
    def text(self) -> str:
        """What stands below the heading."""
        return SECTIONS[self.key][1]


def write_report(
    cells: Sequence[CellData], results_dir: Path, target: Path, scorer: str, note: Callable[[str], None]
) -> None:
    """The report of `cells` as `target`, whole or not at all. Its links are relative to where it lies."""
    page = render_page(cells, results_dir, target.parent, scorer, note)
    write_whole(target, page, f".{os.getpid()}")


def render_page(
    cells: Sequence[CellData], results_dir: Path, home: Path, scorer: str, note: Callable[[str], None]
) -> str:
    """The report as HTML; `home`: the folder that its links start from."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    sections, sheet = {key: Section(key) for key in SECTIONS}, Sheet()
    with style(page=True):
        for picture in pictures(cells):
            if not picture.sheet:
                with noted(note), reading(f"the figure {picture.title!r}"):
                    drawn = sheet.svg(picture.draw(), picture.title)
                    sections[picture.kind].figures.append((picture.title, drawn))
    scored = [cell for cell in cells if cell.result.score.value is not None]
    sections["scores"].tables = [*score_tables(scored), *sampled_tables(scored)]
    sections["answers"].tables = answer_tables(scored, note)
    for key, table in readings_tables(cells):
        sections[key if key in sections else "figures"].tables.append(table)
    sections["efficiency"].tables += point_tables(cells)
    atlases = [(cell, atlas) for cell in cells if (atlas := read_atlas(cell.path))]
    sections["atlas"].tables = atlas_tables(atlases[:ATLASES])
    if len(atlases) > ATLASES:
        note(f"the report draws the first {ATLASES} atlases; the others lie beside their cells as atlas.json")
    links = {cell.result.folder: _link(results_dir / cell.result.folder, home) for cell in cells}
    sections["cells"].tables = [all_cells_table(cells, links)]
    sections["provenance"].tables = provenance_tables(cells)
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True,
                              undefined=StrictUndefined, finalize=_shown)  # fmt: skip
    facts = _facts(cells, scorer)
    shown = [section for section in sections.values() if section.figures or any(t.rows for t in section.tables)]
    return environment.get_template("report.html").render(sections=shown, facts=facts, css=sheet.css())


def _shown(value: Any) -> Any:
    """Texts as a page may show them; what is markup already stays as it is."""
    return visible(value) if type(value) is str else value


def _link(folder: Path, home: Path) -> str:
    return quote(os.fsencode(os.path.relpath(folder.resolve(), home.resolve()).replace(os.sep, "/")))


def _facts(cells: Sequence[CellData], scorer: str) -> list[tuple[str, str]]:
    updated = [time for cell in cells if (time := read_status(cell.path / "status.json")[0].get("updated"))]
    unfinished = sum(r.total is not None and r.score.n < r.total for r in (cell.result for cell in cells))
    facts = {
        "cells": str(len(cells)),
        "rows": f"{sum(len(cell.rows) for cell in cells):,}".replace(",", " "),
        "models": ", ".join(sorted({cell.model for cell in cells})),
        "scorer": scorer,
        "last change": max(updated, default=""),
        "unfinished cells": str(unfinished) if unfinished else "",
    }
    return [(key, value) for key, value in facts.items() if value]
