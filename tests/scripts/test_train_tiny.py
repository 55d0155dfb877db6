"""The recipe of the bundled model: what is learnt from, resuming, attention, and the tokenizer in the repository."""

import csv
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from eval.tasks.mini.grammar import names, plain, words
from eval.tasks.mini.tokens import TINY, Encoder
from scripts import train_tiny

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def encoder():
    from tokenizers import Tokenizer

    return Encoder(Tokenizer.from_file(str(TINY / "tokenizer.json")))


def test_tokenizer_is_the_one_its_script_writes(encoder):
    from scripts.train.tiny_tokenizer import tokenizer

    made, kept = json.loads(tokenizer().to_str()), json.loads(encoder.tokenizer.to_str())
    for part in ("model", "normalizer", "pre_tokenizer", "decoder", "post_processor"):
        assert made[part] == kept[part], part


def test_tokens_of_words_and_names(encoder):
    assert [w for w in words() if len(encoder.chunk(f" {w}")) != 1] == []
    assert [n for n in names("train")[::50] + names("test")[::50] if len(encoder.chunk(f" {n}")) != 2] == []


TEXTS = ["", " a  b", "A naïve Übung,\n\n\t日本 🙂 x", "story: the miller.\n? kel keeps", "1 + 1"]


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_comes_back(encoder, text):
    ids = encoder.tokenizer.encode(text).ids
    assert encoder.tokenizer.decode(ids) == text
    assert 0 not in ids  # <unk>


@pytest.mark.parametrize("kind", ["multikey", "twohop", "multivalue", "count", "fewshot", "code", "dialogue", "passage",
                                  "text", "repeat", "code_crowded", "dialogue_crowded", "passage_untitled",
                                  "passage_titled_all", "chain"])
@pytest.mark.parametrize("length", [64, 256])
def test_document(encoder, kind, length):
    """A training text fits, uses training names only, and its chunks are the tokenizer's own tokens."""
    from scripts.train.tiny_data import document

    test = {encoder.chunk(f" {n}") for n in names("test")}
    for seed in range(6):
        ids, known = document(encoder, random.Random(seed), {kind: 1.0}, length, 1, alike=seed % 2)
        assert len(ids) == len(known) <= length and any(known[1:])
        if kind != "repeat":
            assert encoder.tokenizer.encode(encoder.tokenizer.decode(ids)).ids == ids
        assert not test & {tuple(ids[i : i + 2]) for i in range(len(ids))}


def test_known_tokens_are_answers(encoder):
    ids, known = encoder.marked(" kel the\x01 miller goes.")
    assert [encoder.tokenizer.id_to_token(i) for i, k in zip(ids, known, strict=True) if k] == ["▁miller"]
    assert encoder.marked(" the miller", True)[1] == [True, True]
    assert plain(" the\x01 miller") == " the miller"


def test_name_ends_are_known_when_told_before():
    from scripts.train.tiny_data import name_ends

    assert name_ends([5, 9, 7, 5, 9, 5, 8, 9], frozenset([9])) == [False] * 4 + [True] + [False] * 3


def test_positions_leap_after_sentences_only(encoder):
    from scripts.train.tiny_data import positions

    ids = [5, 6, 9] * 40
    where = positions(random.Random(0), ids, frozenset([9]), 4096)
    leaps = [i for i in range(1, len(ids)) if where[i] != where[i - 1] + 1]
    assert leaps and all(ids[i - 1] == 9 or i == len(ids) - 1 for i in leaps)
    assert where[-1] < 4096


def test_attention_is_the_stock_one():
    import torch

    from scripts.train.tiny_attention import attend

    torch.manual_seed(0)
    for t in (7, 128, 300, 600):
        q, k, v = torch.randn(2, 4, t, 8), torch.randn(2, 2, t, 8), torch.randn(2, 2, t, 8)
        want = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3, enable_gqa=True)
        got, _ = attend(None, q, k, v, None, scaling=0.3)
        assert torch.allclose(got, want.transpose(1, 2), atol=1e-5)
    with pytest.raises(ValueError):
        attend(None, q, k, v, torch.ones(1), scaling=0.3)


def _train(out: Path, *words: str, here: bool = False) -> list[dict]:
    """Its losses; by the command, or in this process: what it imports takes longer than the steps."""
    command = [sys.executable, "scripts/train_tiny.py", f"out_dir={out}", "workers=1", "model.num_hidden_layers=1",
               "phases=[{steps: 4, lengths: [32, 64], shares: [1, 1], tokens: 128, rate: [1, 0.5], "
               "leap: 0.5, plain: 0.1, names: true, alike: 0.5, "
               "mix: {multikey: 1, repeat: 1}, eval_lengths: [256]}]",
               "log_every=1", "save_every=1", "eval_every=4", "eval_rows=2", "eval_cells=[single]", *words]
    if here:
        train_tiny.main(command[2:])
    else:
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    with (out / "train.csv").open() as f:
        return [{k: row[k] for k in ("step", "tokens", "length", "loss")} for row in csv.DictReader(f)]


def test_resume_gives_the_same_losses(tmp_path):
    """Stopped after every step by a limit of no minutes, then gone on: the losses of an unbroken run."""
    whole = _train(tmp_path / "whole")
    for steps in (1, 2, 3, 4):
        broken = _train(tmp_path / "broken", "max_minutes=0", here=True)
        assert len(broken) == steps
    assert broken == whole
    assert (tmp_path / "broken" / "model" / "model.safetensors").exists()


def test_a_recipe_goes_on_from_weights_that_are_there():
    from omegaconf import OmegaConf
    from safetensors.torch import load_file

    from scripts.train.config import composed
    from scripts.train.tiny_model import new_model

    cfg = composed([], "train_tiny_chain")
    assert set(cfg.phases[1].mix) == set(cfg.mixed) and cfg.phases[1].mix.chain and cfg.lr_rest == 0.005
    model, kept = new_model(cfg, 784, 1, 2), load_file(ROOT / "models/tiny/model.safetensors")
    assert kept and all(model.state_dict()[name].equal(weight) for name, weight in kept.items())
    assert OmegaConf.load(ROOT / "configs/train_tiny.yaml").start is None


def test_first_layer_looks_back():
    """At the start, head h of the first layer gives most of its weight to the token h + 1 places before."""
    import torch
    from omegaconf import OmegaConf

    from scripts.train.tiny_model import new_model

    cfg = OmegaConf.load(ROOT / "configs" / "train_tiny.yaml")
    model = new_model(cfg, 784, 1, 2)
    model.set_attn_implementation("eager")
    weights = model(torch.randint(0, 784, (1, 100)), output_attentions=True).attentions[0][0]
    for head in range(4):
        assert weights[head].diagonal(-head - 1).mean() > 0.6
