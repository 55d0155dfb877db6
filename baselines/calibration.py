"""The statistics of a model's queries that `python scripts/calibrate` wrote; d2o/lab/calibrate.py says what."""

from __future__ import annotations

import functools
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from d2o.errors import InputError
from d2o.models.about import About

FILE = "calibration.safetensors"
HINT = "python scripts/calibrate text=FILE.txt with this model's words writes it; method.stats=prompt needs none"


def statistics(stats: str, about: About | None, shapes: dict[str, tuple[int, ...]], layer: int) -> list[Tensor]:
    """The tensors of `shapes` `[...]` of one layer, from the file `stats`, or "model": the one in the model's folder.
    InputError where there is none, or one of another model."""
    place = Path(about.folder if about else "") / FILE if stats == "model" else Path(stats).expanduser()
    if not place.is_file():
        raise InputError(f"no query statistics at {place}", HINT)
    known, found = _read(str(place), place.stat().st_mtime_ns), []
    for name, shape in shapes.items():
        tensor = known.get(name)
        if tensor is None or tensor.dim() != len(shape) + 1 or layer >= len(tensor) or tensor.shape[1:] != shape:
            has = "none" if tensor is None else list(tensor.shape)
            raise InputError(f"{place}: {name} of layer {layer} should be {list(shape)}, the file has {has}", HINT)
        found.append(tensor[layer])
    return found


@functools.lru_cache(maxsize=4)
def _read(place: str, changed: int) -> dict[str, Tensor]:
    try:
        return load_file(place)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{place} cannot be read: {error}", HINT) from error
