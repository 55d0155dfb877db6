"""Predict one cell, model x method x task, or a sweep of them: `python run_pred.py --help`."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.cli import main

if TYPE_CHECKING:
    from d2o.models.load import LoadedModel
    from d2o.models.outline import Outline
    from eval.cells.cell import Cell
    from eval.cells.identity import Composed
    from eval.run.dry_run import Size
    from eval.run.plan import Plan
    from eval.run.predict import Prompt
    from eval.tasks.sample import Sample
    from eval.track.tracker import Tracker

_last: dict[str, LoadedModel] = {}  # the last model, so that a sweep over methods loads it once


def run_cell(composed: Composed) -> tuple[Path, str]:
    """The cell's folder and what to say at its end. Bad input shows before anything is written, and a cell that is
    complete needs no model."""
    from eval.cells.cell import Cell
    from eval.plots.atlas_file import chosen
    from eval.run.loop import measures
    from eval.run.plan import plan
    from eval.run.predict import missing
    from eval.scores.summary import summary_text
    from eval.track.cell import send_cell
    from eval.track.tracker import Tracker

    cfg, started = composed.cfg, time.monotonic()
    planned = plan(composed)
    task, method, samples = planned.task, planned.method, planned.own
    drawn = chosen(task, samples, cfg.atlas) if cfg.atlas else None
    check_size(planned)
    config = record(planned)
    whole, command = len(planned.samples), config["command"]
    with Cell.open(planned.path, config, [s.id for s in samples], planned.shard, whole, command) as cell:
        for note in cell.notes:
            print(f"note: {cell.path} was begun with {note}", file=sys.stderr)
        todo = missing(cell, samples)
        with Tracker(cfg.wandb, Path(cfg.results_dir), config, cell.path, cell.done) as tracker:
            if todo:
                cell.status("queued")
                make = measure_missing if measures(task) else predict_missing
                make(cell, todo, task, method, cfg, tracker)
            if drawn:
                write_drawn(cell, drawn, task, method, cfg)
            rows = [cell.row(sample.id) for sample in samples]
            if not rows:
                return cell.path, f"{'cell':<8}{cell.path}\nshard {planned.shard} has none of the rows"
            found = send_cell(tracker, config, rows, cell.path, cfg.scorer)
            shown = keep_figures(cell, config, rows) if not planned.shard and (drawn or measures(task)) else ""
    took = time.monotonic() - started
    return cell.path, summary_text(cell.path, config, found, cell.fresh, took, rows) + shown


def keep_figures(cell: Cell, config: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """The figures of a cell beside its rows; what is returned names them."""
    from eval.plots.pictures import cell_figures, write_figures

    folder = cell.path / "figures"
    files = write_figures(cell_figures(config, rows, cell.path), folder)
    if not files:
        return ""
    return "\n".join([f"\n\nfigures in {folder}:", *(f"  {file.name}" for file in files)])


def predict_missing(cell: Cell, todo: list[Sample], task: Any, method: Any, cfg: Any, tracker: Tracker) -> None:
    """Everything is tokenised before the first prediction, so that a prompt that does not fit shows at once."""
    from d2o.generation import generate
    from d2o.models.prompt import decode, stop_ids
    from d2o.start import open_engine
    from eval.run.predict import predict

    loaded, when = load_model(cfg), getattr(task, "question", "before")
    prompts = [tokenise(loaded, sample, task) for sample in todo]
    longest = max(prompt.tokens for prompt in prompts) + task.max_new_tokens
    options = {"chunk": cfg.engine.chunk, "seed": cfg.seed, "graph": cfg.engine.graph}
    engine = open_engine(loaded.model, method, cfg.budget, **options, window=longest)
    ends, least = stop_ids(loaded, task.stop), 1 if task.stop else 0

    def answers(batch: list[Prompt]) -> list[Any]:
        questions = [prompt.question for prompt in batch] if when == "after" else None
        texts = [prompt.ids for prompt in batch]
        return generate(engine, texts, task.max_new_tokens, ends, least, questions, again=when == "again")

    predict(cell, prompts, answers, lambda tokens: decode(loaded, tokens), cfg.batch_size, tracker.row)


def tokenise(loaded: LoadedModel, sample: Sample, task: Any) -> Prompt:
    from d2o.models.prompt import encode, encode_apart
    from eval.run.predict import Prompt, apart

    when, limits = getattr(task, "question", "before"), (task.max_new_tokens, task.chat, task.truncate)
    if when == "after":
        parts = encode_apart(loaded, *apart(sample), *limits)
        return Prompt(sample, parts.context, parts.truncated, parts.question)
    encoded = encode(loaded, sample.prompt, *limits)
    return Prompt(sample, encoded.ids, encoded.truncated)


def measure_missing(cell: Cell, todo: list[Sample], task: Any, method: Any, cfg: Any, tracker: Tracker) -> None:
    """For a task that is more than a prompt and an answer: it is handed a lab."""
    from d2o.lab.lab import Lab
    from eval.run.loop import measure

    options = {"chunk": cfg.engine.chunk, "seed": cfg.seed, "longest": getattr(task, "longest", None)}
    measure(cell, todo, task, Lab(load_model(cfg), method, cfg.budget, **options), tracker.row, cfg.batch_size)


def write_drawn(cell: Cell, sample: Sample, task: Any, method: Any, cfg: Any) -> None:
    """The atlas of one row beside its cell: that prompt is run once more, watched."""
    from d2o.lab.atlas import AtlasLab, draw_atlas
    from d2o.models.prompt import stop_ids
    from d2o.start import open_engine
    from eval.plots.atlas_file import write_atlas
    from eval.run.loop import measures

    loaded, options = load_model(cfg), {"chunk": cfg.engine.chunk, "seed": cfg.seed}
    if measures(task):
        lab = AtlasLab(loaded, method, cfg.budget, **options, longest=getattr(task, "longest", None))
        if hasattr(task, "begin"):
            task.begin([sample], lab)
        task.measure(sample, lab)
        atlas = lab.atlas
    else:
        prompt, ends = tokenise(loaded, sample, task), stop_ids(loaded, task.stop)
        engine = open_engine(loaded.model, method, cfg.budget, **options, window=prompt.tokens + task.max_new_tokens)
        least = 1 if task.stop else 0
        again = getattr(task, "question", "before") == "again"
        atlas = draw_atlas(engine, prompt.ids, task.max_new_tokens, ends, least, prompt.question or (), again)
    write_atlas(cell.path, sample.id, atlas)


def load_model(cfg: Any) -> LoadedModel:
    from huggingface_hub.utils import logging as hub_logging
    from omegaconf import OmegaConf
    from transformers.utils import logging

    from eval.config.build import build

    key = OmegaConf.to_yaml(OmegaConf.create({"model": cfg.model, "engine": cfg.engine}), resolve=True)
    if key not in _last:
        _last.clear()
        logging.set_verbosity_error()
        hub_logging.set_verbosity_error()
        if not sys.stderr.isatty():
            logging.disable_progress_bar()
        _last[key] = build(cfg.model, "model", dtype=cfg.engine.dtype, device=cfg.engine.device)
    return _last[key]


def size_cell(planned: Plan) -> Size:
    """What a dry run says of a cell: tokenizer and shape are read, no weights."""
    from d2o.budget import Budget
    from eval.run.dry_run import Size
    from eval.run.loop import measures

    cfg = planned.composed.cfg
    found = shape(cfg)
    if found is None:
        return Size()
    missing = planned.missing()
    if measures(planned.task):  # its texts are made beside the model; the longest stands for all of them
        longest = getattr(planned.task, "longest", None)
        prompts, new = [longest or found.loaded.window] * len(missing), None
    else:
        prompts = [tokenise(found.loaded, sample, planned.task).tokens for sample in missing]
        new = planned.task.max_new_tokens
    return Size(prompts, new, found.token_bytes, Budget(cfg.budget, found.token_bytes or 0).slots(max(prompts)))


def check_size(planned: Plan) -> None:
    """A budget in bytes has to buy a token, which takes the model's shape to tell. Raises InputError."""
    from d2o.budget import Budget

    cfg = planned.composed.cfg
    if isinstance(cfg.budget, str) and planned.missing():
        found = shape(cfg) or load_model(cfg) and shape(cfg)  # a model of the hub may not be here yet
        if found and found.token_bytes:
            Budget(cfg.budget, found.token_bytes).slots(1)


