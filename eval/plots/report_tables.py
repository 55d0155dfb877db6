"""The tables of the report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from eval.cells.baseline import is_baseline
from eval.plots.atlas_file import NAMES, largest_targets, shares
from eval.plots.report_items import Item, Table, budget_item, compared, difference, footnotes, held, num
from eval.scores.bootstrap import means_interval, paired
from eval.scores.cell_data import CellData
from eval.scores.kept_rows import KeptRows
from eval.scores.means import mean_of
from eval.tables.text import AGAINST, against, interval, mean_realised, row_count
from eval.tasks.efficiency import readings as efficiency_readings
from eval.tasks.order import task_order

MANY = 5  # tasks that still stand side by side with their whole names


def score_tables(cells: Sequence[CellData]) -> list[Table]:
    """Per model and family of tasks: a line per configuration, a column per task, a mean where every task is there."""
    groups: dict[str, list[CellData]] = {}
    for cell in cells:
        groups.setdefault(f"{cell.model}, {cell.family}", []).append(cell)
    return [_scores(title, group) for title, group in groups.items()]


def readings_tables(cells: Sequence[CellData]) -> list[tuple[str, Table]]:
    """Per measuring task: the module that reads its rows, and a line per cell, a column per reading."""
    tables = []
    for task in dict.fromkeys(cell.task for cell in cells if cell.result.columns):
        group = [cell for cell in cells if cell.task == task]
        names = list(dict.fromkeys(name for cell in group for name in cell.result.columns))
        names = [name for name in names if any(cell.result.columns.get(name) is not None for cell in group)]
        scored = ["score"] if any(cell.result.score.value is not None for cell in group) else []
        header = ["method", "model", "budget", "realised", *scored, *names]
        table = Table(task, header, left=2, note=footnotes(group))
        for cell in group:
            shown = [num(cell.result.score.value) for _ in scored]
            shown += [num(cell.result.columns.get(name)) for name in names]
            first = [Item(cell.label), Item(cell.model), budget_item(cell), held(cell.result.realised, cell.result)]
            table.rows.append([*first, *shown])
        tables.append((str((group[0].config.get("protocol") or {}).get("figures")), table))
    return tables


def sampled_tables(cells: Sequence[CellData]) -> list[Table]:
    """Per task whose rows have several samples: a line per cell, mean@n and every pass@k with its interval."""
    tables = []
    for task in dict.fromkeys(cell.task for cell in cells if cell.result.sampled):
        group = [cell for cell in cells if cell.task == task and cell.result.sampled]
        names = list(dict.fromkeys(name for cell in group for name in cell.result.sampled))
        header = ["method", "model", "budget", "realised", *(part for name in names for part in (name, AGAINST[1]))]
        table = Table(f"{task}, several samples a row", header, left=2, note=footnotes(group))
        for cell in group:
            shown = [Item(text) for name in names for text in interval(cell.result.sampled.get(name))]
            first = [Item(cell.label), Item(cell.model), budget_item(cell), held(cell.result.realised, cell.result)]
            table.rows.append([*first, *shown])
        tables.append(table)
    return tables


def point_tables(cells: Sequence[CellData]) -> list[Table]:
    """Efficiency point by point: medians, and their ratios to the full cache on the same kernel."""
    ms, mib = 1e3, 1 / 2**20
    shown = {"TTFT ms": ("ttft_s", ms), "TPOT ms": ("tpot_s", ms), "tokens/s": ("tokens_per_s", 1),
                "KV MiB": ("kv_bytes", mib), "prefill peak MiB": ("prefill_peak", mib),
                "decode peak MiB": ("decode_peak", mib)}  # fmt: skip
    header = ["method", "model", "budget", "batch", "prompt", "new"]
    header += [name for one in shown for name in (one, f"{one.removesuffix(' ms').removesuffix(' MiB')} x")]
    table = Table("every point", [*header, "scoring ms"], left=2)
    for cell in cells:
        if (cell.config.get("protocol") or {}).get("figures") != "efficiency":
            continue
        for point in efficiency_readings.records(cell.rows)["efficiency"]:
            line = [Item(cell.label), Item(cell.model), budget_item(cell)]
            line += [Item(str(point[key]), point[key]) for key in ("batch", "prompt", "new")]
            for key, scale in shown.values():
                value, against = point[key], point[efficiency_readings.ratio_name(key)]
                line.append(Item("out of memory") if point["oom"] else num(None if value is None else value * scale))
                line.append(Item("full: oom") if point["full_oom"] and not point["oom"] else num(against))
            table.rows.append([*line, num(point["scoring_s"] and ms * point["scoring_s"], 1)])
    return [table]


def _scores(title: str, cells: Sequence[CellData]) -> Table:
    cells = sorted(cells, key=lambda cell: task_order(cell.task))
    tasks = list(dict.fromkeys(cell.task for cell in cells))
    full = {cell.task: cell.result.by_id for cell in cells if is_baseline(cell.result.cell)}
    lines: dict[tuple[str, float], dict[str, CellData]] = {}
    for cell in sorted(cells, key=lambda cell: not is_baseline(cell.result.cell)):
        lines.setdefault((cell.label, cell.budget), {})[cell.task] = cell
    several, over = len(tasks) > 1, _of_mean([set(found) for found in lines.values()], tasks)
    mean_of = "mean" if over == tasks else f"mean of {len(over)}"
    compared = [mean_of, "vs full", "95 % interval"] if several else ["vs full", "95 % interval"]
    names = list(dict.fromkeys(cell.result.task for cell in cells))  # the label of their protocol stands in the title
    if len(names) > MANY:  # a wide table is whole without what all of them begin with
        names = [name.removeprefix(f"{cells[0].family.partition(' ')[0]}_") for name in names]
    table = Table(title, ["method", "budget", "realised", *compared, *names], left=1, note=footnotes(cells))
    for (label, _), found in lines.items():
        whole = set(over) <= set(found)
        mean = means_interval([found[task].result.score.per_row for task in over]) if whole else None
        pairs = [paired(found[task].result.by_id, full.get(task, {})) for task in over] if whole else []
        is_full = is_baseline(next(iter(found.values())).result.cell)
        there = [cell.result for cell in found.values()]
        row = [Item(label), budget_item(next(iter(found.values()))), held(mean_realised(there), *there)]
        row += [num(mean.value if mean else None)] if several else []
        row += difference(None if is_full else means_interval(pairs))
        table.rows.append(row + [num(found[t].result.score.value if t in found else None) for t in tasks])
    _mark_best(table, [3, *range(6, 6 + len(tasks))] if several else [5])
    return table


def _of_mean(lines: Sequence[set[str]], tasks: Sequence[str]) -> list[str]:
    """The tasks that a mean is over: those of a line that the most lines have all of, counted by how many they are, so
    that one task more of one line empties no mean."""
    best = max(lines, key=lambda one: (sum(one <= other for other in lines) * len(one), len(one)))
    return [task for task in tasks if task in best]


def _mark_best(table: Table, columns: Sequence[int]) -> None:
    """Best and second of every budget, as they are shown; lines without a budget are the full cache's."""
    groups: dict[str, list[list[Item]]] = {}
    for row in table.rows:
        if row[1].text:
            groups.setdefault(row[1].text, []).append(row)
    for rows in groups.values():
        for column in columns:
            shown = sorted({row[column].text for row in rows if row[column].text}, key=float, reverse=True)
            for row in rows if len(shown) > 1 else ():
                if (text := row[column].text) in shown[:2] and float(text):  # nothing right is no second place
                    row[column] = replace(row[column], mark="best" if text == shown[0] else "second")


