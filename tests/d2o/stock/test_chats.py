"""Several turns on one compressed cache, and what is seen of it."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_evict import TEXTS, model
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, pipeline
from zoo import METHODS, prompt

import d2o
from d2o import evict, kept, show
from d2o.errors import InputError
from d2o.stock.kept import shares

ROOT = Path(__file__).resolve().parents[3]
TURNS = [prompt(n, seed) for seed, n in enumerate((30, 12, 7))]
GREEDY = {"max_new_tokens": 5, "do_sample": False}


def talk(cache):
    """Three turns, each answered; all that was said."""
    text = torch.zeros(1, 0, dtype=torch.long)
    for turn in TURNS:
        text = model().generate(torch.cat((text, torch.tensor([turn])), dim=1), past_key_values=cache, **GREEDY)
    return text


def test_a_whole_cache_says_what_stock_says():
    stock = talk(DynamicCache(config=model().config))
    with evict(model(), METHODS["h2o"](), budget=1) as evicting:
        cache = evicting.new_cache()
        assert torch.equal(talk(cache), stock)
        assert cache.ids().tolist() == stock[0, :-1].tolist() and evicting.cache is None


@pytest.mark.parametrize(("method", "budget"), [("d2o", 0.3), ("h2o", 0.3), ("tova", 12), ("snapkv", 0.3)])
def test_a_share_of_the_text_grows_with_it(method, budget):
    with evict(model(), METHODS[method](), budget=budget) as evicting:
        cache = evicting.new_cache()
        text = talk(cache)
        assert cache.seen == [text.shape[1] - 1]
        held = [len(head) for heads in kept(cache) for head in heads]
        asked = {0.3: int(0.3 * (sum(map(len, TURNS)) + 2 * 5)), 12: 12}[budget]
        if method == "snapkv":  # evicts once: what follows the first turn stays
            assert held == [9 + cache.seen[0] - len(TURNS[0])] * len(held)
        else:
            assert abs(sum(held) / len(held) - asked) <= 1
        cache.close_ledger(0)  # checks what is held
        assert all(bool((one.diff() > 0).all()) for heads in kept(cache) for one in heads)


def test_a_turn_in_one_call_is_the_turn_token_by_token():
    with evict(model(), METHODS["h2o"](), budget=0.3) as evicting:
        one = evicting.new_cache()
        model()(torch.tensor([TURNS[0]]), past_key_values=one)
        other = copy.deepcopy(one)
        together = model()(torch.tensor([TURNS[1]]), past_key_values=one).logits
        other.begin_turn(len(TURNS[1]))
        alone = [model()(torch.tensor([[i]]), past_key_values=other).logits for i in TURNS[1]]
        assert torch.allclose(together, torch.cat(alone, dim=1), atol=1e-5)
        assert all(torch.equal(a, b) for x, y in zip(kept(one), kept(other), strict=True)
                   for a, b in zip(x, y, strict=True))  # fmt: skip


def test_another_text_is_refused():
    with evict(model(), METHODS["h2o"](), budget=0.3) as evicting:
        cache = evicting.new_cache()
        text = model().generate(torch.tensor([TEXTS[0]]), past_key_values=cache, **GREEDY)
        for wrong, said in ((text.flip(1), "token 0"), (text[:, :20], "has read 44"), (text.repeat(2, 1), "2 rows")):
            longer = torch.cat((wrong, torch.tensor([[7]] * len(wrong))), dim=1)
            with pytest.raises(InputError, match=said):
                model().generate(longer, past_key_values=cache, **GREEDY)
        with pytest.raises(InputError, match="cut back"):
            cache.crop(3)


def test_shares_are_counted_over_heads():
    with evict(model(), METHODS["h2o"](), budget=10) as evicting:
        model()(torch.tensor([TEXTS[0]]))
    assert float(shares(evicting).sum()) == pytest.approx(10)
    one = kept(evicting)[1][0]
    assert shares(evicting, layer=1, head=0).nonzero().view(-1).tolist() == one.tolist()
    told = show(evicting, torch.tensor(TEXTS[0] + [9]), layer=1, head=0)
    assert [i for i, (_, share) in enumerate(told.pieces) if share] == one.tolist()
    assert told.pieces[-1] == ("9 ", None) and "head 0 of layer 1" in str(told)


def test_the_text_is_shown_in_a_notebook_and_in_a_terminal():
    folder = str(ROOT / "models" / "tiny")
    tiny, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    text = "story: <b>nan & \x1b[31m finds a coin in the cave. " * 3
    with evict(tiny, d2o.D2O(), budget=0.3) as evicting:
        said = pipeline("text-generation", model=tiny, tokenizer=tokenizer)(text, max_new_tokens=4, do_sample=False)
        assert said[0]["generated_text"].startswith(text[:9])
        told = show(evicting)
    assert "".join(piece for piece, _ in told.pieces).replace("<s>", "").startswith(text[:9])
    page, line = told._repr_html_(), str(told)
    assert "<b>" not in page and "&lt;" in page and "background:#" in page
    assert "\x1b[31m" not in line and "\x1b[38;5;" in line
    assert evicting.cache.close_ledger(0).realised == pytest.approx(0.3, abs=0.05)


def test_every_method_has_its_class_here():
    assert d2o.SnapKV.__name__ == "SnapKV" and {"D2O", "H2O", "TOVA", "evict", "kept", "show"} <= set(dir(d2o))
    with pytest.raises(AttributeError):
        d2o.Nothing  # noqa: B018
    code = "import sys, d2o; dir(d2o); assert not {'torch', 'transformers', 'yaml', 'baselines'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
