"""Whole runs of every method on a device beside the same on the CPU."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from d2o.cache import KVCache
from d2o.engine.engine import Engine
from d2o.engine.generation import generate
from d2o.engine.reading import shares_prefill
from d2o.engine.start import open_engine
from d2o.engine.together import generate_together
from d2o.layer import KVLayer
from scripts.card.check import Failed
from scripts.command import ROOT

LENGTHS, QUESTION, STEPS, BUDGET = (150, 97), 3, 24, 0.3
VOCAB = 211
CLOSE = 2e-3  # float32 logits, as a share of the largest
WORSE = 2.0  # how much farther from float32 than the CPU's own bfloat16, on average

Make = Callable[[], KVLayer]


def small_model(device: torch.device, dtype: torch.dtype, layers: int = 3) -> nn.Module:
    """A Llama of 8 query and 2 KV heads whose attention is far from uniform; the same weights on every device."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=VOCAB, hidden_size=128, intermediate_size=192, num_hidden_layers=layers,
                         num_attention_heads=8, num_key_value_heads=2, head_dim=32, max_position_embeddings=8192,
                         initializer_range=0.15, pad_token_id=0, bos_token_id=1, eos_token_id=2)  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).eval()
    return model.to(device, dtype)


def texts(lengths: tuple[int, ...], seed: int = 0) -> list[list[int]]:
    """Ids of a text of every length."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCAB, (n,), generator=generator).tolist() for n in lengths]


@dataclass
class Seen:
    """What a run leaves: logits `[tokens, B, vocab]` float32, and the positions `[B, Hkv, C]` that each layer holds
    after the prefill and in the end, in ascending order."""

    logits: Tensor
    first: list[Tensor]
    last: list[Tensor]


@torch.inference_mode()
def forced(engine: Engine, seed: int) -> Seen:
    """Prefill, the last token again, a question, and steps whose tokens are given."""
    fed = QUESTION + STEPS
    whole = texts(tuple(n + fed for n in LENGTHS), seed)
    cache, logits = engine.prefill([text[:n] for text, n in zip(whole, LENGTHS, strict=True)], fed)
    found, first = [logits], _positions(cache)
    newest = torch.tensor([text[n - 1] for text, n in zip(whole, LENGTHS, strict=True)], device=engine.device)
    if not cache.lead.pending:
        found.append(engine.read_again(cache, newest))
    rest = torch.tensor([text[-fed:] for text in whole], device=engine.device)
    found += engine.extend(cache, rest[:, :QUESTION]).unbind(1)
    for i in range(QUESTION, fed):
        found.append(engine.step(cache, rest[:, i]).clone())
    for row in range(len(LENGTHS)):
        cache.close_ledger(row)  # what is held is what was given, or it raises
    return Seen(torch.stack(found).float().cpu(), first, _positions(cache))


def _positions(cache: KVCache) -> list[Tensor]:
    return [layer.positions.cpu().sort(-1).values for layer in cache.layers]


@functools.cache
def on_cpu(make: Make, dtype: torch.dtype, seed: int) -> Seen:
    """The reference: `make` is one and the same object for a method."""
    return _run(torch.device("cpu"), dtype, make, seed)


def _run(device: torch.device, dtype: torch.dtype, make: Make, seed: int) -> Seen:
    return forced(open_engine(small_model(device, dtype), make, BUDGET), seed)


def exactly(device: torch.device, make: Make) -> dict[str, Any]:
    """A method in float32. Two nearly equal scores may round either way on a device: where a text's slots differ, two
    other texts must agree in all of theirs."""
    near, found = None, {}
    for seed in range(3):
        ours, wanted = _run(device, torch.float32, make, seed), on_cpu(make, torch.float32, seed)
        counts = [_differ(ours.first, wanted.first), _differ(ours.last, wanted.last)]
        total = sum(x.numel() for x in wanted.last)
        said = f"{counts[0]} slots after the prefill and {counts[1]} in the end of {total}"
        if any(counts) and (near or seed > 0):
            raise Failed(f"other slots than on the CPU: {said}, and before that {near}")
        if any(counts):
            near = said
            continue
        found["logits"] = apart(ours.logits, wanted.logits)
        if not found["logits"] <= CLOSE:
            raise Failed(f"logits are {found['logits']:.2g} apart, slots are the same")
        if near is None or seed == 2:
            break
    return found | ({"near equals": near} if near else {})


def within_rounding(device: torch.device, make: Make) -> dict[str, Any]:
    """A method in bfloat16: how far its logits are from the CPU's float32, beside how far the CPU's bfloat16 is."""
    ours, exact = _run(device, torch.bfloat16, make, 0), on_cpu(make, torch.float32, 0)
    cpu = on_cpu(make, torch.bfloat16, 0)
    off, usual = (float((x.logits - exact.logits).abs().mean()) for x in (ours, cpu))
    same = 1 - _differ(ours.last, cpu.last) / sum(x.numel() for x in cpu.last)
    if not off <= WORSE * usual:
        said = f"on average, the CPU's bfloat16 {usual:.3g}; {same:.3f} of its slots are the same"
        raise Failed(f"logits are {off:.3g} from float32's {said}")
    return {"off": off, "off on the CPU": usual, "same slots": round(same, 3)}


def _differ(ours: list[Tensor], wanted: list[Tensor]) -> int:
    """Slots that hold another position; all of a layer that has another shape."""
    pairs = zip(ours, wanted, strict=True)
    return sum(int((a != b).sum()) if a.shape == b.shape else max(a.numel(), b.numel()) for a, b in pairs)


def apart(a: Tensor, b: Tensor) -> float:
    """Largest difference of `a, b [...]`, as a share of the largest of b; nan where something is not a number."""
    return float((a.float() - b.float()).abs().max() / b.float().abs().max())


def together(device: torch.device, made: dict[str, Make]) -> dict[str, Any]:
    """Every method that reads a prompt with others, and how many of their answers are those of the method alone."""
    model = small_model(device, torch.float32)
    engines = {name: open_engine(model, make, BUDGET) for name, make in made.items()}
    able = {name: engine for name, engine in engines.items() if shares_prefill(engine)}
    prompts = texts(LENGTHS)
    answers = generate_together(list(able.values()), prompts, 16)
    off = [name for (name, engine), given in zip(able.items(), answers, strict=True)
           if [x.tokens for x in given] != [x.tokens for x in generate(engine, prompts, 16)]]  # fmt: skip
    if off:
        raise Failed(f"{len(off)} of {len(able)} answer otherwise than alone: {', '.join(off)}")
    return {"methods": len(able)}


def cell(device: torch.device) -> dict[str, Any]:
    """The bundled model fills a cell, by the command that a user types."""
    words = ["model=tiny", "task=mini_single", "method=d2o", "budget=0.2", "limit=4", f"engine.device={device.type}"]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "run_pred.py", *words, f"results_dir={folder}"]
        ran = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
                             capture_output=True, text=True, timeout=55)  # fmt: skip
        if ran.returncode:
            raise Failed(f"run_pred.py left with {ran.returncode}: {(ran.stderr or ran.stdout)[-800:]}")
        rows = [line for path in Path(folder).rglob("*.jsonl") for line in path.read_text().splitlines()]
    if len(rows) != 4:
        raise Failed(f"{len(rows)} rows, not 4")
    return {"rows": len(rows)}
