"""Check eviction on a model of yours: one table, every method; about a minute on the bundled model.

    python scripts/selfcheck.py                                       the bundled model
    python scripts/selfcheck.py model=path model.path=DIR             yours, in float32 unless engine.dtype= is given
    python scripts/selfcheck.py model=path model.path=DIR methods=d2o,h2o,adakv
    python scripts/selfcheck.py families                              small random Llama, Falcon, Phi-3, Qwen3 and Gemma

Exit code 0: everything passed; 1: something failed, named below the table; 2: bad input. What the columns mean is said
in d2o/selfcheck.py. A dash: the check does not apply to the method.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.command import ROOT, read, run

CONFIGS = ROOT / "configs"
SMALL = {"vocab_size": 211, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "bos_token_id": 1,
         "num_attention_heads": 8, "max_position_embeddings": 1024, "initializer_range": 0.15, "pad_token_id": 0,
         "eos_token_id": 2}  # fmt: skip
GQA = SMALL | {"num_key_value_heads": 2}
FALCON = {name: value for name, value in SMALL.items() if name != "intermediate_size"}
FAMILIES = {
    "llama": GQA,
    "falcon": FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2, "ffn_hidden_size": 96},
    "phi3": GQA | {"sliding_window": None, "original_max_position_embeddings": 1024},
    "qwen3": GQA | {"head_dim": 8},
    "gemma": GQA | {"head_dim": 8},
}

ANY_MODEL = {  # what was trained or calibrated fits one model, and nothing checked here depends on it
    "locret": {"heads": "random"},
    "triattention": {"stats": "prompt"},
    "qfilter": {"stats": "prompt"},
    "duo_attention": {"gates": "prompt"},
    "headkv": {"scores": "prompt"},
}


def main(words: list[str]) -> int:
    """Check the methods on the models that the words name; 1 where something failed."""
    from d2o.errors import InputError

    given = read(words, {"methods": str}, others=True)
    names = given.methods.split(",") if given.methods else None
    rest = [word for word in given.words if word != "families"]
    if "families" in words and rest:
        raise InputError(f"{rest[0]!r} beside families, which brings its own models", "leave one of them out")
    cfg = None if "families" in words else bundled_or_given(rest)  # a slip of the hand shows before anything is made
    methods, bad = build_methods(names), []
    for name, model in families() if cfg is None else [loaded(cfg)]:
        bad += show(name, model, methods)
    for line in bad:
        print(f"FAILED {line}")
    print("all passed" if not bad else f"{len(bad)} failed")
    return int(bool(bad))


def show(name: str, model, methods: dict) -> list[str]:
    """Print the table of one model; what failed, in words."""
    from d2o.lab.selfcheck import CHECKS, SelfCheck, kernels

    parameter, began = next(model.parameters()), time.monotonic()
    found, bad = SelfCheck(model), []
    print(f"{name} ({parameter.dtype}, {parameter.device})")
    print("| method | budget | " + " | ".join(CHECKS) + " |\n" + "|---" * (len(CHECKS) + 2) + "|")
    for method, factory in methods.items():
        try:
            checks, budget = found.method(method, factory)
        except Exception as error:  # one broken method must not hide what the others do
            bad.append(f"{name}, {method}: {type(error).__name__}: {error}")
            print(f"| {method} | {' | '.join(['error'] * (len(CHECKS) + 1))} |", flush=True)
            continue
        shown = ["-" if c.value is None else f"{c.value:.1e}" + ("" if c.ok else " FAIL") for c in checks]
        print(f"| {method} | {budget:g} | {' | '.join(shown)} |", flush=True)
        bad += [f"{name}, {method}: {said(c)}" for c in checks if not c.ok]
    twin = {"column sums against their plain twin": kernels(parameter.device, parameter.dtype)}
    if "h2o" in methods:
        try:
            twin["h2o's evictions against its formula"] = found.scores(methods["h2o"])
        except Exception as error:  # as above: its own row says error already
            bad.append(f"{name}: h2o's evictions against its formula: {type(error).__name__}: {error}")
    for what, value in twin.items():
        limit = found.limit
        print(f"{what}: {value:.1e}{'' if value <= limit else ' FAIL'}")
        bad += [] if value <= limit else [f"{name}: {what}: {value:.1e}, above {limit:.1e}"]
    print(f"{time.monotonic() - began:.0f} s\n", flush=True)
    return bad


def said(check) -> str:
    """What failed, by how much and where."""
    return f"{check.what} is {check.value:.1e}, above {check.limit:.1e}" + (f": {check.where}" if check.where else "")


def build_methods(names: list[str] | None) -> dict:
    """Factories by name; all of configs/method that can be made here, unless they are named."""
    from omegaconf import OmegaConf

    from d2o.errors import InputError
    from eval.config.build import build

    known, made = sorted(path.stem for path in (CONFIGS / "method").glob("*.yaml")), {}
    for name in names or known:
        if name not in known:
            raise InputError(f"unknown method {name!r}", f"methods= takes {', '.join(known)}")
        try:
            node = OmegaConf.load(CONFIGS / "method" / f"{name}.yaml")
            made[name] = build(OmegaConf.merge(node, ANY_MODEL.get(name, {})), "method")
        except ValueError as error:
            if names:
                raise
            print(f"left out: {name}: {error}", file=sys.stderr)
    return made


def bundled_or_given(words: list[str]):
    """The config of a cell as the words say; float32 and the bundled model unless they say otherwise."""
    from eval.config.compose import compose_cell, configs

    defaults = [("model", "model=tiny"), ("engine.dtype", "engine.dtype=float32")]
    words = [*words, *(word for key, word in defaults if not any(w.startswith(f"{key}=") for w in words))]
    with configs(CONFIGS):
        return compose_cell(words, CONFIGS).cfg


def loaded(cfg):
    """(name, model) of a cell."""
    from eval.config.build import build

    made = build(cfg.model, "model", dtype=cfg.engine.dtype, device=cfg.engine.device)
    return made.name, made.model


def families():
    """(name, small random model) of each."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    for name, options in FAMILIES.items():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **options)).eval()
        for key, weight in model.named_parameters():  # weights of 1 would leave all keys the same norm: ties for knorm
            if "k_norm" in key:
                torch.nn.init.uniform_(weight, 0.5, 1.5)
        yield f"random {name}", model


if __name__ == "__main__":
    run(main, __doc__)
