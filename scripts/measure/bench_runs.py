"""Contestants of the speed table and their turns: models, methods, rounds, the largest batch that fits."""

from __future__ import annotations

import functools
import gc
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from d2o.engine.start import open_engine
from d2o.errors import InputError
from d2o.lab import race
from d2o.lab.memory import is_out_of_memory, limited
from scripts.measure.bench_stock import presses, stock_run

ROOT = Path(__file__).resolve().parents[2]
LOCRET = {"heads": "random", "chunk": 1024, "stabilizers": 2500, "local": 100}
METHODS = {  # name -> (config, knobs, prefill chunk, budget where it is not --budget's)
    "full": ("full", {}, None, 1),
    "streaming_llm": ("streaming_llm", {}, None, None),
    "snapkv": ("snapkv", {}, None, None),
    "tova": ("tova", {}, None, None),
    "h2o": ("h2o", {}, None, None),
    "h2o_stride8": ("h2o", {"stride": 8}, None, None),
    "d2o": ("d2o", {}, None, None),
    "d2o_stride8": ("d2o", {"stride": 8}, None, None),
    "d2o_bound": ("d2o", {"hold": "bound"}, 2048, None),
    "streaming_chunks": ("streaming_llm", {"positions": "original", "stream": True}, 1024, 6000),
    "locret": ("locret", LOCRET, None, 6000),
}


@dataclass(frozen=True)
class Point:
    """What is raced: rows, tokens of context in each, new tokens for each."""

    batch: int
    context: int
    new: int

    @classmethod
    def read(cls, text: str) -> Point:
        """BATCHxCONTEXT+NEW. Raises InputError for anything else."""
        try:
            batch, rest = text.split("x")
            context, new = rest.split("+")
            point = cls(int(batch), int(context), int(new))
        except ValueError as error:
            raise InputError(f"--points {text!r}", "BATCHxCONTEXT+NEW, such as 1x4096+64") from error
        if min(point.batch, point.context, point.new - 1) < 1:
            raise InputError(f"--points {text!r}", "at least one row, one token of context and two new ones")
        return point


def build_method(config: str, knobs: dict):
    """A method's factory from its YAML, with knobs of its own; as eval/config/build.py makes one."""
    node = OmegaConf.load(ROOT / "configs/method" / f"{config}.yaml")
    made = instantiate(OmegaConf.merge(node, knobs))
    return functools.partial(made.func, *made.args, **made.keywords)


def build_model(name: str | None, longest: int):
    """The model of a YAML; without a name a small random Llama for `longest` tokens."""
    if name is None:
        from d2o.models.random import random_llama

        return random_llama(hidden=512, layers=4, heads=8, kv_heads=2, window=2 * longest, dtype="float32").model
    known = sorted(path.stem for path in (ROOT / "configs/model").glob("*_random.yaml"))
    if name not in known:
        raise InputError(f"--model {name} is no random model", f"one of: {', '.join(known)}")
    return instantiate(OmegaConf.load(ROOT / "configs/model" / f"{name}.yaml")).model


def runners(model, stock, options, point: Point) -> dict:
    """name -> a function that runs the point once and says what it read (race.run)."""
    prompts = torch.randint(3, 250, (point.batch, point.context), generator=torch.Generator().manual_seed(1)).tolist()
    found = {}
    if stock is not None:
        found["sdpa"] = functools.partial(stock_run, stock, prompts, point.new, None, options.clock)
        for name, press in presses(1 - options.budget).items():
            found[name] = functools.partial(stock_run, stock, prompts, point.new, press, options.clock)
    for name in options.methods.split(","):
        config, knobs, chunk, budget = METHODS[name]
        make = build_method(config, knobs)
        graph = options.graph and config != "full"
        engine = open_engine(model, make, budget or options.budget, chunk=chunk, graph=graph)
        found[name] = functools.partial(race.run, engine, prompts, point.new, options.clock)
    return found


def attempt(work, model, options) -> dict | None:
    """None where memory does not suffice."""
    try:
        with limited(model, options.cap):
            return work()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def take_turns(found: dict, model, options) -> dict:
    """Least seconds of every contestant over the rounds; the first round is a warm-up."""
    best: dict = {}
    for turn in range(options.rounds + 1):
        for name, work in list(found.items()):
            read = attempt(work, model, options)
            if read is None:
                found.pop(name)
                best[name] = None
            elif turn:
                had = best.get(name) or read
                least = {key: min(had[key], read[key]) for key in ("prefill_s", "decode_s")}
                best[name] = {**read, **least}
    return best


def largest(found: dict, model, options, point: Point) -> None:
    """Tokens/s of every method at the largest power of two of rows that fits."""
    for name in options.methods.split(","):
        best, batch = None, 1
        while batch <= options.most:
            grown = Point(batch, point.context, point.new)
            read = attempt(runners(model, None, options, grown)[name], model, options)
            if read is None:
                break
            best, batch = (batch, batch * point.new / (read["prefill_s"] + read["decode_s"])), 2 * batch
        print(f"largest batch {name}: {f'{best[0]} rows, {best[1]:.1f} tokens/s' if best else 'none fits'}", flush=True)


def device_clock(device: torch.device, threads: int):
    """Seconds after all that the device was asked to do; CPU seconds where one thread does everything."""
    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device) or time.perf_counter()
    return time.process_time if threads == 1 else time.perf_counter


def build_stock(model):
    """The same weights under transformers' own attention."""
    with torch.device("meta"):
        twin = type(model)(model.config.__class__.from_dict(model.config.to_dict()))
    twin.load_state_dict(model.state_dict(), assign=True)
    for name, buffer in model.named_buffers():
        owner, _, last = name.rpartition(".")
        setattr(twin.get_submodule(owner), last, buffer)
    twin.set_attn_implementation("sdpa")
    return twin.eval()
