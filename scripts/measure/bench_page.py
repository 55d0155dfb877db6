"""The tables of docs/speed.md from the readings of scripts/bench.py --all; what was not read is a blank cell."""

from __future__ import annotations

from typing import Any

from d2o.lab.memory import GIB
from scripts.measure.bench_floors import Floors, Rates
from scripts.measure.marked import PAGE, put

BEGIN, END = "<!-- bench --all -->\n", "<!-- end -->"
ONE = ("sdpa", "full", "snapkv", "h2o", "h2o_stride8", "d2o", "d2o_stride8", "streaming_llm", "tova")
NAMES = {"sdpa": "transformers", "SnapKVPress": "kvpress SnapKV", "StreamingLLMPress": "kvpress StreamingLLM",
         "TOVAPress": "kvpress TOVA", "ObservedAttentionPress": "kvpress ObservedAttention"}  # fmt: skip


class Held:
    """What a file of readings holds, by kind, name and context."""

    def __init__(self, state: dict[str, Any], context: int, long: int) -> None:
        self.readings, self.context, self.long = state.get("readings", {}), context, long
        floors = state.get("floors")
        self.floors = Floors(**{**floors, "rates": Rates(**floors["rates"])}) if floors else None

    def of(self, kind: str, name: str, context: int) -> dict[str, Any]:
        """A reading, empty where it was not taken or failed."""
        return self.readings.get(f"{kind} {name} {context}", {})

    def one(self, name: str, context: int) -> dict[str, Any]:
        """Of one row, whoever the contestant is."""
        return self.of("stock" if name == "sdpa" or name.endswith("Press") else "alone", name, context)

    def prefill(self, name: str, context: int) -> float | None:
        """Least seconds."""
        return min(self.one(name, context).get("prefill_s", []), default=None)

    def step(self, name: str, context: int) -> float | None:
        """Seconds of a step, from a graph where there is one."""
        read = self.one(name, context)
        return read.get("graph_s") or read.get("step_s")


def tables(state: dict[str, Any], context: int, long: int) -> str:
    """Markdown of everything that was read."""
    held = Held(state, context, long)
    parts = [_machine(state), _bounds(held), _rows(held, context, [*ONE, *(n for n in NAMES if n.endswith("Press"))]),
             _rows(held, long, ["sdpa", "snapkv", "h2o", "d2o"]), _lse(held), _capped(held),
             _most(held)]  # fmt: skip
    return "\n\n".join(parts)


def write(text: str) -> None:
    """Put the tables between the marks of docs/speed.md."""
    put(text, BEGIN, END, PAGE)


def _machine(state: dict[str, Any]) -> str:
    if not state.get("hardware"):
        return "Not measured yet: every cell below is blank."
    hardware, rates = state["hardware"], state["rates"]
    versions = ", ".join(f"{name} {found}" for name, found in hardware["versions"].items())
    measured = f"{rates['flops'] / 1e12:.0f} TFLOP/s in a product and {rates['bytes'] / 1e9:.0f} GB/s in a copy"
    model = (state["model"] or "a small random Llama").replace("_", " ")
    return f"{hardware['device']}, {hardware['dtype']}, {versions}; {measured} were measured. {model}, budget 0.2."


def _table(header: list[str], rows: list[list[str]]) -> str:
    marks = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, marks, *rows))


def _ratio(a: float | None, b: float | None, digits: int = 2) -> str:
    return f"{a / b:.{digits}f}" if a and b else ""


def _rows(held: Held, context: int, names: list[str]) -> str:
    """One row of the batch: prefill and decode of every contestant."""
    header = [f"{context:,} tokens", "prefill s", "x transformers", "of the product rate", "step ms", "graph ms",
              "generate() / it", "of the copy rate", "bytes / budget", "peak GiB"]  # fmt: skip
    return _table(header, [_row(held, context, name) for name in names])


def _row(held: Held, context: int, name: str) -> list[str]:
    read, floors = held.one(name, context), held.floors
    said = f"lacks {read['lacks']}" if read.get("lacks") else "failed" if read.get("error") else ""
    prefill, step = held.prefill(name, context), held.step(name, context)
    peak = max(read.get("prefill_peak") or 0, read.get("decode_peak") or 0)
    graph = read.get("graph_s")
    return [NAMES.get(name, f"`{name}`"), f"{prefill:.3f}" if prefill else said,
            _ratio(prefill, held.prefill("sdpa", context)),
            f"{floors.prefill(name, 1, context) / prefill:.0%}" if prefill else "",
            f"{read['step_s'] * 1e3:.2f}" if read.get("step_s") else "", f"{graph * 1e3:.2f}" if graph else "",
            _ratio(held.step("sdpa", context), step), f"{floors.step(read['kv_bytes']) / step:.0%}" if step else "",
            _ratio(read.get("kv_bytes"), read.get("budget_bytes"), 4),
            f"{(peak + floors.weights) / GIB:.1f}" if peak else ""]  # fmt: skip


