"""Scores as a table that reads well on a terminal and is Markdown as it stands. What was not measured is blank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from eval.scores.bootstrap import Interval
from eval.scores.holds_more import FOOTNOTE, MARK, footnote, mark
from eval.scores.means import average, mean
from eval.scores.result import CellResult
from eval.scores.score import rounded
from eval.tasks.longbench.means import longbench_e_means, longbench_means
from eval.tasks.order import in_order
from eval.text import in_markdown, markdown, number, span

AGAINST = ("vs full", "95 % interval")  # of the paired difference, eval/scores/bootstrap.py
COLUMNS = ("model", "method", "variant", "budget")


def cells_table(results: Sequence[CellResult]) -> str:
    """All cells, one table per task, then the means of the configurations for which every set is there."""
    parts = []
    for title in dict.fromkeys(result.title for result in results):
        group = [result for result in results if result.title == title]
        labels = list(dict.fromkeys(label for result in group for label in result.buckets))
        compared = [*AGAINST] if any(r.against for r in group) else []
        scored = ["score"] if any(r.score.value is not None for r in group) or not any(r.columns for r in group) else []
        shown = list(dict.fromkeys(name for r in group for name in r.columns))
        drawn = list(dict.fromkeys(name for r in group for name in r.sampled))
        rows = [
            [*cell_names(r), realised(r.realised, r), row_count(r)]
            + [number(r.score.value) for _ in scored]
            + (against(r) if compared else [])
            + [_bucket(r, label) for label in labels]
            + [number(r.columns.get(name)) for name in shown]
            + [text for name in drawn for text in interval(r.sampled.get(name))]
            for r in group
        ]
        header = [*COLUMNS, "realised", "rows", *scored, *compared, *labels, *shown]
        header += [title for name in drawn for title in (name, AGAINST[1])]
        parts.append(f"{in_markdown(title)}\n\n" + markdown(header, rows, left=3) + footnote(group))
    means = aggregates(results)
    return "\n\n".join([*parts, _means_table(means)] if means else parts)


def cell_names(result: CellResult) -> list[str]:
    """Model, method, variant with the knobs that tell it from others, budget."""
    cell = result.cell
    variant = str(cell.get("variant") or "") if result.variant is None else result.variant
    return [str(cell.get("model", "")), str(cell.get("method", "")), variant, str(cell.get("budget", ""))]


def against(result: CellResult) -> list[str]:
    """The difference to the full cache over the rows that both have, how many where not all, and its interval."""
    value, bounds = interval(result.against, "+")
    only = "" if result.against is None or result.against.n == result.score.n else f" (n={result.against.n})"
    return [value + only, bounds]


def interval(found: Interval | None, sign: str = "") -> tuple[str, str]:
    """A mean and its bounds as two columns; sign="+": of a difference."""
    return ("", "") if found is None else (number(found.value, sign=sign), span(found.low, found.high, sign))


def realised(value: float | None, *cells: Any) -> str:
    """Marked where one of `cells` is no equal comparison."""
    return "" if value is None else f"{value:.4f}{mark(cells)}"


def mean_realised(cells: Sequence[CellResult]) -> float | None:
    """Over the cells that say what they hold."""
    return average([cell.realised for cell in cells])


def row_count(result: CellResult) -> str:
    """Rows scored; "12/200" for a cell that is not finished."""
    n, total = result.score.n, result.total
    return str(n) if total is None or total == n else f"{n}/{total}"


def _bucket(result: CellResult, label: str) -> str:
    return number(result.buckets[label].value) if label in result.buckets else ""


def aggregates(results: Sequence[CellResult]) -> list[dict[str, Any]]:
    """One record per configuration: its names, the rows behind it, and the means for which every set is there and
    finished.
    """
    records, whole = [], _families(results)
    for run in dict.fromkeys(result.run for result in results):
        group = [r for r in results if r.run == run and (r.total is None or r.score.n >= r.total)]
        plain = {set_of(r.task): r.score.value for r in group}
        e = {set_of(r.task, "longbench_e_"): {k: s.value for k, s in r.buckets.items()} for r in group}
        means = longbench_means(plain) | {
            f"LongBench-E {label}": value for label, value in longbench_e_means(e).items()
        }
        kept = {name: value for name, value in means.items() if value is not None} | _family_means(group, whole)
        if kept:
            record = dict(zip(COLUMNS, cell_names(group[0]), strict=True))
            held = {"budget_realised": mean_realised(group), "uneven": any(r.holds_more for r in group)}
            records.append({**record, "run": run, "n": sum(r.score.n for r in group), **held, "means": kept})
    return records


def _families(results: Sequence[CellResult]) -> dict[str, list[str]]:
    """{first word of tasks: all of them that are scored} where there are several, but for LongBench's own means."""
    found: dict[str, list[str]] = {}
    scored = [r.title for r in results if r.score.value is not None and not r.task.startswith("longbench")]
    for title in in_order(scored):
        found.setdefault(title.partition("_")[0], []).append(title)
    return {family: titles for family, titles in found.items() if len(titles) > 1}


