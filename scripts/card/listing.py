"""Which parts there are, for a device and the methods of configs/method."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch

from d2o.errors import InputError
from d2o.lab.memory import device_name
from scripts.card import runs, steps, twins
from scripts.card.check import Check
from scripts.command import ROOT
from scripts.measure.bench_runs import build_method

SMALL = {"locret": {"heads": "random", "chunk": 64, "stabilizers": 3, "local": 5}, "snapkv": {"window": 8},
         "adakv": {"window": 8}, "pyramidkv": {"window": 4, "beta": 4}, "pyramidinfer": {"min_context": 4},
         # no statistics were written for the random models of this check: the prompt's own serve
         "triattention": {"stats": "prompt"}, "qfilter": {"stats": "prompt"},
         "headkv": {"scores": "prompt", "window": 8},
         "duo_attention": {"gates": "prompt", "sinks": 2, "recent": 6}}  # fmt: skip
VARIANTS = {  # name -> (config, knobs), beside every config as it is
    "h2o_stride8": ("h2o", {"stride": 8}),
    "h2o_slot": ("h2o", {"positions": "slot"}),
    "streaming_original": ("streaming_llm", {"positions": "original"}),
    "d2o_official": ("d2o", {"variant": "official", "budget_accounting": "nominal"}),
    "d2o_drop": ("d2o", {"merge": False}),
    "d2o_stride8": ("d2o", {"stride": 8}),
    "cam_h2o": ("cam", {"base": "h2o"}),
}


def methods(names: str | None) -> dict[str, Any]:
    """Factories by name, with knobs for prompts of a few hundred tokens; all that can be made here, unless named."""
    known = {path.stem: (path.stem, {}) for path in sorted((ROOT / "configs/method").glob("*.yaml"))} | VARIANTS
    wanted = names.split(",") if names else list(known)
    if unknown := sorted(set(wanted) - set(known)):
        raise InputError(f"--methods {','.join(unknown)}", f"choose from {', '.join(known)}")
    return {name: functools.partial(_made, *known[name]) for name in wanted if name != "kvpress"}


def _made(config: str, knobs: dict[str, Any]) -> Any:
    """One layer of a method."""
    return build_method(config, SMALL.get(config, {}) | knobs)()


def describe(device: torch.device) -> dict[str, Any]:
    """What the readings depend on."""
    found: dict[str, Any] = {"device": device_name(str(device)), "torch": torch.__version__}
    if device.type == "cuda":
        found["capability"] = ".".join(map(str, torch.cuda.get_device_capability(device)))
        found["cuda"] = torch.version.cuda
    return found


def checks(device: torch.device, only: list[str], given: SimpleNamespace) -> Iterator[Check]:
    """All parts of the groups `only`, the quickest first."""
    made = methods(given.methods)
    if "kernels" in only:
        yield from (Check(f"kernels {name}", work) for name, work in twins.parts(device))
    for group, part in {"float32": runs.exactly, "bfloat16": runs.within_rounding, "waits": steps.waits,
                        "sampled": steps.sampled}.items():  # fmt: skip
        if group in only:
            yield from (Check(f"{group} {name}", functools.partial(part, device, m)) for name, m in made.items())
    if "graph" in only:
        able = {name: make for name, make in made.items() if steps.can_be_captured(make)}
        for kind in (torch.float32, torch.bfloat16):
            part = functools.partial(steps.replays, device, kind, min(256, given.steps))
            label = str(kind).removeprefix("torch.")
            yield from (Check(f"graph {label} {name}", functools.partial(part, make)) for name, make in able.items())
    if "together" in only:
        yield Check("together", functools.partial(runs.together, device, made))
    if "memory" in only:
        part = functools.partial(steps.grows, device, given.steps)
        able = [name for name in made if name in ("h2o", "d2o", "streaming_llm", "tova")]
        for name in able:
            for graph in (False, True) if device.type == "cuda" else (False,):
                work = functools.partial(part, made[name], graph)
                yield Check(f"memory {name}{' graph' if graph else ''}", work)
        yield Check("memory limit", functools.partial(steps.limit, device))
    if "cell" in only:
        yield Check("cell", functools.partial(runs.cell, device))
