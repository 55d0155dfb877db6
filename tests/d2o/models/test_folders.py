"""Broken model folders: one thing of a good one changed, each is refused in two lines, within seconds, nothing written.

What is harmless, a field or a tensor that no one reads, is used as it is.
"""

from copy import deepcopy
from functools import cache
from pathlib import Path

import pytest
import torch
from broken_folders import (
    CONFIG,
    ENDS,
    FILES,
    GONE,
    GOOD,
    TEMPLATE,
    TOKENIZER,
    WEIGHTS,
    a_folder,
    a_loop,
    config,
    fields,
    template,
    tensors,
    words,
    write,
)
from tries import LONG, everything, two_lines

import run_pred
from d2o.models import chat
from eval.cli import main
from eval.config.compose import compose_cell
from eval.run import models, sweep

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
HUGE = 2**70
PART = "model.layers.0.mlp.up_proj.weight"
NAN = float("nan")
ASKS = "{{ messages[0]['content'] }}"
LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}x"
FIELDS = {  # of config.json: what the error speaks of, and values
    "architectures": ("architectures", [5], 7, {"a": 1}, "LlamaForCausalLM", [None], True),
    "model_type": ("model_type", 7, None, ["llama"], GONE),
    "num_hidden_layers": ("num_hidden_layers", -1, 0, "4", 4.5, HUGE, NAN, 10**9, True),
    "num_attention_heads": ("num_attention_heads", -4, 0, "4", HUGE, NAN),
    "num_key_value_heads": ("num_key_value_heads", -2, 0, "2", HUGE, 2.5),
    "hidden_size": ("hidden_size", -128, 0, "128", HUGE),
    "head_dim": ("head_dim", -32, 0, "32", HUGE, 1.5),
    "vocab_size": ("vocab_size", -784, 0, "784", HUGE),
    "max_position_embeddings": ("max_position_embeddings", -1, 0, "4096", HUGE, NAN),
    "rope_parameters": ("rope_", "default", 5, {"rope_theta": "x"}, {"rope_theta": -1}, {"rope_theta": NAN}),
    "rope_scaling": ("factor", {"rope_type": "linear", "factor": "x"}, {"rope_type": "yarn", "factor": NAN}),
    "rope_theta": ("rope_theta", -1, "x"),
    "dtype": ("dtype", 5, ["float32"]),
    "torch_dtype": ("torch_dtype", 5),
    "eos_token_id": ("eos_token_id", "x", ["2"], HUGE, {"a": 1}, 1.5),
    "bos_token_id": ("bos_token_id", "x", [1, "a"]),
    "sliding_window": ("sliding_window", "x", 1.5),
    "text_config": ("text_config", 5, {"num_hidden_layers": -1}),
    "is_encoder_decoder": ("LlamaForCausalLM", True),
}
LOADED = {  # what a library finds while it loads: here it only has to be told in two lines
    "no such family": (config(model_type="nosuch"), "nosuch"),
    "an encoder": (config(model_type="bert"), "lacks"),
    "more layers than weights": (config(num_hidden_layers=5), "lacks 9 weights"),
    "heads that share nothing": (config(num_key_value_heads=3), "other shapes"),
    "a narrower vocabulary": (config(vocab_size=100), "other shapes"),
    "a width of null": (config(hidden_size=None), "hidden_size"),
    "a rotation of no kind": (config(rope_parameters={"rope_type": "nosuch"}), "nosuch"),
    "a dtype of no kind": (config(dtype="nonsense"), "nonsense"),
    "ties as a text": (config(tie_word_embeddings="yes"), "tie_word_embeddings"),
    "quantised by a text": (config(quantization_config="x"), "cannot load"),
    "an end beyond the vocabulary": (fields(ENDS, eos_token_id=99999), "99999"),
    "an end below it": (fields(ENDS, eos_token_id=-1), "-1"),
    "an end that the model lacks": (fields(TEMPLATE, eos_token="<nosuch>"), "784"),
    "a tensor of another shape": (tensors(lambda t: t.update({PART: t[PART][:5].clone()})), "other shapes"),
    "a tensor too few": (tensors(lambda t: t.pop(PART)), PART),
    "no tensor": (tensors(lambda t: t.clear()), "lacks 39 weights"),
    "a tensor of NaN": (tensors(lambda t: t.update({PART: t[PART] * NAN})), PART),
    "a tokenizer that is empty": (write(TOKENIZER, ""), "tokenizer"),
    "a tokenizer that is torn": (write(TOKENIZER, "{torn"), "tokenizer"),
    "a tokenizer that is a list": (write(TOKENIZER, "[1]"), "tokenizer"),
    "a tokenizer without words": (words(lambda t: t.pop("model")), "tokenizer"),
    "templates that are a list": (template(["x"]), "tokenizer"),
}
TEXTS = {"empty": "", "a list": "[1]", "torn": "{torn", "binary": b"\0\1",
         "not UTF-8": b'{"a": "\xff"}', "deep": "[" * 9**6}  # fmt: skip