def _family_means(group: Sequence[CellResult], families: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """The means of a configuration over the families of which it has every task."""
    scores = {result.title: result.score.value for result in group}
    means = {name: mean([scores.get(title) for title in titles]) for name, titles in families.items()}
    return {f"mean of {len(families[name])} {name} tasks": value for name, value in means.items() if value is not None}


def set_of(task: str, prefix: str = "longbench_") -> str | None:
    """longbench_trec -> trec; None for another family (LongBench-E's names begin with longbench_e_)."""
    if not task.startswith(prefix) or (prefix == "longbench_" and task.startswith("longbench_e_")):
        return None
    return task.removeprefix(prefix)


def _means_table(records: Sequence[dict[str, Any]]) -> str:
    labels = list(dict.fromkeys(label for record in records for label in record["means"]))
    rows = []
    for record in records:
        held = realised(record["budget_realised"]) + MARK * record["uneven"]
        means = [number(record["means"].get(label)) for label in labels]
        rows.append([*(record[key] for key in COLUMNS), held, str(record["n"]), *means])
    below = f"\n\n{FOOTNOTE}" if any(record["uneven"] for record in records) else ""
    return "means\n\n" + markdown([*COLUMNS, "realised", "rows", *labels], rows, left=3) + below


def folder_table(results: Sequence[CellResult]) -> str:
    """Scores of a foreign folder by set, and the means of each of its runs for which every set is there."""
    labels = list(dict.fromkeys(label for result in results for label in result.buckets))
    said = [key for key in ("model", "method", "budget") if any(result.cell.get(key) for result in results)]
    rows = [
        [r.folder, *(str(r.cell.get(key) or "") for key in said), str(r.score.n), number(r.score.value)]
        + [_bucket(r, label) for label in labels]
        for r in results
    ]
    text = markdown(["set", *said, "rows", "score", *labels], rows, left=1 + len(said))
    for record in aggregates(results):
        shown = [[name, number(value)] for name, value in record["means"].items()]
        text += "\n\n" + markdown([f"mean of {record['run']}" if record["run"] else "mean", "score"], shown)
    return text


def cell_record(result: CellResult) -> dict[str, Any]:
    """A cell as the JSON file has it: everything the table shows, and where it came from."""
    return {
        **{key: result.cell.get(key) for key in (*COLUMNS, "seed")},
        "task": result.task,
        "question": result.question,
        "folder": result.folder,
        "budget_realised": result.realised,
        "uneven": result.holds_more,
        "n": result.score.n,
        "total": result.total,
        "score": rounded(result.score.value),
        "vs_full": None if result.against is None else asdict(result.against),
        "buckets": {label: {"n": s.n, "score": rounded(s.value)} for label, s in result.buckets.items()},
        "figures": result.columns,
        **({"sampled": {name: asdict(one) for name, one in result.sampled.items()}} if result.sampled else {}),
        "protocol_hash": result.protocol_hash,
    }