def all_cells_table(cells: Sequence[CellData], links: dict[str, str]) -> Table:
    """Every cell with its files; `links` {folder: relative address}."""
    header = ["task", "model", "method", "budget", "realised", "rows", "score", "vs full", "95 % interval",
              "decoded tokens/s", "KV MiB", "files", ""]  # fmt: skip
    table = Table("all cells", header, left=3, note=footnotes(cells))
    for cell in cells:
        result, link = cell.result, links[cell.result.folder]
        table.rows.append(
            [
                Item(cell.task),
                Item(cell.model),
                Item(cell.label),
                budget_item(cell),
                held(result.realised, result),
                Item(row_count(result), result.score.n),
                num(result.score.value),
                *compared(against(result), result.against),
                num(speed(cell.rows), 1),
                num(mebibytes(mean_of(cell.rows, "kv_bytes_decode"))),
                Item("config", link=f"{link}/config.json"),
                Item("rows", link=f"{link}/{result.rows_file}"),
            ]
        )
    return table


def speed(rows: Iterable[dict[str, Any]]) -> float | None:
    """Tokens per second of decoding, over all rows."""
    if isinstance(rows, KeptRows):
        pairs = zip(rows.column("new_tokens"), rows.column("decode_s"), strict=True)
        found = [(new, seconds) for new, seconds in pairs if new > 0 and seconds > 0]  # NaN is neither
        return sum(new for new, _ in found) / sum(seconds for _, seconds in found) if found else None
    timed = [row for row in rows if row.get("decode_s") and row.get("new_tokens")]
    return sum(row["new_tokens"] for row in timed) / sum(row["decode_s"] for row in timed) if timed else None


