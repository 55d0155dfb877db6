"""What the rows of an efficiency run say: readings and their ratios to the full cache, point by point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Rows = Sequence[Mapping[str, Any]]
COLUMNS = {
    "ttft_ratio": "TTFT x",
    "tpot_ratio": "TPOT x",
    "tokens_per_s_ratio": "tokens/s x",
    "kv_bytes_ratio": "KV bytes x",
    "prefill_peak_ratio": "prefill peak x",
    "largest_batch": "largest batch",
    "full_largest_batch": "full's",
}
READINGS = ("ttft_s", "tpot_s", "tokens_per_s", "decode_tokens_per_s")
RATIOS = ("ttft_s", "tpot_s", "tokens_per_s", "kv_bytes", "prefill_peak", "decode_peak")
MIB = 1 << 20
EXPLAINED = (
    "(x: over the full cache on the same kernel; peaks: MiB above the weights; scoring: TTFT less the full cache's; "
    "spread: most over least TTFT; tokens/s: new tokens over the whole run, the prefill included; blank: a peak within "
    "the room that the process had, or a difference of times below nothing)"
)


def readings(rows: Rows) -> dict[str, float | None]:
    """Ratios to the full cache and readings at the largest point that both reached (batch x prompt), the most tokens
    per second of any point and its batch, and the largest batches at the longest prompt that was searched."""
    points = [row for row in rows if row["kind"] == "point" and not row["oom"] and not row["full_oom"]]
    found: dict[str, float | None] = {}
    top = max(points, key=lambda row: (row["batch"] * row["prompt"], row["new"]), default=None)
    for key in RATIOS:
        found[ratio_name(key)] = None if top is None else ratio(top, key)
    for key in ("batch", "prompt", "new"):
        found[f"at_{key}"] = None if top is None else top[key]
    for key in ("ttft_s", "tpot_s", "tokens_per_s"):
        found[key] = None if top is None else top[key]["median"]
    quick = [row for row in rows if row["kind"] == "point" and not row["oom"]]
    most = max(quick, key=lambda row: row["tokens_per_s"]["median"], default=None)
    found["most_tokens_per_s"] = None if most is None else most["tokens_per_s"]["median"]
    found["most_batch"] = None if most is None else most["batch"]
    searched = max((r for r in rows if r["kind"] == "largest"), key=lambda r: r["prompt"], default={})
    for key in ("largest_batch", "full_largest_batch"):
        found[key] = searched.get(key)
    found["out_of_memory"] = sum(row["kind"] == "point" and row["oom"] for row in rows)
    return found


def ratio_name(key: str) -> str:
    """ttft_s -> ttft_ratio, tokens_per_s -> tokens_per_s_ratio."""
    return f"{key if key == 'tokens_per_s' else key.removesuffix('_s')}_ratio"


def ratio(row: Mapping[str, Any], key: str) -> float | None:
    """Own over full; None where either is missing or too small to be read."""
    own, full = (_read(row, prefix + key) for prefix in ("", "full_"))
    return own / full if own is not None and full else None


def report(rows: Rows) -> str:
    """A line per point, ratios to the full cache in brackets, then the largest batches and the machine."""
    header = ["batch", "prompt", "new", "TTFT ms", "", "TPOT ms", "", "tokens/s", "", "KV MiB", "", "prefill peak", "",
              "decode peak", "", "scoring ms", "spread"]  # fmt: skip
    lines = [_point(row) for row in rows if row["kind"] == "point"]
    parts = []
    if lines:
        widths = [max(len(line[i]) for line in (header, *lines)) for i in range(len(header))]
        parts.append("\n".join(_aligned(line, widths) for line in (header, *lines)))
        parts.append(EXPLAINED)
    for row in rows:
        if row["kind"] == "largest":
            limit = "the whole GPU" if row["memory_gb"] is None else f"{row['memory_gb']:g} GiB"
            own, full = (
                f"{row[f'{prefix}largest_batch'] or 'none'}" + " or more" * row.get(f"{prefix}largest_capped", False)
                for prefix in ("", "full_")
            )
            shape = f"{row['prompt']} + {row['new']} tokens"
            parts.append(f"largest batch of {shape} in {limit}: {own}, full cache {full}")
    last = rows[-1]
    versions = ", ".join(f"{name} {v}" for name, v in last["versions"].items())
    peaks = last["memory_by"] or "not read"
    parts.append(
        f"{last['device']}, {last['dtype']}, {last['kernel']}, {last['threads']} threads, {versions}; peaks: {peaks}"
    )
    return "\n".join(parts)


def records(rows: Rows) -> dict[str, list[dict[str, Any]]]:
    """A record per point, medians and ratios to the full cache, and one per search of the largest batch."""
    sizes = ("kv_bytes", "prefill_peak", "decode_peak")
    shape, read = ("batch", "prompt", "new"), (*READINGS, *sizes)
    spent, machine = ("scoring_s", "observe_s", "evict_s"), ("device", "dtype", "kernel", "threads")
    points, searches = [], []
    for row in rows:
        if row["kind"] == "point":
            kept = {key: row[key] for key in (*shape, "oom", "full_oom", *spent)}
            kept |= {key: _read(row, key) for key in spent}
            values = {prefix + key: _read(row, prefix + key) for key in read for prefix in ("", "full_")}
            ratios = {ratio_name(key): ratio(row, key) for key in RATIOS}
            points.append({**kept, **values, **ratios, **{key: row[key] for key in machine}})
        else:
            kept = ("prompt", "new", "memory_gb", "largest_batch", "full_largest_batch", "largest_capped",
                    "full_largest_capped")  # fmt: skip
            searches.append({key: row.get(key) for key in kept})  # older rows lack the last
    return {"efficiency": points, "largest_batch": searches}


def _point(row: Mapping[str, Any]) -> list[str]:
    shown = [str(row[key]) for key in ("batch", "prompt", "new")]
    if row["oom"]:
        return [*shown, "out of memory", *[""] * 13]
    for key, scale, digits in (("ttft_s", 1e3, 1), ("tpot_s", 1e3, 2), ("tokens_per_s", 1, 1), ("kv_bytes", 1 / MIB, 2),
                               ("prefill_peak", 1 / MIB, 1), ("decode_peak", 1 / MIB, 1)):  # fmt: skip
        value, against = _read(row, key), ratio(row, key)
        shown.append("" if value is None else f"{value * scale:.{digits}f}")
        shown.append("full: oom" if row["full_oom"] else "" if against is None else f"({against:.2f}x)")
    scoring, ttft = _read(row, "scoring_s"), row["ttft_s"]
    return [*shown, "" if scoring is None else f"{1e3 * scoring:.1f}", f"{ttft['most'] / ttft['least']:.2f}"]


def _aligned(line: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)).rstrip()


def _read(row: Mapping[str, Any], key: str) -> float | None:
    """A reading that can be: None for a peak of nothing, which the process had room for before, and for a difference of
    two times that came out below nothing."""
    value = _median(row.get(key))
    if value is None or key == "scoring_s" and value < 0 or key.endswith("_peak") and value <= 0:
        return None
    return value


def _median(reading: Any) -> float | None:
    return reading["median"] if isinstance(reading, Mapping) else reading
