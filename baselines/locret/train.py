"""Train retaining heads; the model itself stays as it is. Started by scripts/train_locret.py, which brings the config.

Every step takes one prompt per process, labels it, and backs up layer by layer: the memory of a step is the cache of
one prompt, its projections (on the CPU) and the activations of one layer's head. Step i uses row i of an order drawn
from the seed, so that a resumed run sees what an unbroken one would have seen.
"""

from __future__ import annotations

import contextlib
import csv
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from d2o.engine.start import open_engine
from d2o.errors import InputError
from d2o.models.loading import LoadedModel

from . import checkpoint
from .data import Pair, read, tokenise
from .heads import HIDDEN, new_heads, shape_of
from .labels import KINDS, Lesson, Recorder, labelled
from .loss import SMOOTHING, regression, smoothness, top_overlap

STATE, LOG = "state.pt", "train.csv"


@dataclass(frozen=True)
class Settings:
    """All that decides what is learnt. `longest`: tokens of a prompt; `chunk`: of one forward pass; `label`: what the
    heads learn to foresee, see baselines/locret/labels.py."""

    data: str
    steps: int = 3000
    warmup: int = 2000
    lr: float = 5e-4
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.01
    clip: float = 0.5
    hidden: int = HIDDEN
    longest: int = 10240
    chunk: int = 1024
    chat: bool = False
    query: int = 0
    label: str = "logit"
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"steps": 1, "warmup": 0, "hidden": 1, "longest": 2, "chunk": 1, "query": 0}
        if self.label not in KINDS:
            raise InputError(f"train.label={self.label} is unknown", f"type train.label= one of {', '.join(KINDS)}")
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise InputError(f"train.{name}={getattr(self, name)} is too small", f"type train.{name}={smallest}")


def train(
    loaded: LoadedModel, out_dir: str, save_every: int, log_every: int, max_minutes: float | None = None, **given
) -> dict[str, float]:
    """Train to the last step, or for `max_minutes`; writes `out_dir`/heads.safetensors and returns the last row of its
    log. `given`: Settings. Takes up `out_dir`/state.pt if it is there; raises InputError where that was begun with
    other settings."""
    settings = Settings(**given)
    run = Run(loaded, Path(out_dir), settings)
    began, row = time.monotonic(), {}
    for step in range(run.step, settings.steps):
        row = run.advance(step)
        if run.first and (step % log_every == 0 or step + 1 == settings.steps):
            print(" ".join(f"{name}={value:g}" for name, value in row.items()), flush=True)
        stop = run.agreed(max_minutes is not None and time.monotonic() - began > 60 * max_minutes)
        if stop or (step + 1) % save_every == 0 or step + 1 == settings.steps:
            run.save()
        if stop:
            break
    return row


def rate(settings: Settings, step: int) -> float:
    """The learning rate of a step: up to `lr` over `warmup` steps, then linearly to 0 at `steps`."""
    if step < settings.warmup:
        return settings.lr * (step + 1) / settings.warmup
    return settings.lr * (settings.steps - step) / max(1, settings.steps - settings.warmup)


