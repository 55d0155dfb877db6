"""The self-check passes where everything is right, and fails where one thing is broken."""

import functools
import sys
from pathlib import Path

import pytest
import torch
from zoo import METHODS, build

import d2o.layer
from baselines.h2o import H2O
from d2o.eviction import Eviction
from d2o.lab.selfcheck import SelfCheck, kernels
from d2o.rows import LastRows
from d2o.storage import SlotStorage

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from d2o.errors import InputError  # noqa: E402
from scripts import selfcheck  # noqa: E402


@pytest.fixture
def by_torch(monkeypatch):
    """What is broken below are torch's operations, which the compiled kernels stand in for."""
    monkeypatch.setenv("D2O_STEP", "0")


def failed(name="h2o", family="llama_gqa"):
    checks, _ = SelfCheck(build(family)).method(name, METHODS[name])
    return {check.what for check in checks if not check.ok}


@pytest.mark.parametrize("family", ["llama_gqa", "falcon_new"])
@pytest.mark.parametrize("name", ["h2o", "d2o", "adakv", "pyramidinfer", "cam", "streaming_slot"])
def test_it_passes(name, family):
    assert not failed(name, family)


def test_broken_positions(by_torch, monkeypatch):
    write = SlotStorage.write
    monkeypatch.setattr(SlotStorage, "write", lambda self, key, value, at: write(self, key, value, at + 1))
    assert "mask" in failed()


def test_a_broken_mask(by_torch, monkeypatch):
    row = d2o.layer.attend_row
    monkeypatch.setattr(d2o.layer, "attend_row", lambda q, k, v, scale, visible, held: row(q, k, v, scale, None))
    assert failed() == {"batch"}


def test_a_broken_padding_rule(monkeypatch):
    append = SlotStorage.append

    def padded(self, key, value, lengths):
        off = int(min(lengths) < key.shape[2])
        append(self, key.roll(off, 2), value.roll(off, 2), lengths)

    monkeypatch.setattr(SlotStorage, "append", padded)
    assert failed() == {"batch"}


def test_a_broken_score_update(by_torch, monkeypatch):
    observe, model = H2O.observe, build("llama_gqa")
    assert SelfCheck(model).scores(H2O) < 1e-5

    def once(self, attn):
        if not isinstance(attn, LastRows):
            observe(self, attn)

    monkeypatch.setattr(H2O, "observe", once)
    assert SelfCheck(build("llama_gqa")).scores(H2O) > 1e-3


def test_a_broken_cut(monkeypatch):
    monkeypatch.setattr(Eviction, "_guards", lambda self, slots: (0, 0))
    assert SelfCheck(build("llama_gqa")).scores(H2O) == float("inf")


def test_too_many_slots(monkeypatch):
    capacity = Eviction._capacity
    monkeypatch.setattr(Eviction, "_capacity", lambda self, *given: capacity(self, *given) + 20)
    assert failed() == {"bytes"}


def test_kernels():
    assert kernels(torch.device("cpu"), torch.float32) < 1e-5


def test_the_command(capsys):
    assert selfcheck.main(["methods=tova"]) == 0
    out = capsys.readouterr().out
    assert "| tova | 0.3 |" in out and "all passed" in out
    with pytest.raises(InputError, match="unknown method 'nonsense'"):
        selfcheck.main(["methods=nonsense"])


def test_the_command_fails_with_what_differs(by_torch, capsys, monkeypatch):
    write = SlotStorage.write
    monkeypatch.setattr(SlotStorage, "write", lambda self, key, value, at: write(self, key, value, at + 1))
    monkeypatch.setattr(selfcheck, "families", lambda: [("small", build("llama_gqa"))])
    monkeypatch.setattr(selfcheck, "build_methods", lambda names: {"h2o": functools.partial(H2O)})
    assert selfcheck.main(["families"]) == 1
    out = capsys.readouterr().out
    assert "FAILED small, h2o: mask is" in out and "first after token 9" in out and "prompt of 96 tokens" in out
    with pytest.raises(InputError, match="'model=tiny' beside families"):
        selfcheck.main(["families", "model=tiny"])


def test_every_method_of_the_configs_runs_on_any_model(capsys):
    """Retaining heads that ship with the bundled model fit no other."""
    assert selfcheck.main(["families", "methods=locret,full"]) == 0
    assert "left out" not in capsys.readouterr().err
