"""Reading a golden case, and driving one layer by hand with its queries, keys and values."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from d2o.feed import Feed
from d2o.layer import KVLayer


@dataclass
class Case:
    """`given` and `expected` tensors of one folder, floats as float32; `settings` and `sizes` from its case.json."""

    name: str
    settings: dict
    sizes: dict
    given: dict[str, Tensor]
    expected: dict[str, Tensor]
    model: dict

    @classmethod
    def read(cls, folder: Path) -> Case:
        about = json.loads((folder / "case.json").read_text())
        parts: dict[str, dict[str, Tensor]] = {"input": {}, "expected": {}}
        for key, tensor in load_file(folder / "tensors.safetensors").items():
            kind, name = key.split(".", 1)
            parts[kind][name] = tensor.float() if tensor.is_floating_point() else tensor.long()
        return cls(
            folder.name, about["hyperparameters"], about["shapes"], parts["input"], parts["expected"],
            about.get("model_config") or {},
        )  # fmt: skip

    def qkv(self) -> tuple[Tensor, Tensor, Tensor]:
        """`[1, H, S + T, D]` each, KV heads repeated for every query head: the references select per query head."""
        q, k, v = (self.given[name].unsqueeze(0) for name in "qkv")
        return q, *(x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))

    def llama(self) -> LlamaForCausalLM:
        rope = {"rope_type": "default", "rope_theta": self.model.pop("rope_theta")}
        model = LlamaForCausalLM(LlamaConfig(**self.model, rope_parameters=rope))
        weights = {name: tensor for name, tensor in self.given.items() if name != "input_ids"}
        missing, unexpected = model.load_state_dict(weights, strict=False)
        assert not missing and not unexpected
        return model


@dataclass
class Trace:
    """What a layer did: the prefill output, then per step output and, per event, positions held, ascending."""

    prefill: Tensor
    outputs: list[Tensor]
    held: list[Tensor]


def cases(shared: Path, method: str) -> list[Case]:
    folders = sorted((shared / "golden").glob(f"{method}__*"))
    assert folders, f"no golden case of {method}"
    return [Case.read(folder) for folder in folders]


def close(ours: Tensor, reference: Tensor, tolerance: float = 2e-5) -> None:
    torch.testing.assert_close(ours, reference, atol=tolerance, rtol=0)


def same(ours: Tensor, reference: Tensor) -> None:
    assert torch.equal(ours.long(), reference.long())


def drive(layer: KVLayer, q: Tensor, k: Tensor, v: Tensor, prompt: int, slots: int, each=None) -> Trace:
    """Prefill `prompt` tokens, then feed the rest one by one; `each(layer)` is called after every event."""
    steps = q.shape[2] - prompt
    layer.slots, scale = [slots], q.shape[-1] ** -0.5
    feed = Feed([prompt], prefill=True, last=True, prompt=[prompt], reserve=max(1, steps))
    first = layer.attend(*(x[:, :, :prompt] for x in (q, k, v)), scale, feed)
    layer.finish_prefill(max(1, steps))
    trace = Trace(first, [], [held(layer)])
    if each:
        each(layer)
    for i in range(prompt, prompt + steps):
        trace.outputs.append(layer.attend(*(x[:, :, i : i + 1] for x in (q, k, v)), scale, Feed([1])))
        trace.held.append(held(layer))
        if each:
            each(layer)
    return trace


def held(layer: KVLayer, row: int = 0) -> Tensor:
    """`[Hkv, n]`: positions held by each head, ascending, -1 behind where heads differ."""
    rows = [p[p >= 0].sort().values for p in layer.positions[row].long()]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)


def by_position(layer: KVLayer, what: Tensor) -> Tensor:
    """`[Hkv, n, ...]`: what the filled slots of row 0 carry, ascending by position."""
    order = layer.positions[0].argsort(dim=-1)
    count = int((layer.positions[0, 0] >= 0).sum())
    return torch.stack([rows[index[-count:]] for rows, index in zip(what[0], order, strict=True)])
