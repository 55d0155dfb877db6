"""What the rows of a needle test say: recall, exact match and survival, over all and by length and depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eval.scores.means import average

Rows = Sequence[Mapping[str, Any]]
COLUMNS = {"exact": "exact", "survival": "survival", "survival_any": "any head", "merged": "merged"}


def readings(rows: Rows) -> dict[str, float | None]:
    """Per cent, means over rows and layers; `lost_but_told`: rows that tell the answer though no slot of the needle is
    held or merged in any layer; `held_not_told`: rows that do not, though all of them are held."""
    found = {key: _percent(average([_mean_layers(row[key]) for row in rows])) for key in ("recall", *COLUMNS)}
    gone = [row for row in rows if _mean_layers(row["survival"]) + _mean_layers(row["merged"]) == 0]
    whole = [row for row in rows if _mean_layers(row["survival"]) == 1]
    found["lost_but_told"] = sum(row["recall"] == 1 for row in gone)
    found["held_not_told"] = sum(row["recall"] == 0 for row in whole)
    return found


def grid(rows: Rows, field: str) -> dict[tuple[int, float], float]:
    """{(length, depth): per cent}, means over the rows there; a field by layer counts by its mean."""
    places: dict[tuple[int, float], list[float]] = {}
    for row in rows:
        places.setdefault((row["length"], row["depth"]), []).append(_mean_layers(row[field]))
    return {place: 100 * sum(values) / len(values) for place, values in sorted(places.items())}


def report(rows: Rows) -> str:
    """Recall and survival, a line per depth and a column per length."""
    lengths, depths = sorted({row["length"] for row in rows}), sorted({row["depth"] for row in rows})
    shown = [("recall, %", "recall"), ("survival of the needle's slots, %", "survival")]
    if any(_mean_layers(row["merged"]) for row in rows):
        shown.append(("merged into a kept slot, %", "merged"))
    parts = []
    for title, field in shown:
        cells = grid(rows, field)
        lines = [f"{title:<12}", f"{'depth':>7}" + "".join(f"{n:>7}" for n in lengths)]
        for depth in depths:
            values = (cells.get((length, depth)) for length in lengths)
            lines.append(f"{depth:>7g}" + "".join(f"{'' if v is None else format(v, '.0f'):>7}" for v in values))
        parts.append("\n".join(line.rstrip() for line in lines))
    parts.append(_agreement(rows))
    return "\n\n".join(parts)


def _agreement(rows: Rows) -> str:
    """Recall by how much of the needle was held; then every answer that was told though no slot of it was."""
    held = {"all": [], "less": [], "none": []}
    for row in rows:
        survival = _mean_layers(row["survival"])
        held["all" if survival == 1 else "less" if survival else "none"].append(row)
    counts = [f"{sum(row['recall'] for row in group):g} of {len(group)} where {name} of its slots were held"
              for name, group in held.items() if group]  # fmt: skip
    lines = ["needles told: " + ", ".join(counts)]
    for row in (row for row in held["none"] if row["recall"] == 1):
        same, share = sum(other["pred"] == row["pred"] for other in held["none"]), _mean_layers(row["merged"])
        merged = f"{100 * share:.0f} % of its slots were merged; " if share else ""
        lines.append(
            f"  told with none held: {row['length']} tokens, depth {row['depth']:g}: {merged}"
            f"{row['pred'].strip()!r} was said in {same} of the {len(held['none'])} rows with none held"
        )
    return "\n".join(lines)


def records(rows: Rows) -> dict[str, list[dict[str, Any]]]:
    """A record per prompt, and one per prompt and layer."""
    plain = ("id", "length", "depth", "depth_real", "question", "pred", "recall", "exact")
    layered = ("survival", "survival_any", "merged")
    prompts, layers = [], []
    for row in rows:
        means = {key: _mean_layers(row[key]) for key in layered}
        prompts.append({**{key: row[key] for key in plain}, "answers": ", ".join(row["answers"]), **means})
        for layer in range(len(row["survival"])):
            at = {"id": row["id"], "length": row["length"], "depth": row["depth"], "layer": layer}
            layers.append(at | {key: row[key][layer] for key in layered})
    return {"needle": prompts, "needle_by_layer": layers}


def _mean_layers(value: Any) -> float:
    return sum(value) / len(value) if isinstance(value, Sequence) else float(value)


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value
