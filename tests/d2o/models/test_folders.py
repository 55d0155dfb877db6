"""Broken model folders: one thing of a good one changed, each is refused in two lines, within seconds, nothing written.

What is harmless, a field or a tensor that no one reads, is used as it is.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tries import LONG, everything, two_lines

import run_pred
from d2o.models import chat
from eval.cli import main

ROOT = Path(__file__).resolve().parents[3]
CONFIGS, GOOD = ROOT / "configs", ROOT / "models" / "tiny"
FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
CONFIG, ENDS, WEIGHTS, TOKENIZER, TEMPLATE = FILES
GONE = object()  # a file, or a field, that is not there
HUGE = 2**70
NAN = float("nan")
LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}x"


def fields(file, **given):
    """Fields of a JSON file in other words; GONE takes one away."""

    def change(folder):
        found = {**json.loads((GOOD / file).read_text()), **given}
        write(file, json.dumps({k: v for k, v in found.items() if v is not GONE}))(folder)

    return change


def write(file, content):
    """A file with other content; GONE takes it away."""

    def change(folder):
        (folder / file).unlink()
        if content is not GONE:
            (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())

    return change


def tensors(change_them):
    """Weights of which some are others."""

    def change(folder):
        found = load_file(GOOD / WEIGHTS)
        change_them(found)
        (folder / WEIGHTS).unlink()
        save_file(found, folder / WEIGHTS, metadata={"format": "pt"})

    return change


def a_folder(file):
    def change(folder):
        (folder / file).unlink()
        (folder / file).mkdir()

    return change


def a_loop(file):
    def change(folder):
        (folder / file).unlink()
        (folder / file).symlink_to(file)

    return change


def words(changed):
    """The tokenizer's vocabulary, changed in place."""

    def change(folder):
        found = json.loads((GOOD / TOKENIZER).read_text())
        changed(found)
        write(TOKENIZER, json.dumps(found))(folder)

    return change


def config(**given):
    return fields(CONFIG, **given)


def template(text):
    return fields(TEMPLATE, chat_template=text)


FIELDS = {
    "architectures": ([5], "LlamaForCausalLM", {"a": 1}, 7, [None], True, ["NoSuchForCausalLM"]),
    "model_type": ("nosuch", 7, None, ["llama"], GONE, "bert", ""),
    "num_hidden_layers": (-1, 0, "4", 4.5, None, HUGE, NAN, [4], 10**9, 5, 3, True),
    "num_attention_heads": (-4, 0, "4", None, HUGE, NAN, 3, 1.5, 10**6),
    "num_key_value_heads": (-2, 0, "2", HUGE, 3, 2.5, [2], NAN),
    "hidden_size": (-128, 0, "128", None, HUGE, 127, 10**7, NAN),
    "intermediate_size": (-1, 0, "256", None, HUGE),
    "head_dim": (-32, 0, "32", 31, HUGE, [32], 1.5),
    "vocab_size": (-784, 0, "784", None, HUGE, 100, 785, NAN),
    "max_position_embeddings": (-1, 0, "4096", HUGE, NAN, [4096], 1.5),
    "rope_parameters": ("default", 5, [1], {"rope_type": "nosuch"}, {"rope_type": 5}, {"rope_theta": "x"},
                        {"rope_type": "default", "rope_theta": -1}, {"rope_type": "default", "rope_theta": 0},
                        {"rope_type": "default", "rope_theta": NAN}, {"rope_type": "default", "rope_theta": None},
                        {"rope_type": "linear", "rope_theta": 1e4}, {"rope_type": "linear", "factor": "x"},
                        {"rope_type": "yarn", "rope_theta": 1e4, "factor": -3.0},
                        {"rope_type": "yarn", "rope_theta": 1e4, "factor": NAN}),
    "dtype": ("nonsense", 5, ["float32"], "int8", "float99", "load", ""),
    "hidden_act": ("nosuch", 5, None),
    "rms_norm_eps": ("x", None, NAN, -1e9),
    "eos_token_id": ("x", ["2"], 99999, -1, HUGE, {"a": 1}, 1.5),
    "bos_token_id": ("x", [1, "a"]),
    "tie_word_embeddings": ("yes", 5),
    "quantization_config": ("nonsense", {"quant_method": "nosuch"}, {}, 5, [1]),
    "auto_map": ({"AutoModelForCausalLM": "modeling_x.X", "AutoConfig": "configuration_x.C"}, 5),
    "layer_types": ("full_attention", [1], ["full_attention"], ["nosuch"] * 4),
    "sliding_window": ("x", -1, 0),
    "text_config": (5, "x", {"model_type": 5}),
    "attention_dropout": ("x", NAN),
    "is_encoder_decoder": (True,),
    "torch_dtype": ("nonsense",),
    "pad_token_id": ("x", HUGE, 99999),
}  # fmt: skip

