"""Names in the data: what identities and protocols call a method, a model, a task, its readings and its metric.

A name is a choice of configs/<group>/ or a task's own word, never the path of a module, so that files may move. The
first cells were written with such paths. Hashes (folders, protocols, runs of W&B) are still taken over those first
words, which is what keeps old cells where they were found; the tables here are history, and nothing is added to them.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

GROUPS = ("method", "model", "task")
_LONGBENCH, _MINI, _HARNESS = "eval.longbench.LongBench", "eval.mini.Mini", "eval.lm_eval.LMEval"
_SHAPE = "d2o.random_shapes.random_shape"
FIRST_TARGETS = {  # of a choice; a name that ends in _ stands for all that begin so
    "method": {
        "adakv": "baselines.adakv.AdaKV",
        "cam": "baselines.cam.cam",
        "d2o": "d2o.d2o.D2O",
        "full": "baselines.full.Full",
        "h2o": "baselines.h2o.H2O",
        "knorm": "baselines.knorm.KNorm",
        "kvpress": "baselines.kvpress.KVPress",
        "locret": "baselines.locret.cache.Locret",
        "pyramidinfer": "baselines.pyramidinfer.PyramidInfer",
        "pyramidkv": "baselines.pyramidkv.PyramidKV",
        "random": "baselines.random.Random",
        "snapkv": "baselines.snapkv.SnapKV",
        "streaming_llm": "baselines.streaming_llm.StreamingLLM",
        "tova": "baselines.tova.TOVA",
    },
    "model": {
        "hub": "d2o.models.load_hub",
        "path": "d2o.models.load",
        "tiny": "d2o.models.load",
        "random_llama": "d2o.random_model.random_llama",
        "llama2_7b_random": _SHAPE,
        "llama3_8b_random": _SHAPE,
        "mistral_7b_random": _SHAPE,
        "qwen3_8b_random": _SHAPE,
    },
    "task": {
        "efficiency": "eval.efficiency.Efficiency",
        "needle": "eval.needle.Needle",
        "passkey": "eval.passkey.Passkey",
        "ppl": "eval.ppl.Perplexity",
        "longbench_": _LONGBENCH,
        "mini_": _MINI,
        "lm_eval": _HARNESS,
        "d2o_reasoning": _HARNESS,
        "infinitebench": _HARNESS,
        "longbench2": _HARNESS,
        "ruler": _HARNESS,
    },
}
FIRST_WORDS = {  # of a protocol: {key: {name: what was written first}}
    "figures": {name: f"eval.{name}_figures" for name in ("efficiency", "lm_eval", "needle", "ppl")},
    "metric": {
        "passkey:first_number": "eval.passkey:first_number",
        **{f"mini:{name}": f"eval.mini_metrics:{name}" for name in ("exact", "told", "last")},
    },
}


def first_identity(identity: Mapping[str, Any], config: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """An identity in the words of the first cells; one that is written in them is returned as it is.

    `config`: the whole config of the cell, for a choice of the user's own, whose cells were written with its path too.
    """
    found = dict(identity)
    for group in GROUPS:
        if group not in found:
            continue
        own = (config or {}).get(group, {})
        target = _first_target(group, found[group]) or own.get("_target_")
        if target:
            found[f"{group}._target_"] = target
            del found[group]
            if group == "method" or own.get("_partial_"):
                found[f"{group}._partial_"] = True
    return found


def first_protocol(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """A protocol in the words of the first cells, over which it is hashed."""
    return _renamed(protocol, FIRST_WORDS)


def read_protocol(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """A stored protocol in today's words, whenever it was written."""
    return _renamed(protocol, {key: {old: new for new, old in words.items()} for key, words in FIRST_WORDS.items()})


def is_first(identity: Mapping[str, Any]) -> bool:
    """Whether an identity is written in the words of the first cells."""
    return any(f"{group}._target_" in identity for group in GROUPS)


def module_of(task: str, part: str) -> Any:
    """The module that has a `part`, "task", "readings" or "metrics", of the tasks called `task`:
    eval/tasks/<task>/<part>.py, or eval/tasks/<task>.py, which has all of them. None where there is neither.
    """
    if not task.isidentifier() or find_spec(f"eval.tasks.{task}") is None:
        return None
    package = importlib.import_module(f"eval.tasks.{task}")
    inside = hasattr(package, "__path__") and find_spec(f"{package.__name__}.{part}") is not None
    return importlib.import_module(f"{package.__name__}.{part}") if inside else package


def _first_target(group: str, choice: str) -> str | None:
    listed = FIRST_TARGETS[group]
    start = next((name for name in listed if name.endswith("_") and choice.startswith(name)), "")
    return listed.get(choice) or listed.get(start)


def _renamed(protocol: Mapping[str, Any], words: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    found = dict(protocol)
    for key, names in words.items():
        if found.get(key) in names:
            found[key] = names[found[key]]
    return found