BYTES = (GOOD / WEIGHTS).read_bytes()
TORN = {"empty": b"", "half": BYTES[: len(BYTES) // 2], "few": BYTES[:4], "magic": b"GARBAGE!" + BYTES[8:],
        "header": BYTES[:8] + b"x" * 100 + BYTES[108:], "list": b"\3\0\0\0\0\0\0\0[1]",
        "pointer": b"version https://git-lfs.github.com/spec/v1"}  # fmt: skip
CHANGED = [(name, value, what) for name, (what, *values) in FIELDS.items() for value in values]
EARLY = {f"{name} {value!s:.20}": (config(**{name: value}), what) for name, value, what in CHANGED}
EARLY |= {f"{file} {kind}": (write(file, TEXTS[kind]), file) for file in (CONFIG, ENDS, TEMPLATE) for kind in TEXTS}
EARLY |= {f"weights {kind}": (write(WEIGHTS, content), WEIGHTS) for kind, content in TORN.items()}
for needed in (CONFIG, WEIGHTS, TOKENIZER):
    EARLY[f"no {needed}"] = write(needed, GONE), "has no"
    EARLY[f"{needed} a folder"] = a_folder(needed), " no"
    EARLY[f"{needed} a loop"] = a_loop(needed), " no"
EARLY |= {f"ends {value!s:.20}": (fields(ENDS, eos_token_id=value), "eos_token_id") for value in ("x", ["2"], HUGE, {})}
EARLY |= {"a tensor of truths": (tensors(lambda t: t.update({PART: t[PART] > 0})), "BOOL")}
HARMLESS = {
    "a field that no one reads": config(unused=5),
    "code of its own that is not run": config(auto_map={"AutoModelForCausalLM": "modeling_x.X"}),
    "a tensor too many": tensors(lambda t: t.update(other=torch.ones(3))),
    "a tensor of halves": tensors(lambda t: t.update({PART: t[PART].half()})),
    "no generation_config.json": write(ENDS, GONE),
    "weights of another layout, not fetched": lambda folder: (folder / "consolidated.safetensors").write_text("git"),
}
TEMPLATES = {
    "{# nothing #}": "leaves a message out",
    LOOP: "has not ended",
    "{{ 'a' * 10**7 }}" + ASKS: "characters around",
    "{{ 'a' * 10**12 }}" + ASKS: "fails",
    "{% for": "fails",
    "{{ raise_exception('no') }}": "fails: no",
    "{{ 1 // 0 }}": "fails",
    "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}": "fails",
    "{% include 'x' %}": "fails",
    "{{ ''.__class__.__mro__ }}": "fails",
}


@cache
def composed(words):
    return compose_cell(words, CONFIGS)


@pytest.fixture(name="run")
def _run(tmp_path, capsys, monkeypatch):
    """A cell of a copy of the good folder in which a change was made: exit code, stdout, stderr, where its rows are.

    The words are the same for all copies, so the cell is composed once; a model is not kept from one to the next.
    """
    folder, results = tmp_path / "model", tmp_path / "results"
    folder.mkdir()
    results.mkdir()
    for file in FILES:
        (folder / file).symlink_to(GOOD / file)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep, "compose_cell", lambda words, _: deepcopy(composed(tuple(words))))
    monkeypatch.setattr(models, "_last", {})

    def run(change, *task, path="model"):
        change(folder)
        task = task or ("task=mini_single", "task.length=256")
        common = ["model=path", f"model.path={path}", "method=random", "budget=64", "limit=1", "results_dir=results"]
        code = main([*common, *task], run_pred.run_cell, CONFIGS)
        return code, *capsys.readouterr(), results

    return run


def rows(results):
    return [line for file in results.rglob("predictions.jsonl") for line in file.read_text().splitlines()]


@pytest.mark.parametrize(("change", "what"), EARLY.values(), ids=EARLY)
def test_a_slip_that_shows_early_writes_nothing(change, what, run):
    *ended, results = run(change)
    assert what in two_lines(*ended)[0]
    assert everything(results) == []


@pytest.mark.parametrize(("change", "what"), LOADED.values(), ids=LOADED)
def test_a_slip_that_shows_in_loading_makes_no_row(change, what, run):
    *ended, results = run(change)
    assert what in two_lines(*ended)[0]
    assert rows(results) == []


@pytest.mark.parametrize("change", HARMLESS.values(), ids=HARMLESS)
def test_what_no_one_reads_does_no_harm(change, run):
    code, _, err, results = run(change)
    assert (code, err.count("\n")) == (0, err.count("note: ")), err
    assert len(rows(results)) == 1


@pytest.mark.parametrize("text", TEMPLATES)
def test_a_chat_template_is_a_program_that_may_fail(text, run, monkeypatch):
    monkeypatch.setattr(chat, "SECONDS", 2.0)
    *ended, results = run(template(text), "task=passkey", "task.lengths=[300]", "task.depths=[50]", "task.chat=true")
    assert TEMPLATES[text] in two_lines(*ended)[0]
    assert rows(results) == []


@pytest.mark.parametrize("path", [GOOD / CONFIG, LONG, "loop", "\u202e"], ids=["file", "long", "loop", "no name"])
def test_a_path_that_is_no_folder(path, run):
    Path("loop").symlink_to("loop")
    *ended, results = run(lambda folder: None, path=path)
    two_lines(*ended)
    assert everything(results) == []


@pytest.mark.parametrize("case", ["029", "032", "062", "087", "089", "091"])
def test_parts_of_broken_folders(case, run, shared, monkeypatch):
    """Each is laid over the good folder; those of a chat template show where one is used."""
    found = list((shared / "cases" / "model").glob(f"{case}_*/*"))
    if not found:
        pytest.skip("no such part of a folder")
    monkeypatch.setattr(chat, "SECONDS", 2.0)
    change = lambda folder: [write(file.name, file.read_bytes())(folder) for file in found]  # noqa: E731
    *ended, results = run(change, "task=passkey", "task.lengths=[300]", "task.depths=[50]", "task.chat=true")
    two_lines(*ended)
    assert rows(results) == []
