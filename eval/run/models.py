"""The model of a cell: loaded once for a sweep, opened as a lab, and what can be told of it before it is loaded.

What is heavy is imported where it is used: a cell that is complete, and a dry run, need no torch.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from eval.cells.identity import model_name
from eval.config.build import build, check_given, text_of
from eval.config.targets import importing
from eval.run.dry_run import Size
from eval.run.plan import Plan, budget_of, replays, sampling_of
from eval.tasks.sample import Sample

if TYPE_CHECKING:
    from d2o.lab.lab import Lab
    from d2o.lab.together import Sharing
    from d2o.models.loading import LoadedModel
    from d2o.models.outline import Outline
    from eval.cells.identity import Composed

_last: dict[str, LoadedModel] = {}  # the last model, so that a sweep over methods loads it once
_outlines: dict[str, Outline | None] = {}  # of the last model too
_tokens: dict[tuple[str, str], int] = {}  # of a task's row under the last model, so that a dry run reads a prompt once


def open_lab(planned: Plan, drawing: bool = False, shared: bool = False) -> Lab:
    """The model of a cell under its method and budget; `drawing`: one that draws an atlas of what it is asked;
    `shared`: one for `share_labs`."""
    with importing():
        from d2o.lab.atlas import AtlasLab
        from d2o.lab.lab import Lab
        from d2o.lab.together import SharedLab

    cfg = planned.composed.cfg
    options = {"chunk": cfg.engine.chunk, "seed": cfg.seed, "longest": planned.task.longest}
    options["sampling"] = sampling_of(cfg)
    options["graph"] = replays(cfg, planned.task)
    kind = AtlasLab if drawing else SharedLab if shared else Lab
    return kind(load_model(cfg), planned.method, budget_of(cfg), **options)


def share_labs(labs: Sequence[Lab], most: int) -> Sharing:
    """Let labs of one model that were opened as `shared` ask together; `most`: caches held at once."""
    from d2o.lab.together import Sharing

    found = Sharing(most)
    for lab in labs:
        lab.sharing = found
    return found


def load_model(cfg: Any) -> LoadedModel:
    """The model that a config names. Raises InputError."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    key = text_of(cfg.model, cfg.engine.dtype, cfg.engine.device)
    if key not in _last:
        _last.clear()
        logging.set_verbosity_error()
        hub_logging.set_verbosity_error()
        if not sys.stderr.isatty():
            logging.disable_progress_bar()
        if sys.stderr.isatty():  # a log says what it is about in other lines
            print(f"loading model {model_name(cfg.model, 'model')}", file=sys.stderr, flush=True)
        with importing():
            _last[key] = build(cfg.model, "model", cfg.plugins, dtype=cfg.engine.dtype, device=cfg.engine.device)
    return _last[key]


def outline_of(cfg: Any) -> Outline | None:
    """Tokenizer, window and shape of a config's model without its weights; None for one of the hub that is not here."""
    from d2o.models.loading import resolve_device
    from d2o.models.outline import outline

    check_given(cfg.model, "model")
    key = text_of(cfg.model, cfg.engine.dtype, cfg.engine.device)
    if key not in _outlines:
        _outlines.clear()
        _tokens.clear()
        _outlines[key] = outline(cfg.model, cfg.engine.dtype, resolve_device(cfg.engine.device))
    return _outlines[key]


def reader_of(planned: Plan) -> Lab | None:
    """A lab that tokenises as the cell's model does, without its weights; None for a model that is not here."""
    from d2o.lab.lab import Lab

    found = outline_of(planned.composed.cfg)
    return None if found is None else Lab(found.loaded, planned.method, planned.composed.cfg.budget)


def size_cell(planned: Plan) -> Size:
    """What a dry run says of a cell: tokenizer and shape are read, no weights."""
    cfg, task = planned.composed.cfg, planned.task
    found = outline_of(cfg)
    if found is None:
        return Size()
    missing = planned.missing()
    if task.readings:  # its texts are made beside the model; the longest stands for all of them
        prompts, new = [task.longest or found.loaded.window] * len(missing), None
    else:
        prompts, new = _prompt_tokens(planned, found, missing), task.max_new_tokens
    budget = budget_of(cfg, found.token_bytes or 0)
    slots = min(budget.slots(max(prompts)), max(prompts))
    if budget.packing and found.token_bytes:
        slots = budget.packing.whole_slots(slots, *found.channels)
    return Size(prompts, new, found.token_bytes, slots, _shares(planned, found))


def _prompt_tokens(planned: Plan, found: Outline, missing: Sequence[Sample]) -> list[int]:
    """Of each missing row."""
    from d2o.lab.lab import Lab

    task, asked = planned.task, text_of(planned.composed.cfg.task)
    lab = Lab(found.loaded, planned.method, planned.composed.cfg.budget)
    for sample in missing:
        if (asked, sample.id) not in _tokens:
            _tokens[asked, sample.id] = task.encode(sample, lab).tokens
    return [_tokens[asked, sample.id] for sample in missing]


def _shares(planned: Plan, found: Outline) -> bool:
    """Whether the cell can read its prompts with others."""
    from d2o.engine.reading import will_share

    cfg, longest = planned.composed.cfg, planned.task.longest or found.loaded.window
    budget = budget_of(cfg, found.token_bytes or 0)
    return not cfg.engine.graph and will_share(found.loaded.model, planned.method, budget, longest)


def check_place(composed: Composed) -> None:
    """Raises InputError for a model's path that leads nowhere; nothing is loaded or unpacked."""
    from d2o.models.unpack import check_folder, gguf_file, is_file

    place = composed.cfg.model.get("path")
    if place is not None:
        (gguf_file if is_file(str(place)) else check_folder)(str(place))


def check_system(composed: Composed) -> None:
    """Raises InputError for a system text that the model has no template for; tokenizer and shape are read."""
    if composed.cfg.model.get("system"):
        outline_of(composed.cfg)


def check_device(composed: Composed) -> None:
    """Raises InputError for a GPU that is not there."""
    if composed.cfg.engine.device.startswith("cuda"):
        from d2o.models.loading import resolve_device

        resolve_device(composed.cfg.engine.device)


def check_size(planned: Plan) -> None:
    """A budget in bytes has to buy a token, which takes the model's shape to tell. Raises InputError."""
    cfg = planned.composed.cfg
    if budget_of(cfg).sized and planned.missing():
        found = outline_of(cfg) or load_model(cfg) and outline_of(cfg)  # a model of the hub may not be here yet
        if found and found.token_bytes:
            budget = budget_of(cfg, found.token_bytes)
            for one in (budget, budget.answer() or budget):
                one.slots(1)
