"""The published numbers of the tables that ship, against the texts they were copied from."""

import re
from pathlib import Path

import pytest

from eval.tables.read import read_table

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
NUMBER = re.compile(r"\d*\.\d+")


def between(text: str, first: str, last: str) -> str:
    return text[text.index(first) : text.index(last, text.index(first))]


def blocks(text: str, models: list[str], methods: list[str]) -> dict[tuple[str, str], list[float]]:
    """{(model, method): numbers} of words such as "Phi-3 FullAttn 98.64 97.12 Locret 100.00 ...", in any lines."""
    found, model, method = {}, None, None
    for word in text.split():
        if word in models:
            model = word
        elif word in methods:
            method = word
        elif NUMBER.fullmatch(word):
            found.setdefault((model, method), []).append(float(word))
    return found


def published(name: str) -> dict[tuple, float]:
    return read_table(name, CONFIGS).published


def check(found: dict, table: dict, columns: list[str], models: dict[str, str], budget_of) -> None:
    """Every number of the text stands in the table, and the table has no other."""
    expected = {}
    for (model, method), numbers in found.items():
        assert len(numbers) == len(columns), (model, method)
        for column, number in zip(columns, numbers, strict=True):
            expected[models.get(model, model), method, budget_of(model, method), column] = number
    assert table == pytest.approx(expected)


def test_longbench(shared):
    text = (shared / "spec" / "d2o.md").read_text(encoding="utf-8")
    part = between(text, "Columns: NrtvQA", "Its Table 1")
    head, body = part.split("\n", 1)
    models, methods = (
        ["Llama-2-7B", "Llama-2-13B", "Llama-3-8B", "Mistral-7B"],
        ["Full", "Local", "Streaming", "H2O", "CaM", "D2O"],
    )
    found = blocks(body, models, methods)
    assert len(found) == 6 + 5 + 6 + 5
    columns = head.removeprefix("Columns:").split()
    table = {key: number for key, number in published("d2o_longbench").items() if key[:2] in found}
    check(found, table, columns, {}, lambda _, method: None if method == "Full" else 0.2)


@pytest.mark.parametrize("name, first, last", [("locret_infinitebench", "InfiniteBench, R", "(averages"),
                                               ("locret_leval", "L-Eval, CodeU", "Compression")])  # fmt: skip
def test_locret(shared, name, first, last):
    head, body = between((shared / "spec" / "locret.md").read_text(encoding="utf-8"), first, last).split("\n", 1)
    columns = head.partition(",")[2].strip().rstrip(":").split()
    methods = ["FullAttn", "Locret", "InfLLM", "SirLLM", "HF-2bits", "MInference"]
    models = {"Phi-3": "Phi-3-mini-128K", "Llama": "Llama-3.1-8B"}
    found = blocks(body, list(models), methods)
    assert len(found) == (12 if name == "locret_infinitebench" else 4)
    slots = {"Phi-3": 6000.0, "Llama": 16384.0}
    check(found, published(name), columns, models, lambda model, method: slots[model] if method == "Locret" else None)


def test_averages_are_those_of_the_cells(tmp_path):
    from eval.tables.fill import fill

    table = read_table("locret_infinitebench", CONFIGS)
    found = fill(table, tmp_path, CONFIGS, "official", lambda _: None)
    mean = found.means["Phi-3-mini-128K", "Locret", 6000.0, "average"]
    assert mean.published == pytest.approx(347.12 / 9) and mean.measured is None
    llama = found.means["Llama-3.1-8B", "Locret", 16384.0, "average"]
    assert llama.published == pytest.approx(391.36 / 9)


def test_reasoning(shared):
    text = between((shared / "spec" / "d2o.md").read_text(encoding="utf-8"), "(b) The D2O", "LongBench protocol")
    numbers = [100 * float(number) for number in NUMBER.findall(text)][4:]  # after the four budgets
    expected = {}
    for i, budget in enumerate((0.2, 0.4, 0.6, 0.8)):
        for j, key in enumerate((("H2O", "GSM8K"), ("D2O merge only", "GSM8K"), ("H2O", "CoQA F1"),
                                 ("D2O merge only", "CoQA F1"))):  # fmt: skip
            expected["Llama-2-7B", key[0], budget, key[1]] = numbers[4 * j + i]
    expected["Llama-2-7B", "Full", None, "CoQA F1"] = numbers[16]
    assert published("d2o_reasoning") == pytest.approx(expected) and len(numbers) == 17


def test_throughput(shared):
    line = between((shared / "spec" / "d2o.md").read_text(encoding="utf-8"), "Its Table 1", "(b) The D2O")
    found = {
        m: (float(speed), int(batch)) for m, speed, batch in re.findall(r"(Full|H2O|D2O) ([\d.]+) \((\d+)\)", line)
    }
    expected = {
        ("Llama-2-7B", method, None if method == "Full" else 0.2, column): number
        for method, pair in found.items()
        for column, number in zip(("tokens/s", "batch"), pair, strict=True)
    }
    assert {key: n for key, n in published("throughput").items() if key[1] != "KeepKV"} == expected
    assert len(expected) == 6
