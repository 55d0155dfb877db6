"""scripts/check_gpu.py by its own logic, on a CPU: every part runs, and a fault is seen and stops no other part."""

from __future__ import annotations

import json

import pytest
import torch

from baselines.h2o import H2O
from d2o.errors import InputError
from scripts import check_gpu
from scripts.card import runs as whole_runs
from scripts.card import twins
from scripts.card.check import Check, Failed


@pytest.fixture
def check(tmp_path, monkeypatch, capsys):
    """Runs the parts here instead of in a process of their own; (exit code, result by part, what was printed)."""
    monkeypatch.setattr(check_gpu, "call", lambda words: check_gpu.main(words[1:]))
    monkeypatch.setattr(twins, "SHAPES", {"D 64": (1, 4, 2, 120, 64)})

    def run(*words):
        out = tmp_path / "check.json"
        code = check_gpu.main(["--device", "cpu", "--steps", "12", "--out", str(out), *words])
        state = json.loads(out.read_text())
        return code, {part["part"]: part for part in state["parts"]}, capsys.readouterr().out

    return run


def test_without_a_gpu_it_says_so_in_two_lines(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="no CUDA device") as caught:
        check_gpu.main(["--child", "--out", "nowhere.json"])
    assert "--device cpu" in caught.value.hint
    with pytest.raises(InputError, match="--device warp"):
        check_gpu.main(["--child", "--device", "warp", "--out", "nowhere.json"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match="sees 2 CUDA devices"):
        check_gpu.main(["--child", "--device", "cuda:2", "--out", "nowhere.json"])


def test_an_unknown_word_is_refused():
    with pytest.raises(InputError, match="turbo"):
        check_gpu.main(["--only", "turbo"])
    with pytest.raises(InputError, match="h3o"):
        check_gpu.main(["--child", "--device", "cpu", "--methods", "h3o", "--out", "nowhere.json"])


def test_all_parts_of_two_methods(check):
    groups = "kernels,float32,bfloat16,waits,graph,together,sampled,memory"
    code, found, said = check("--methods", "d2o,streaming_llm", "--only", groups)
    assert code == 0 and "0 failed" in said
    assert all(part["passed"] for part in found.values())
    for name in ("kernels nearest float32", "float32 d2o", "waits d2o", "graph float32 d2o", "together", "sampled d2o"):
        assert found[name]["read"], name
    assert found["graph float32 d2o"]["read"]["replayed"] == 12
    assert 0 < found["bfloat16 d2o"]["read"]["off"] == found["bfloat16 d2o"]["read"]["off on the CPU"]


def test_a_fault_is_named_and_the_rest_goes_on(check, monkeypatch):
    honest, runs = H2O.importance, []

    def off(self):
        """What a device would do that adds in another way: every second run takes other scores."""
        return -honest(self) if len(runs) % 2 else honest(self)

    monkeypatch.setattr(H2O, "importance", off)
    inner = whole_runs.forced
    monkeypatch.setattr(whole_runs, "forced", lambda *words: runs.append(1) or inner(*words))
    monkeypatch.setattr(twins, "column_sums", lambda q, *words: torch.ops.nothing.there(q))
    code, found, said = check("--methods", "h2o,streaming_llm", "--only", "kernels,float32")
    assert code == 1
    assert "slots after the prefill" in found["float32 h2o"]["error"]
    assert found["float32 streaming_llm"]["passed"] and found["kernels nearest float32"]["passed"]
    broken = found["kernels sums float32 D 64"]
    assert not broken["passed"] and "twins.py" in broken["error"]
    assert "FAIL float32 h2o" in said and "PASS float32 streaming_llm" in said


def test_wrong_statistics_and_slots_that_are_no_number_are_seen(monkeypatch):
    shape, cpu = (1, 2, 1, 60, 16), torch.device("cpu")
    assert twins.sums(cpu, torch.float32, shape)["all"] < 1e-6
    honest = twins.column_sums
    monkeypatch.setattr(twins, "column_sums", lambda *words: honest(*words) * 1.001)
    with pytest.raises(Failed, match="apart"):
        twins.sums(cpu, torch.float32, shape)
    monkeypatch.setattr(twins, "column_sums", lambda *words: honest(*words).fill_(float("nan")))
    with pytest.raises(Failed, match="nan apart"):
        twins.sums(cpu, torch.float32, shape)


def test_a_growing_step_is_seen(monkeypatch, check):
    monkeypatch.setenv("D2O_STEP", "0")  # a compiled step does not ask `observe`
    kept = H2O.observe

    def observe(self, attn):
        kept(self, attn)
        self.leak = torch.cat((getattr(self, "leak", torch.ones(1)), torch.ones(1)))

    monkeypatch.setattr(H2O, "observe", observe)
    code, found, _ = check("--methods", "h2o", "--only", "memory")
    assert code == 1 and "after 12 steps" in found["memory h2o"]["error"]


def test_a_process_that_dies_is_a_failed_part(tmp_path, monkeypatch, capsys):
    """The part that took it down is not run again, those behind it are."""
    out, died = tmp_path / "check.json", []

    def listed(*_):
        return [Check(name, lambda: {"n": 1}) for name in ("before", "deadly", "after")]

    def call(words):
        state = json.loads(out.read_text()) if out.exists() else {"device": {}, "parts": []}
        if not died:  # as the process leaves things when it is killed inside a part
            died.append(1)
            state["parts"].append({"part": "before", "passed": True})
            out.write_text(json.dumps(state | {"running": "deadly"}))
            return -11
        return check_gpu.main(words[1:])

    monkeypatch.setattr(check_gpu, "call", call)
    monkeypatch.setattr("scripts.card.parts.checks", listed)
    assert check_gpu.main(["--device", "cpu", "--out", str(out)]) == 1
    found = {part["part"]: part for part in json.loads(out.read_text())["parts"]}
    assert found["deadly"]["passed"] is False and "-11" in found["deadly"]["error"]
    assert found["after"]["passed"] and list(found) == ["before", "deadly", "after"]
    assert "FAIL deadly" in capsys.readouterr().out
