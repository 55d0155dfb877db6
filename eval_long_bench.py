"""Score predictions: cells to tables. Needs no model and no data set.

python eval_long_bench.py                            every cell under results/
python eval_long_bench.py results_dir=DIR scorer=official|fixed json=FILE
python eval_long_bench.py report=true                one HTML page of it all, results/report.html; plots=true: figures
python eval_long_bench.py table=NAME                 a table of configs/table; format=markdown|csv|latex|html out=FILE
python eval_long_bench.py table=NAME against=published   measured less published, and what differs in the protocols
python eval_long_bench.py preds=DIR json=FILE        predictions of LongBench, KVCache-Factory, kvpress or lm-eval
python eval_long_bench.py export=longbench|lm_eval out=DIR   our cells in the layout of another
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from d2o.errors import InputError

CONFIGS = Path(__file__).resolve().parent / "configs"


def main(words: list[str]) -> None:
    """The command's words, without its name. Raises InputError."""
    if any(word in ("-h", "--help") for word in words):
        from eval.text import by_name

        text = f"{__doc__}\nKeys and their defaults:\n\n{(CONFIGS / 'eval.yaml').read_text(encoding='utf-8')}"
        print(by_name(text), end="")
        return
    from eval.config.score_config import read_score_config

    config = read_score_config(words, CONFIGS)
    for key in ("json", "report", *(() if config.export else ("out",))):
        if isinstance(getattr(config, key), str):
            check_target(key, Path(getattr(config, key)))
    if config.table is not None:
        print_table(config)
    elif config.export is not None:
        write_export(config)
    else:
        score(config)


def score(config: Any) -> None:
    """The table of cells, or of a foreign folder, to the terminal, and what the JSON file gets."""
    table, record = score_preds(config) if config.preds is not None else score_results(config)
    print(table)
    if config.json is not None:
        write_json(Path(config.json), record)
        note(f"wrote {config.json}")


def print_table(config: Any) -> None:
    """A table of configs/table, to the terminal or to out=FILE."""
    from eval.tables.against import against_published
    from eval.tables.fill import fill
    from eval.tables.formats import render
    from eval.tables.read import read_table

    table = read_table(config.table, CONFIGS)
    folder, where = Path(config.results_dir), config.where or ()
    filled = fill(table, folder, CONFIGS, config.scorer, note, config.mix_protocols, where)
    text = against_published(filled, folder, config.format) if config.against else render(filled, config.format)
    if config.out is None:
        print(text.rstrip("\n"))
    else:
        write_text(Path(config.out), text.rstrip("\n") + "\n")
        note(f"wrote {config.out}")


def write_export(config: Any) -> None:
    """The cells in the layout of another, under out=DIR."""
    from eval.tables.foreign.export import export

    target = Path(config.out)
    files = export(Path(config.results_dir), config.export, target, config.scorer, note)
    print(f"wrote {len(files)} files to {target}")


def score_results(config: Any) -> tuple[str, dict[str, Any]]:
    """The cells under results_dir: the table to print, and what the JSON file gets."""
    from eval.scores.compare import order
    from eval.scores.labels import name_results
    from eval.scores.results import score_cells
    from eval.tables.text import aggregates, cell_record, cells_table

    results = score_cells(Path(config.results_dir), config.scorer, note, keep=bool(config.report or config.plots))
    if config.report or config.plots:
        draw_all(results, config)
    name_results(results, Path(config.results_dir), apart=not config.mix_protocols)
    results.sort(key=order)
    record = {"scorer": config.scorer, "cells": [cell_record(r) for r in results], "means": aggregates(results)}
    return cells_table(results), record


def draw_all(results: list[Any], config: Any) -> None:
    """The report and the figures, which keep protocols apart; then the printed tables do so too."""
    from eval.plots.pictures import drawable
    from eval.scores.labels import load_cells

    folder = Path(config.results_dir)
    cells = drawable(load_cells(results, folder), note)
    if results and not cells:
        raise InputError(f"no cell under results_dir={folder} can be drawn", "leave report= and plots= out")
    if config.report:
        from eval.plots.report import write_report

        target = folder / "report.html" if config.report is True else Path(config.report)
        write_report(cells, folder, target, config.scorer, note)
        note(f"wrote {target}")
    if config.plots:
        from eval.plots.pictures import write_plots

        target = folder / "plots" if config.plots is True else Path(config.plots)
        files = write_plots(cells, target, note)
        note(f"wrote {len(files)} files to {target}")
    for cell in cells:
        cell.result.protocol_label = cell.protocol_label


def score_preds(config: Any) -> tuple[str, dict[str, Any]]:
    """A foreign folder: the table to print, and what the JSON file gets."""
    from eval.scores.score import rounded
    from eval.tables.foreign.score import score_folder
    from eval.tables.text import folder_table

    results = score_folder(Path(config.preds), config.scorer, config.e, config.buckets, note)
    record: dict[str, Any] = {"scores": {r.folder: rounded(r.score.value) for r in results}}
    buckets = {r.folder: {label: rounded(s.value) for label, s in r.buckets.items()} for r in results if r.buckets}
    return folder_table(results), record | ({"buckets": buckets} if buckets else {})


def check_target(key: str, path: Path) -> None:
    """Before minutes of scoring, not after."""
    if path.is_dir() or not path.parent.is_dir():
        raise InputError(f"cannot write {key}={path}", f"{key}= names a file in a folder that exists")


def write_json(path: Path, record: dict[str, Any]) -> None:
    """What json=FILE gets."""
    write_text(path, json.dumps(record, ensure_ascii=False, allow_nan=False, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """A file that the user named, whole or not at all; what killed commands left beside it goes."""
    from eval.cells.files import sweep, write_whole

    sweep(path.parent)
    write_whole(path, text, f".{os.getpid()}")


def note(text: str) -> None:
    """One line to stderr, beside the table."""
    from eval.text import visible

    print(f"note: {visible(text)}", file=sys.stderr)


def command(words: list[str]) -> int:
    """As `main`, with every error printed: the exit code."""
    from eval.exits import report

    try:
        main(words)
    except BaseException as error:
        return report(error)
    return 0


if __name__ == "__main__":
    sys.exit(command(sys.argv[1:]))