class Run:
    """Heads, their optimiser and the place where both are kept."""

    def __init__(self, loaded: LoadedModel, out: Path, settings: Settings) -> None:
        from accelerate import Accelerator

        self.loaded, self.out, self.settings = loaded, out, settings
        self.pairs = read(settings.data)
        self.workers = Accelerator(cpu=loaded.model.device.type == "cpu")
        self.first = self.workers.is_main_process
        recorder = partial(Recorder, settings.label)
        self.engine = open_engine(loaded.model, recorder, 1, chunk=settings.chunk, window=settings.longest)
        self.heads = new_heads(shape_of(loaded.model), settings.hidden, settings.seed).to(self.engine.device)
        betas = settings.beta1, settings.beta2
        self.optimiser = torch.optim.AdamW(
            self.heads.parameters(), lr=settings.lr, betas=betas, weight_decay=settings.weight_decay
        )
        self.order, self.known = _order(len(self.pairs), settings.seed), []
        self.step, self.rows = 0, []
        out.mkdir(parents=True, exist_ok=True)
        self._take_up()

    def advance(self, step: int) -> dict[str, float]:
        """One step: label, learn, and what there is to know about it."""
        began = time.monotonic()
        pair = self._pair(step)
        prompt, answer = tokenise(pair, self.loaded, self.settings.longest, self.settings.chat, self.settings.query)
        found = self._backward(labelled(self.engine, prompt, answer))
        if not torch.isfinite(found).all():
            raise RuntimeError(f"the loss of step {step} is not finite: {found.tolist()}")
        for weight in self.heads.parameters():
            weight.grad = self.workers.reduce(weight.grad, "mean")
        torch.nn.utils.clip_grad_value_(self.heads.parameters(), self.settings.clip)
        lr = rate(self.settings, step)
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.step = step + 1
        names = ("loss", "regression", "smoothing", "top10")
        figures = dict(zip(names, self.workers.reduce(found, "mean").tolist(), strict=True))
        row = {"step": step, **figures, "lr": lr, "tokens": len(prompt), "seconds": time.monotonic() - began}
        self.rows.append(row)
        return row

    def _backward(self, lessons: list[Lesson]) -> Tensor:
        """Gradients of the loss; `[4]`: the loss, its two parts, and the top-10 % overlap, means over the layers."""
        total = torch.zeros(4, device=self.engine.device)
        for head, lesson in zip(self.heads, lessons, strict=True):
            scores = head(lesson.inputs.to(self.engine.device, torch.float32)).T
            near, smooth = regression(scores, lesson.labels) / len(lessons), smoothness(scores)
            loss = near + SMOOTHING * smooth
            loss.backward()
            overlap = top_overlap(scores.detach(), lesson.labels) / len(lessons)
            total += torch.stack((loss.detach(), near.detach(), smooth.detach(), overlap))
        return total

    def _pair(self, step: int) -> Pair:
        number = step * self.workers.num_processes + self.workers.process_index
        while number >= len(self.known):
            self.known += next(self.order)
        return self.pairs[self.known[number]]

    def agreed(self, stop: bool) -> bool:
        """Whether the first process says so: all end at the same step."""
        if self.workers.num_processes == 1:
            return stop
        flag = torch.tensor([float(stop and self.first)], device=self.engine.device)
        return bool(self.workers.reduce(flag, "sum").item())

    # ---- on disk
    def save(self) -> None:
        """State, heads and log, each whole or as it was before. The state is last: what it says was done, was."""
        if not self.first:
            return
        checkpoint.write(self.heads, self.out / checkpoint.FILE)
        with _whole(self.out / LOG) as place, place.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(self.rows[0]))
            writer.writeheader()
            writer.writerows(self.rows)
        state = {
            "settings": asdict(self.settings),
            "processes": self.workers.num_processes,
            "step": self.step,
            "heads": self.heads.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "rows": self.rows,
        }
        with _whole(self.out / STATE) as place:
            torch.save(state, place)

    def _take_up(self) -> None:
        place = self.out / STATE
        if not place.is_file():
            return
        state = torch.load(place, map_location=self.engine.device, weights_only=True)
        now = asdict(self.settings) | {"processes": self.workers.num_processes}
        before = state["settings"] | {"processes": state["processes"]}
        changed = [f"{name}={before[name]}" for name in now if now[name] != before.get(name)]
        if changed:
            what = f"{place} was begun with {', '.join(changed)}"
            raise InputError(what, "name another folder with out_dir=, or give the same settings")
        self.heads.load_state_dict(state["heads"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.rows = state["step"], state["rows"]


def _order(n: int, seed: int) -> Iterator[list[int]]:
    """Every row once, in an order drawn anew for each epoch."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randperm(n, generator=generator).tolist()


@contextlib.contextmanager
def _whole(place: Path) -> Iterator[Path]:
    part = place.with_name(place.name + ".part")
    yield part
    os.replace(part, place)