def shape(cfg: Any) -> Outline | None:
    from d2o.models.load import resolve_device
    from d2o.models.outline import outline
    from eval.config.build import check_given

    check_given(cfg.model, "model")
    return outline(cfg.model, cfg.engine.dtype, resolve_device(cfg.engine.device))


def record(planned: Plan) -> dict[str, Any]:
    """config.json: all that a reader of the rows may want to know about how they were made."""
    from omegaconf import OmegaConf

    from d2o.lab.memory import device_name
    from d2o.models.load import fingerprint, resolve_device
    from eval.cells.identity import describe, identity, protocol_digest
    from eval.cells.provenance import origin
    from eval.config.build import check_given
    from eval.run.plan import dataset_hash

    composed = planned.composed
    device = resolve_device(composed.cfg.engine.device)
    check_given(composed.cfg.model, "model")
    return {
        "cell": {**describe(composed), "scorer_task": planned.task.name},
        "identity": identity(composed.cfg, composed.names),
        "config": OmegaConf.to_container(composed.cfg, resolve=True),
        "protocol": planned.protocol,
        "protocol_hash": protocol_digest(planned.protocol),
        "dataset_hash": dataset_hash(planned.samples),
        "dataset_rows": len(planned.samples),
        "model_fingerprint": fingerprint(composed.cfg.model),
        "device": device,
        "device_name": device_name(device),
        **origin(composed.words),
    }


if __name__ == "__main__":
    import run_pred  # by its name, which a pickled job finds again

    sys.exit(main(sys.argv[1:], run_pred.run_cell, Path(__file__).parent / "configs", run_pred.size_cell))
