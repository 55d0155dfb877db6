"""The keys of eval_long_bench.py with their types, and reading them strictly: every word that is not understood is
named.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from d2o.errors import InputError
from eval.config.words import Word, Words, check_words
from eval.scores.score import scorer_module


@dataclass
class ScoreConfig:
    """See configs/eval.yaml, which says what each key means."""

    results_dir: str = "results"
    preds: str | None = None
    scorer: str = "official"
    e: bool = False
    buckets: list[int] | None = None
    json: str | None = None
    mix_protocols: bool = False
    table: str | None = None
    format: str = "terminal"
    out: str | None = None
    where: list[str] | None = None
    against: str | None = None
    export: str | None = None
    report: Any = False
    plots: Any = False


EXPORTS = ("longbench", "lm_eval")
FORMATS = ("terminal", "markdown", "csv", "latex", "html")
SCORE_KEYS = tuple(field.name for field in fields(ScoreConfig))


def read_score_config(words: Sequence[str], config_dir: Path) -> ScoreConfig:
    """configs/eval.yaml with the command line's key=value words over it. Raises InputError."""
    check_words(words)
    given = Words(words)
    for word in given.parsed:
        _check_word(word)
    config = _composed(given.without("table"), config_dir)  # table/ is a folder of configs, which Hydra would look into
    config.table = given.get("table") or None
    _check_targets(config)
    _check_export(config)
    _check_table(config)
    if not config.results_dir:
        raise InputError("results_dir= is empty", "results_dir= names the folder that run_pred.py wrote to")
    edges = config.buckets
    if edges is not None and (not edges or edges[0] <= 0 or sorted(set(edges)) != edges):
        raise InputError(f"buckets={edges} are no upper edges", "write growing lengths: 'buckets=[4000,8000]'")
    scorer_module(config.scorer)
    return config


def _check_targets(config: ScoreConfig) -> None:
    """report and plots: true, false, or a place; both show cells of ours."""
    for key, ending in (("report", ".html"), ("plots", "")):
        value = getattr(config, key)
        if value is None or isinstance(value, str) and not value:
            setattr(config, key, value := False)
        if not isinstance(value, bool) and not (isinstance(value, str) and value.endswith(ending)):
            what = "a file that ends in .html" if ending else "a folder"
            raise InputError(f"{key}={value} is neither true nor {what}", f"write {key}=true")
        if value and config.preds is not None:
            raise InputError(f"{key}={value} with preds={config.preds}", f"{key}= shows cells: give results_dir=")


def _check_export(config: ScoreConfig) -> None:
    """A layout that is known, a folder to write to, and nothing that shows a table."""
    if config.export is None:
        return
    if config.export not in EXPORTS:
        raise InputError(f"export={config.export} is unknown", f"export is one of {', '.join(EXPORTS)}")
    if not config.out or Path(config.out).is_file():
        raise InputError(f"export={config.export} with out={config.out}", "out= names the folder to write to")
    for key in ("preds", "table", "json", "report", "plots"):
        if getattr(config, key):
            raise InputError(f"export={config.export} does not go with {key}=", f"leave {key}= out")


def _check_table(config: ScoreConfig) -> None:
    """What belongs to a table, and what a table does not go with."""
    if config.format not in FORMATS:
        raise InputError(f"format={config.format} is unknown", f"format is one of {', '.join(FORMATS)}")
    if config.against not in (None, "published"):
        raise InputError(f"against={config.against} is unknown", "write against=published")
    for word in config.where or ():
        if "=" not in word:
            raise InputError(f"{word!r} in where= is no key=value", "write where=[seed=0]")
    if config.table is None:
        for key in ("where", "against", *(() if config.export else ("out",))):
            if getattr(config, key) is not None:
                raise InputError(f"{key}= is of a table, and none is named", "add table=NAME")
        if config.format != "terminal":
            raise InputError(f"format={config.format} is of a table, and none is named", "add table=NAME")
        return
    for key, instead in (("preds", "results_dir="), ("json", "format=csv out="), ("report", ""), ("plots", "")):
        if getattr(config, key):
            hint = f"use {instead}" if instead else f"leave {key}= out, or table="
            raise InputError(f"table={config.table} does not go with {key}={getattr(config, key)}", hint)


def _check_word(word: Word) -> None:
    text, key, value = word
    keys = f"keys are {', '.join(SCORE_KEYS)}"
    bare = key.lstrip("+~")
    if bare in SCORE_KEYS and key != bare:
        raise InputError(f"{text!r} adds or deletes a key", f"write {bare}=... without the sign")
    if bare not in SCORE_KEYS:
        close = difflib.get_close_matches(bare, SCORE_KEYS, n=1)
        raise InputError(f"unknown key {key!r} in {text!r}", f"did you mean {close[0]}? {keys}" if close else keys)
    if value is None:
        raise InputError(f"cannot read {text!r}", f"write {key}=value")


def _composed(words: Words, config_dir: Path) -> ScoreConfig:
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        with initialize_config_dir(config_dir=str(config_dir.resolve()), version_base="1.3"):
            given = compose("eval", words.list)
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ScoreConfig), given))
    except (HydraException, OmegaConfBaseException) as error:
        what = str(error.__cause__ or error).strip().split("\n")[0]
        hint = "write key=value with a value of the right kind; quote one with special characters: 'preds=\"a (b)\"'"
        raise InputError(f"cannot read {' '.join(words)}: {what}", hint) from error
