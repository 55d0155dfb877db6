"""Rows of other harnesses as our scorer takes them: pred, answers, all_classes, length, or a score of their own."""

from __future__ import annotations

import ast
import csv
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from d2o.errors import InputError
from eval.cells.read import foreign_rows, unscorable
from eval.cells.rows import FOREIGN, stream_rows
from eval.scores.results import Note
from eval.scores.score import protocol_of
from eval.tables.foreign.layouts import File
from eval.tasks.longbench.task import SETS, SETS_E

LITERAL = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", re.DOTALL)
MAIN = ("exact_match", "f1", "em", "acc", "score", "qa_f1_score")  # lm-eval's metrics that are shares
NAMED = ("dataset", "data_dir", "model", "press_name", "compression_ratio")  # in the name of a folder of kvpress
PRESS = {  # kvpress's data sets that a metric of ours scores: {data set: (metric, over answers)}
    "ruler": ("hub:contains", "mean"),
    "longbench-v2": ("hub:choice", "max"),
    "needle_in_haystack": ("hub:rougeL", "max"),
}
ANY_ANSWER = ("qa_1", "qa_2")  # of RULER: right where any of the answers is said


@dataclass
class Part:
    """Rows of one task. `task`: as our scorer calls it; `about`: model, method and budget where a layout says them."""

    task: str
    name: str
    protocol: Mapping[str, Any]
    rows: list[dict[str, Any]] | Iterator[dict[str, Any]]
    about: dict[str, Any] = field(default_factory=dict)


def parts(file: File, note: Note) -> list[Part]:
    """The tasks of a file. Raises InputError, naming file and line, for a row that cannot be scored."""
    if file.layout == "kvpress":
        return _kvpress(file, note)
    if file.layout == "lm_eval":
        return [_lm_eval(file)]
    part = _longbench(file.name, file.e, foreign_rows(file.path))
    part.name = file.path.stem if file.layout == "longbench" else part.name
    return [part]


def _longbench(name: str, e: bool, rows: Any, about: dict[str, Any] | None = None) -> Part:
    task = f"longbench_{'e_' if e else ''}{name}"
    return Part(task, f"{name}{'_e' if e else ''}", protocol_of(task), rows, about or {})


def _lm_eval(file: File) -> Part:
    """LongBench's tasks with our scorer; of others the metric that lm-eval wrote, a share of 1."""
    samples, first = [], None
    for number, sample in stream_rows(file.path, FOREIGN):
        first = sample.get("filter") if first is None else first
        if sample.get("filter") == first:  # every filter has a line of its own
            samples.append((f"{file.path}, line {number}", sample))
    name = file.name.removeprefix("longbench_").removeprefix("e_").removesuffix("_e")
    e = file.name.startswith("longbench_e_") or file.name.endswith("_e")
    if file.name.startswith("longbench_") and name in (SETS_E if e else SETS):
        return _longbench(name, e, [_sampled(sample, where) for where, sample in samples])
    rows = [{"score": _own_score(sample, where)} for where, sample in samples]
    return Part(file.name, file.name, {"metric": "row"}, rows)


def _sampled(sample: Mapping[str, Any], where: str) -> dict[str, Any]:
    doc, said = sample.get("doc"), sample.get("filtered_resps")
    if not isinstance(doc, dict) or not isinstance(said, list) or not said:
        raise InputError(f"{where}: no doc, or no filtered_resps", "samples as lm-eval writes them with --log_samples")
    answer = said[0]
    while isinstance(answer, list) and answer:
        answer = answer[0]
    row = {"pred": answer, "answers": doc.get("answers"), "all_classes": doc.get("all_classes") or None,
           "length": doc.get("length"), "id": sample.get("doc_id")}  # fmt: skip
    return _checked(row, where)


def _own_score(sample: Mapping[str, Any], where: str) -> float:
    named = [name for name in (*MAIN, *(sample.get("metrics") or ())) if isinstance(sample.get(name), int | float)]
    if not named or not 0 <= sample[named[0]] <= 1:
        raise InputError(f"{where}: none of its metrics is a share of 1", f"one of {', '.join(MAIN)}")
    return float(sample[named[0]])