def mebibytes(size: float | None) -> float | None:
    """Bytes in MiB."""
    return None if size is None else size / 2**20


def atlas_tables(atlases: Sequence[tuple[CellData, dict[str, Any]]]) -> list[Table]:
    """What became of the positions, layer by layer; a click away, who took in most."""
    fates = Table("per cent of positions", ["method", "task", "layer", *NAMES], left=2)
    tables = [fates]
    header = ["layer", "head", "position", "merged into it", "largest weight", "of position"]
    for cell, atlas in atlases:
        for layer, parts in enumerate(shares(atlas)):
            shown = [num(100 * part, 1) for part in parts]
            fates.rows.append([Item(cell.name), Item(cell.task), Item(str(layer), layer), *shown])
        merges = Table(f"{cell.name}, {cell.task}: who was merged into whom, largest first", header, folded=True)
        for one in largest_targets(atlas):
            whole = [Item(str(one[key]), one[key]) for key in ("layer", "head", "position", "merged")]
            merges.rows.append([*whole, num(one["weight"], 3), Item(str(one["from"]), one["from"])])
        tables.append(merges)
    return tables


def provenance_tables(cells: Sequence[CellData]) -> list[Table]:
    """What made the rows: versions and devices, protocols, models."""
    made = Table("software and devices", ["device", "versions", "cells"], left=2)
    protocols = Table("protocols", ["task", "hash", "metric", "cells"], left=3)
    models = Table("models", ["model", "fingerprint", "cells"], left=2)
    for table, key in (
        (made, lambda c: (str(c.config.get("device") or ""), _versions(c))),
        (protocols, lambda c: (c.task, str(c.result.protocol_hash or "")[:12], _metric(c))),
        (models, lambda c: (c.model, str(c.config.get("model_fingerprint") or "")[:12])),
    ):
        counts: dict[tuple[str, ...], int] = {}
        for cell in cells:
            counts[key(cell)] = counts.get(key(cell), 0) + 1
        table.rows = [[*map(Item, names), Item(str(n), n)] for names, n in counts.items()]
    return [made, protocols, models]


def _versions(cell: CellData) -> str:
    return ", ".join(f"{name} {version}" for name, version in (cell.config.get("versions") or {}).items())


def _metric(cell: CellData) -> str:
    return str((cell.config.get("protocol") or {}).get("metric") or "")
