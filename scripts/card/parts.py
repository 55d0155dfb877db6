"""Parts that run one after the other, whatever happens to one of them: a line each, and a JSON of all that was read."""

from __future__ import annotations

import contextlib
import json
import signal
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from d2o.errors import InputError
from scripts.card.check import Check, Failed
from scripts.card.listing import checks, describe

SECONDS = 60  # of one part, at most
LINES = 6  # of a failed part's error


def work(given: SimpleNamespace, only: list[str]) -> int:
    """The words of scripts/check_gpu.py: run what `given.out` has no result for yet. 1 where something failed, 3 where
    the process cannot go on and another one should."""
    device = _device(given.device)
    torch.set_num_threads(min(4, torch.get_num_threads()))  # the models are small
    out = Path(given.out)
    state = json.loads(out.read_text()) if out.exists() else {"device": describe(device), "parts": []}
    if not state["parts"]:
        print(", ".join(f"{key} {value}" for key, value in state["device"].items()), flush=True)
    ended = state.setdefault("until", time.time() + 60 * given.minutes)
    done = {part["part"] for part in state["parts"]}
    for check in checks(device, only, given):
        if check.name in done:
            continue
        if time.time() > ended:
            _note(state, {"part": check.name, "passed": None, "error": f"not run: {given.minutes:g} minutes are over"})
            continue
        state["running"] = check.name
        _save(state, out)
        found = attempt(check)
        del state["running"]
        _note(state, found)
        _save(state, out)
        if found["passed"] is False and _is_lost(device):
            return 3
    return _summary(state, out)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"--device {name}", "cuda, cuda:1 or cpu") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError("torch sees no CUDA device", "run it where there is one, or --device cpu to try the check")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"--device {name}: torch sees {torch.cuda.device_count()} CUDA devices", "--device cuda:0")
    return device


def attempt(check: Check) -> dict[str, Any]:
    """Run one part and say what came of it."""
    began = time.monotonic()
    found: dict[str, Any] = {"part": check.name, "passed": True}
    try:
        with _limit(SECONDS):
            found["read"] = check.work()
    except Exception as error:  # all faults are wanted in one call
        found |= {"passed": False, "error": _said(error), "trace": traceback.format_exc()[-6000:]}
    found["seconds"] = round(time.monotonic() - began, 2)
    return found


def _said(error: Exception) -> str:
    """The error's last lines, and where in this repository it came from."""
    lines = [f"{type(error).__name__}: {error}".strip()]
    if not isinstance(error, Failed):
        frames = traceback.extract_tb(error.__traceback__)
        ours = [f for f in frames if "/site-packages/" not in f.filename and "dist-packages" not in f.filename]
        lines += [f"at {Path(f.filename).name}:{f.lineno} {f.name}: {f.line}" for f in ours[-3:]]
    first, *rest = "\n".join(lines).splitlines()
    return "\n".join([first, *rest[-LINES:]])


@contextlib.contextmanager
def _limit(seconds: int) -> Iterator[None]:
    def late(*_: Any) -> None:
        raise TimeoutError(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _is_lost(device: torch.device) -> bool:
    """Whether nothing can run on the device in this process any more, as after an illegal address."""
    if device.type != "cuda":
        return False
    try:
        torch.cuda.synchronize(device)
        torch.ones(4, device=device).sum().item()
        return False
    except RuntimeError:
        return True


def _note(state: dict[str, Any], found: dict[str, Any]) -> None:
    state["parts"].append(found)
    word = {True: "PASS", False: "FAIL", None: "----"}[found["passed"]]
    read = ", ".join(f"{key} {_short(value)}" for key, value in found.get("read", {}).items())
    error = found.get("error", "").replace("\n", "\n     ")
    more = f": {read}{error}" if read or error else ""
    print(f"{word} {found['part']} ({found.get('seconds', 0)} s){more}", flush=True)


def _short(value: Any) -> str:
    return f"{value:.2g}" if isinstance(value, float) else str(value)


def _save(state: dict[str, Any], out: Path) -> None:
    fresh = out.with_suffix(".new")
    fresh.write_text(json.dumps(state, indent=1))
    fresh.replace(out)


def _summary(state: dict[str, Any], out: Path) -> int:
    counts = [sum(part["passed"] is wanted for part in state["parts"]) for wanted in (True, False, None)]
    state["complete"] = True
    _save(state, out)
    failed = [part["part"] for part in state["parts"] if part["passed"] is False]
    print(f"{counts[0]} passed, {counts[1]} failed, {counts[2]} not run" + (f": {', '.join(failed)}" if failed else ""))
    return int(bool(failed or counts[2]))