SURVEY = {f"{k} {str(v)[:40] if v is not GONE else 'gone'}": config(**{k: v}) for k, vs in FIELDS.items() for v in vs}
SURVEY |= {f"{n}: {f}": write(f, c) for f in (CONFIG, ENDS, TOKENIZER, TEMPLATE) for n, c in {
    "gone": GONE, "empty": "", "a list": "[1]", "torn": "{torn", "binary": b"\x00\x01\x02", "not utf-8": b'{"a": "\xff"}',
    "a number": "5", "null": "null", "deep": "[" * 100000}.items()}
SURVEY |= {f"{f} a folder": a_folder(f) for f in FILES} | {f"{f} a loop": a_loop(f) for f in FILES}
SURVEY |= {f"gen eos {str(v)[:20]}": fields(ENDS, eos_token_id=v) for v in ("x", ["2"], -1, 99999, HUGE, 1.5, {"a": 1}, [], True)}
SURVEY |= {f"gen {k}={v}": fields(ENDS, **{k: v}) for k, v in [("temperature", "x"), ("max_new_tokens", -1), ("cache_implementation", "nosuch"), ("bos_token_id", "x")]}
raw = (GOOD / WEIGHTS).read_bytes()
SURVEY |= {f"weights {n}": write(WEIGHTS, c) for n, c in {"gone": GONE, "empty": b"", "half": raw[:len(raw) // 2], "few": raw[:4],
    "magic": b"GARBAGE!" + raw[8:], "torn header": raw[:8] + b"x" * 100 + raw[108:], "pickle": b"\x80\x04K\x05."}.items()}
N = "model.layers.0.mlp.up_proj.weight"
SURVEY |= {f"tensor {n}": tensors(c) for n, c in {
    "shape": lambda t: t.update({N: t[N][:5].clone()}), "missing": lambda t: t.pop(N), "extra": lambda t: t.update(other=torch.ones(3)),
    "int": lambda t: t.update({N: t[N].int()}), "half": lambda t: t.update({N: t[N].half()}), "nan": lambda t: t.update({N: t[N] * NAN}),
    "rows": lambda t: t.update({"model.embed_tokens.weight": t["model.embed_tokens.weight"][:5].clone()}),
    "bool": lambda t: t.update({N: t[N] > 0}), "renamed": lambda t: t.update({"x." + k: t.pop(k) for k in list(t)}),
    "none": lambda t: t.clear(), "inf emb": lambda t: t["model.embed_tokens.weight"].fill_(float("inf")),
    "scalar": lambda t: t.update({N: torch.tensor(1.0)}), "double": lambda t: t.update({N: t[N].double()})}.items()}
SURVEY |= {f"words {n}": words(c) for n, c in {
    "no model": lambda t: t.pop("model"), "vocab list": lambda t: t["model"].update(vocab=[]), "vocab empty": lambda t: t["model"].update(vocab={}, merges=[]),
    "larger": lambda t: t["model"]["vocab"].update({k: v + 5000 for k, v in t["model"]["vocab"].items()}),
    "type": lambda t: t["model"].update(type="nosuch"), "neg": lambda t: t["model"]["vocab"].update(a=-1),
    "added": lambda t: t.update(added_tokens="x"), "pre": lambda t: t.update(pre_tokenizer={"type": "nosuch"}), "post": lambda t: t.update(post_processor=5),
    "extra": lambda t: t.update(unused=1)}.items()}
SURVEY |= {f"template {str(n)[:40]}": template(n) for n in (5, ["x"], {"a": 1}, True, "", "{# nothing #}", LOOP, "{{ 'a' * 10**7 }}{{messages[0]['content']}}",
    "{{ 'a' * 10**12 }}{{messages[0]['content']}}", "{% for", "{{ nosuch.x }}", "{{ raise_exception('no') }}", "{{ 1 // 0 }}", "{{ messages }}", [{"name": "default"}], [{"name": "a", "template": "{{messages[0]['content']}}"}],
    "{{ messages[0]['content'] }}", "{{ 9 ** (9 ** 9) }}", "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "{% include 'x' %}", "{{ messages[0]['content'] | upper }}", "{{ ''.__class__.__mro__ }}")}
SURVEY |= {f"tok {k}={str(v)[:20]}": fields(TEMPLATE, **{k: v}) for k, v in [("tokenizer_class", "NoSuch"), ("tokenizer_class", 5), ("eos_token", 5), ("eos_token", "<nosuch>"),
    ("model_max_length", "x"), ("model_max_length", -1), ("bos_token", ["a"]), ("auto_map", {"AutoTokenizer": ["x.X", None]}), ("added_tokens_decoder", 5), ("added_tokens_decoder", {"x": 5}),
    ("unused", 5), ("pad_token", None), ("padding_side", "up"), ("extra_special_tokens", 5), ("backend", "nosuch"), ("truncation_side", 5)]}