def _kvpress(file: File, note: Note) -> list[Part]:
    """A part per column `task`, whose metric is that of its data set, which config.yaml or the folder names."""
    about, dataset, subset = _press(file)
    groups: dict[str, list[dict[str, Any]]] = {}
    for number, row in enumerate(_csv_rows(file.path), 2):
        where = f"{file.path}, row {number}"
        answers = _list(row.get("answers") or row.get("answer"))
        one = {"pred": row.get("predicted_answer") or "", "answers": answers,
               "all_classes": _list(row.get("all_classes")) or None, "length": _whole(row.get("length"))}  # fmt: skip
        groups.setdefault(str(row.get("task") or ""), []).append(_checked(one, where))
    found = []
    for task, rows in groups.items():
        name, e = task.removesuffix("-e").removesuffix("_e"), dataset == "longbench-e"
        if dataset.startswith("longbench") and name in (SETS_E if e else SETS):
            found.append(_longbench(name, e, rows, about))
        elif dataset in PRESS:
            metric, over = PRESS[dataset]
            protocol = {"metric": metric, "over_answers": "max" if task in ANY_ANSWER else over}
            name = " ".join(filter(None, (dataset, subset, task)))
            found.append(Part(f"{dataset}_{task}", name, protocol, rows, about))
        else:
            note(f"{file.path}: {len(rows)} rows of {dataset or 'an unknown data set'} {task}, which no metric of ours "
                 f"scores, left out")  # fmt: skip
    return found


def _press(file: File) -> tuple[dict[str, Any], str, str]:
    """{model, method, budget}, the data set and its subset: of config.yaml, else of the folder's name."""
    parts = file.path.parent.name.split("__")  # a folder that was renamed has fewer, a later kvpress's more
    named: dict[str, Any] = dict(zip(NAMED[: len(parts)], parts[: len(NAMED)], strict=True))
    config = file.path.parent / "config.yaml"
    if config.is_file():
        from yaml import YAMLError, safe_load

        try:
            read = safe_load(config.read_text(encoding="utf-8"))
        except (YAMLError, UnicodeDecodeError, RecursionError) as error:
            raise InputError(f"{config} cannot be read: {str(error).splitlines()[0]}", "it is YAML") from error
        named |= {key: value for key, value in (read if isinstance(read, dict) else {}).items() if value is not None}
    about = {"model": named.get("model"), "method": named.get("press_name")}
    try:
        about["budget"] = round(1 - float(named["compression_ratio"]), 6) or None
    except (KeyError, TypeError, ValueError):
        about["budget"] = None
    return {key: value for key, value in about.items() if value is not None}, *(
        str(named.get(key) or "") for key in ("dataset", "data_dir")
    )


def _csv_rows(path: Path) -> Iterator[dict[str, str]]:
    csv.field_size_limit(min(sys.maxsize, 1 << 31))  # a context may stand in a field
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines = csv.DictReader(file)
            columns = set(lines.fieldnames or ())
            if "predicted_answer" not in columns or not {"answers", "answer"} & columns:
                hint = "kvpress before 0.3 wrote the predictions alone: make them again, or add the column of answers"
                raise InputError(f"{path}: no columns predicted_answer and answer", hint)
            yield from lines
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: {error}", "it is a CSV file in UTF-8, as kvpress writes it") from error


def _list(text: str | None) -> list[str]:
    """ "['a', 'b']", and numpy's "['a' 'b']": the quoted texts in it; a text without any is one. Nothing is run."""
    if not text or text in ("nan", "None", "[]"):
        return []
    found = LITERAL.findall(text) if text.startswith(("[", "(", "array(")) else []
    return [str(ast.literal_eval(one)) for one in found] if found else [text.strip("[]") if text[0] == "[" else text]


def _whole(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None


def _checked(row: dict[str, Any], where: str) -> dict[str, Any]:
    if fault := unscorable(row):
        raise InputError(f"{where}: {fault[0]}", fault[1])
    return row