def _lse(held: Held) -> str:
    """The two kernels that can give h2o and d2o the log-sum-exp of a prefill."""
    rows = []
    for name in ("flash", "cudnn"):
        read = held.of("lse", name, held.context)
        layer, prefill = (min(read.get(key, []), default=None) for key in ("layer_s", "prefill_s"))
        lacks = "does not serve" if read.get("lacks") else ""
        rows.append([f"`{name}`", f"{layer * 1e3:.2f}" if layer else lacks, f"{prefill:.3f}" if prefill else "",
                     _ratio(prefill, held.prefill("sdpa", held.context))])  # fmt: skip
    return _table([f"log-sum-exp at {held.context:,}", "one layer ms", "prefill of `h2o` s", "x transformers"], rows)


def _capped(held: Held) -> str:
    rows = []
    for name in ("streaming_chunks", "locret"):
        read = held.of("cap", name, held.long)
        prefill, peak = min(read.get("prefill_s", []), default=None), read.get("prefill_peak")
        rows.append([f"`{name}`", f"{prefill:.2f}" if prefill else read.get("lacks", ""),
                     f"{(peak + held.floors.weights) / GIB:.1f}" if peak else "",
                     f"{read['held_to']:g}" if read.get("held_to") else ""])  # fmt: skip
    return _table([f"{held.long:,} tokens in 6,000 slots", "prefill s", "peak GiB", "held to GiB"], rows)


def _most(held: Held) -> str:
    rows, full = [], held.of("most", "full", held.context)
    for name in ("full", "d2o", "d2o_bound", "h2o", "snapkv"):
        read = held.of("most", name, held.context)
        whole, alone = read.get("tokens_s"), read.get("decode_tokens_s")
        rows.append([f"`{name}`", str(read.get("rows", "")), f"{whole:.0f}" if whole else read.get("lacks", ""),
                     _ratio(whole, full.get("tokens_s")), f"{alone:.0f}" if alone else "",
                     _ratio(alone, full.get("decode_tokens_s"))])  # fmt: skip
    header = [f"{held.context:,} + 1,024 tokens", "rows", "tokens/s", "x full", "decoding alone", "x full"]
    return _table(header, rows)


def _bounds(held: Held) -> str:
    """What was asked for beside what was read."""
    rows, stock = [], {n: held.prefill("sdpa", n) for n in (held.context, held.long)}
    asked = [(held.context, "d2o", 1.25), (held.context, "h2o", 1.25), (held.context, "snapkv", 1.02),
             (held.long, "d2o", 1.4), (held.long, "h2o", 1.4)]  # fmt: skip
    for context, name, bound in asked:
        took = held.prefill(name, context)
        found = took / stock[context] if took and stock[context] else None
        rows.append(_bound(f"prefill of {context:,}, `{name}` / transformers", bound, found, most=True))
    step, read = held.step("d2o", held.context), held.one("d2o", held.context)
    bandwidth = held.floors.step(read["kv_bytes"]) / step if step else None
    rows.append(_bound("step of `d2o`: share of the copy rate", 0.7, bandwidth))
    generate = held.step("sdpa", held.context)
    rows.append(_bound("step of generate() / `d2o`", 4, generate / step if generate and step else None))
    many, full = (held.of("most", name, held.context).get("tokens_s") for name in ("d2o", "full"))
    rows.append(_bound("tokens/s at the largest batch, `d2o` / `full`", 3, many / full if many and full else None))
    over = abs(read["kv_bytes"] / read["budget_bytes"] - 1) if read.get("budget_bytes") else None
    rows.append(_bound("bytes held beside the budget, `d2o`, apart", 0.01, over, most=True, digits=4))
    for name in ("locret", "streaming_chunks"):
        cap = held.of("cap", name, held.long)
        peak = (cap["prefill_peak"] + held.floors.weights) / GIB if cap.get("prefill_peak") else None
        rows.append(_bound(f"GiB of `{name}` at {held.long:,}", 24, peak, most=True))
    return _table(["asked", "bound", "read", "kept"], rows)


def _bound(what: str, bound: float, found: float | None, most: bool = False, digits: int = 2) -> list[str]:
    kept = "" if found is None else "yes" if (found <= bound if most else found >= bound) else "no"
    return [what, f"{'<=' if most else '>='} {bound:g}", "" if found is None else f"{found:.{digits}f}", kept]
