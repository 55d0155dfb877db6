"""Cells with made-up rows, as run_pred.py writes them: for figures and reports, whose pictures mean nothing."""

from __future__ import annotations

import json
import random
from pathlib import Path

METHODS = {"full": 1.0, "d2o": 0.95, "h2o": 0.8, "snapkv": 0.9, "streaming_llm": 0.4}
LAYERS = 8
SCORED = {"metric": "mini:told", "first_line": False, "over_answers": "mean", "buckets": []}


def rng(*words) -> random.Random:
    return random.Random("/".join(map(str, words)))


def write_cell(results: Path, method: str, budget: float, task: str, rows: list, protocol: dict, **names) -> Path:
    cell = {"model": "tiny", "method": method, "variant": "default", "budget": budget, "task": task, "seed": 0} | names
    folder = results / cell["model"] / f"{method}-{cell['variant']}-b{budget:g}" / task
    folder.mkdir(parents=True)
    (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {"cell": cell, "protocol": protocol, "protocol_hash": f"{task}-hash", "device": "cpu",
              "versions": {"torch": "2.13.0", "numpy": "2.3.0"}, "model_fingerprint": "ab" * 20,
              "identity": {"method.variant": cell["variant"], "seed": 0}}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    status = {"state": "done", "total": len(rows), "updated": "2026-01-01T00:00:00Z"}
    (folder / "status.json").write_text(json.dumps(status))
    return folder


def ledger(method: str, budget: float, tokens: int = 1000) -> dict:
    share = [budget * (1.4 - 0.8 * layer / (LAYERS - 1) if method == "d2o" else 1) for layer in range(LAYERS)]
    held = [round(tokens * one, 1) for one in share]
    return {"prompt_tokens": tokens, "new_tokens": 8, "truncated": False, "budget": budget, "budget_realised": budget,
            "requested_slots": held, "held_prefill": held, "held_decode": held, "kv_bytes_prefill": int(4e6 * budget),
            "kv_bytes_decode": int(4e6 * budget), "prefill_s": 0.1, "decode_s": 0.05}  # fmt: skip


def quality(method: str, budget: float, task: str) -> float:
    ceiling = 0.6 + 0.35 * rng(task).random()
    return ceiling if method == "full" else ceiling * METHODS[method] * (1 - 0.8 * (1 - budget) ** 6)


def scored(results: Path, method: str, budget: float, task: str, n: int = 200) -> Path:
    draw, right = rng(method, budget, task), quality(method, budget, task)
    rows = [
        {"id": f"r{i}", "pred": "red" if draw.random() < right else "blue", "answers": ["red"], "all_classes": None,
         "length": 800, **ledger(method, budget)}
        for i in range(n)
    ]  # fmt: skip
    return write_cell(results, method, budget, task, rows, SCORED)


def needle(results: Path, method: str, budget: float, steps: int = 10) -> Path:
    draw, rows = rng("needle", method, budget), []
    for length in (2048 * (i + 1) // steps for i in range(steps)):
        for depth in (round(100 * i / (steps - 1), 1) for i in range(steps)):
            near = depth > 100 * (1 - budget) or depth < 1 or method == "full"
            kept = 1.0 if near else (0.0 if method == "streaming_llm" else draw.random())
            rows.append(
                {"id": f"{length}-{depth}", "pred": "red" if kept > 0.4 else "", "answers": ["red"], "length": length,
                 "all_classes": None, "depth": depth, "recall": float(kept > 0.4), "exact": 0.0,
                 "survival": [kept] * LAYERS, "survival_any": [kept] * LAYERS,
                 "merged": [(1 - kept) / 2 * (method == "d2o")] * LAYERS,
                 "needles": [[10, 20]], **ledger(method, budget, length)}
            )  # fmt: skip
    return write_cell(results, method, budget, "needle", rows, SCORED | {"figures": "needle"})


def ppl(results: Path, method: str, budget: float, length: int = 2048, past: bool = False) -> Path:
    draw, rows = rng("ppl", method, budget), []
    starts = list(range(length // 2, length, length // 32))
    for i in range(4):
        base = [2.2 + 0.3 * draw.random() for _ in starts]
        rows.append(
            {"id": f"s{i}", "mode": "prefill_decode", "start": 0, "length": length, "bucket_from": starts,
             "bucket_n": [length // 32] * len(starts), "bucket_nll": [b + (1 - METHODS[method]) for b in base],
             "bucket_full_nll": base, "bucket_kl": None, "bucket_top1": None,
             "nll": 2.4, "perplexity": 11.0, "kl": 0.1, "top1": 0.8, "full_nll": 2.3,
             "full_perplexity": 10.0, "first_divergence": 1100, "pace_tokens": [1000, 2000], "pace_s": [1.0, 1.1],
             "held_most": 400, "window": 1500, "past_window": past, **ledger(method, budget)}
        )  # fmt: skip
    return write_cell(results, method, budget, "ppl", rows, {"figures": "ppl"})


def spread(value: float) -> dict:
    return {"median": value, "least": 0.9 * value, "most": 1.15 * value}


def efficiency(results: Path, method: str, budget: float) -> Path:
    rows = []
    for prompt in (512, 1024, 2048):
        for batch in (1, 2, 4, 8):
            row = {"id": f"b{batch}-p{prompt}-n32", "kind": "point", "batch": batch, "prompt": prompt, "new": 32,
                   "oom": batch == 8 and method == "full", "full_oom": batch == 8, "scoring_s": 0.02, "observe_s": 0.01,
                   "evict_s": 0.01, "dtype": "float32", "device": "cpu", "kernel": "sdpa",
                   "threads": 2}  # fmt: skip
            for prefix, share in (("", budget), ("full_", 1.0)):
                gone = row["oom"] if prefix == "" else row["full_oom"]
                speed = 60 * batch**0.7 / (0.5 + share * prompt / 1024)
                size = int(batch * prompt * share * 4096)
                row |= {
                    prefix + "ttft_s": spread(0.1 * batch), prefix + "tpot_s": spread(batch / speed),
                    prefix + "tokens_per_s": spread(0.8 * speed), prefix + "decode_tokens_per_s": spread(speed),
                    prefix + "prefill_peak": batch * prompt * 9000, prefix + "decode_peak": size + 2**20,
                    prefix + "kv_bytes": size,
                }  # fmt: skip
                if gone:
                    row |= {k: None for k in row if k.startswith(prefix) and k.endswith(("_s", "peak", "bytes"))}
            rows.append(row | ledger(method, budget))
    rows.append({"id": "largest-p2048-n32", "kind": "largest", "prompt": 2048, "new": 32, "largest_batch": 40,
                 "full_largest_batch": 9, "memory_gb": 4.0, "largest_capped": False, "full_largest_capped": False,
                 "tried": [[1, True]], **ledger(method, budget)})  # fmt: skip
    return write_cell(results, method, budget, "efficiency", rows, {"figures": "efficiency"})


def atlas(layers: int = 4, heads: int = 2, tokens: int = 300) -> dict:
    draw, keep = rng("atlas"), []
    for _ in range(layers * heads):
        keep.append(sorted({*range(4), *range(tokens - 20, tokens), *draw.sample(range(tokens), tokens // 5)}))
    merges: dict[str, list] = {name: [] for name in ("layer", "head", "at", "source", "target", "weight")}
    for i, held in enumerate(keep):
        for source in draw.sample([p for p in range(tokens) if p not in held], 40):
            values = (i // heads, i % heads, tokens - 1, source, draw.choice(held), round(draw.uniform(0.2, 0.5), 4))
            for name, value in zip(merges, values, strict=True):
                merges[name].append(value)
    runs = [[[[p, p] for p in keep[layer * heads + head]] for head in range(heads)] for layer in range(layers)]
    later = [[[*head[:-2], [tokens, tokens + 4]] for head in layer] for layer in runs]
    return {"version": 1, "prompt_tokens": tokens, "seen": tokens + 5, "tokens": [1, 2], "layers": layers,
            "heads": heads, "prefill": runs, "decode": later, "merges": merges}  # fmt: skip


def everything(
    results: Path, tasks: int = 10, budgets: tuple = (0.05, 0.1, 0.2, 0.5), n: int = 200, steps: int = 10
) -> int:
    """tasks x (1 + 4 x budgets) scored cells, and needle, ppl and efficiency at two budgets; the number of cells."""
    found = 0
    for method in METHODS:
        for budget in (1.0,) if method == "full" else budgets:
            for task in range(tasks):
                scored(results, method, budget, f"mini_task{task}", n)
        for budget in (1.0,) if method == "full" else budgets[-2:]:
            needle(results, method, budget, steps)
            ppl(results, method, budget)
            efficiency(results, method, budget)
            found += 3
        found += tasks * (1 if method == "full" else len(budgets))
    return found
