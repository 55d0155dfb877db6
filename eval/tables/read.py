"""A table's YAML, configs/table/*.yaml: axes, what is run for their values, the numbers that others published.

    title: LongBench, 16 English sets
    models: {Llama-2-7B: model=hub model.id=meta-llama/Llama-2-7b-hf model.name=Llama-2-7B, Phi-3: null}
    methods: {Full: method=full, D2O: method=d2o, InfLLM: null}     # null: published only, nothing is run
    budgets: [0.2]
    tasks: {NrtvQA: task=longbench_narrativeqa, PPL: {words: task=ppl, figure: perplexity, better: lower}}
    words: limit=200                                                # given to every cell
    means: {mean: {tasks: [NrtvQA], bucket: 0-4k}}                  # further columns; null: of all the tasks
    published:
      - {source: a paper, budget: 0.2, tasks: [NrtvQA], scores: {Llama-2-7B: {D2O: [16.04]}}}

`any_model: true`: model= may be one that it does not name, and such cells are shown below.

A list of names is short for an axis whose values are called as what they run. The full cache has no budget, nor has a
method with `budgets: []`; a model may bring `budgets` of its own. Numbers are published as they stand in their source;
`scale: 100` makes per cent of them. A source of several blocks, or of which more is known, is named once:

    sources:
      keepkv:
        cite: a paper, Table 3
        secondary: true                      # the numbers were read elsewhere than in it
        says: {chat template: "off", truncation: {Llama-2-7B: "middle, 4096 tokens"}}   # of SAYS, for against=published
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from d2o.budget import read_budget
from d2o.errors import InputError
from eval.tables.keys import close_to, known, one_of
from eval.tables.published import publish, read_source
from eval.tables.spec import AXES, Mean, Part, TableSpec

KEYS = ("title", *AXES, "budgets", "any_model", "words", "means", "sources", "published")
PART_KEYS = {
    "models": ("words", "budgets"),
    "methods": ("words", "budgets"),
    "tasks": ("words", "figure", "better", "digits"),
}


def tables(config_dir: Path) -> list[str]:
    """The names of all tables, sorted."""
    return sorted(path.stem for path in (config_dir / "table").glob("*.yaml"))


def read_table(name: str, config_dir: Path) -> TableSpec:
    """Raises InputError for an unknown table, and for whatever in its file is not understood, with the file's name."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    path = config_dir / "table" / f"{name}.yaml"
    if not path.is_file():
        there = tables(config_dir)
        raise InputError(f"unknown table {name!r}", f"{close_to(name, there)}table is one of {', '.join(there)}")
    try:
        given = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except (YAMLError, OmegaConfBaseException, OSError) as error:
        raise InputError(f"cannot read {path}: {error}", "it is YAML; configs/table/mini.yaml is an example") from error
    try:
        return _table(name, given, config_dir)
    except InputError as error:
        raise InputError(f"table={name}: {error}", f"in {path}: {error.hint}") from error


def _table(name: str, given: Any, config_dir: Path) -> TableSpec:
    if not isinstance(given, dict):
        raise InputError("its file holds no keys", f"write {', '.join(KEYS)}")
    known(given, KEYS, "key")
    for key in (*AXES, "budgets"):
        if not given.get(key):
            raise InputError(f"{key} is not given", f"write {key}: with at least one value")
    axes = {key: _axis(key, given[key], config_dir) for key in AXES}
    table = TableSpec(
        name, str(given.get("title") or name), **axes, budgets=_budgets(given["budgets"]), words=_words(given, "words")
    )
    table.any_model = bool(given.get("any_model"))
    labels = [task.label for task in table.tasks]
    table.means = [_mean_column(str(header), more or {}, labels) for header, more in (given.get("means") or {}).items()]
    sources = {str(key): read_source(str(key), one) for key, one in (given.get("sources") or {}).items()}
    for block in given.get("published") or ():
        publish(table, block, labels, sources)
    return table


def _axis(key: str, given: Any, config_dir: Path) -> list[Part]:
    group = AXES[key]
    values = given if isinstance(given, dict) else {name: f"{group}={name}" for name in given}
    if not isinstance(given, dict) and len(values) < len(given):
        raise InputError(f"{key} names a value twice", "delete one of the two")
    parts = [_part(key, str(label), value, config_dir) for label, value in values.items()]
    seen: dict[tuple, str] = {}
    for part in parts:
        what = (frozenset(part.words or ()), part.reading)
        if part.words is not None and what in seen:
            raise InputError(f"{key} {seen[what]!r} and {part.label!r} are one and the same cell", "delete one of them")
        seen[what] = part.label
    return parts


def _part(key: str, label: str, value: Any, config_dir: Path) -> Part:
    group, more = AXES[key], value if isinstance(value, dict) else {"words": value}
    known(more, PART_KEYS[key], f"key of {label!r}")
    words = None if more.get("words") is None else _words(more, "words")
    budgets = None if more.get("budgets") is None else _budgets(more["budgets"])
    if key == "methods" and budgets:
        raise InputError(f"{label!r} of methods has budgets of its own", "write budgets: [] where it has none")
    if more.get("better") not in (None, "higher", "lower"):
        raise InputError(f"better: {more['better']} of {label!r} is unknown", "better is higher or lower")
    part = Part(label, words, budgets, more.get("figure"), more.get("better") == "lower", more.get("digits", 2))
    if words is not None:
        if part.choice(group) is None:
            raise InputError(f"{label!r} of {key} names no {group}", f"write {label}: {group}=NAME, or null")
        one_of(part.choice(group), sorted(path.stem for path in (config_dir / group).glob("*.yaml")), group)
    return part


def _mean_column(header: str, given: Any, labels: list[str]) -> Mean:
    known(given, ("tasks", "bucket"), f"key of the mean {header!r}")
    for label in given.get("tasks") or ():
        one_of(label, labels, f"task of the mean {header!r}")
    return Mean(header, tuple(given.get("tasks") or labels), given.get("bucket"))


def _budgets(given: Any) -> tuple[float, ...]:
    values = given if isinstance(given, list) else [given]
    budgets = tuple(read_budget(value, f"budget {value!r}") for value in values)
    if len(set(budgets)) < len(values):
        raise InputError(f"budgets {values} name one twice", "delete one of the two")
    return budgets


def _words(given: Mapping[str, Any], key: str) -> tuple[str, ...]:
    words = tuple(str(given.get(key) or "").split())
    for word in words:
        if "=" not in word:
            raise InputError(f"{word!r} is no key=value", "write words as run_pred.py takes them")
    return words
