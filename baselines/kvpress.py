"""kvpress: the scores of a press of the kvpress package decide what is kept; once, after the prefill.

Reference: NVIDIA/kvpress 0.5, an optional extra. Papers: see the press.

    pip install cachetools fire && pip install --no-deps kvpress
    python run_pred.py method=kvpress method.press=SnapKVPress method.ignore_pin=true budget=0.2

Its releases pin transformers below what the engine needs, and with its dependencies pip would install that older one:
hence --no-deps. Where the pin does not admit the version that is here, selecting this method says so, and
`ignore_pin: true` tries all the same. Importing the package wraps transformers' attention functions.

Intended differences from the reference
- Only presses that score (subclasses of ScorerPress: KnormPress, SnapKVPress, TOVAPress, ExpectedAttentionPress ...):
  the slots are kept and counted here, as for every method. Presses that wrap, mask, merge or rerotate are refused, and
  so are models without `model.layers[i].self_attn`.
- The budget replaces `compression_ratio`.
- The prompt is always prefilled whole, and rows of a batch are scored one by one: a press knows no padding.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Iterator, Sequence
from importlib import metadata
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from d2o.errors import InputError
from d2o.feed import Feed
from d2o.layer import KVLayer


class KVPress(KVLayer):
    """`press`: a class of kvpress, made with `press_args`."""

    needs_all_layers, decode_eviction = True, False  # the cut waits until the press has scored
    plain_attention = True

    def __init__(
        self, press: str = "KnormPress", press_args: dict[str, Any] | None = None, ignore_pin: bool = False
    ) -> None:
        super().__init__()
        package = _package(ignore_pin)
        kind = getattr(package, press, None)
        if not (isinstance(kind, type) and issubclass(kind, package.ScorerPress)):
            raise InputError(f"kvpress has no press={press!r} that scores", "method.press=KnormPress, SnapKVPress ...")
        self.press = kind(**(press_args or {}))
        self.scores: Tensor | None = None

    def pieces(self, lengths: list[int], chunk: int | None) -> list[list[int]]:
        """The prompt in one piece, whatever `chunk` is: a press scores it whole."""
        return [list(lengths)]

    def importance(self) -> Tensor:
        """`scores [B, Hkv, C]` of the press."""
        return self.scores

    @contextlib.contextmanager
    def around_forward(self, model: nn.Module, layers: Sequence[KVLayer], feed: Feed) -> Iterator[None]:
        """The press is shown every attention module after it has attended."""
        if self.unlimited:
            yield
            return
        base = getattr(model, "model", model)
        attention = [getattr(block, "self_attn", None) for block in getattr(base, "layers", ())]
        if len(attention) != len(layers) or not all(hasattr(module, "layer_idx") for module in attention):
            raise InputError(f"kvpress knows no {model.config.model_type}", "take a model such as Llama")
        handles = []
        for module, layer in zip(attention, layers, strict=True):
            layer.press.post_init_from_model(model)
            module.rotary_emb = base.rotary_emb  # presses look for it there
            hook = functools.partial(layer.score, list(feed.lengths))
            handles.append(module.register_forward_hook(hook, with_kwargs=True))
        try:
            yield
        finally:
            for module, handle in zip(attention, handles, strict=True):
                handle.remove()
                del module.rotary_emb

    def score(self, lengths: list[int], module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        """A forward hook: what the press thinks of every slot, row by row, without its padding."""
        hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        self.scores = torch.zeros(self.positions.shape, device=hidden.device)
        for b, n in enumerate(lengths):
            tokens, row = slice(hidden.shape[1] - n, None), slice(b, b + 1)
            turn = tuple(x.expand(len(lengths), -1, -1)[row, tokens] for x in kwargs["position_embeddings"])
            given = {**kwargs, "position_embeddings": turn}
            held = (self.keys[row, :, :n], self.values[row, :, :n])
            self.scores[row, :, :n] = self.press.score(module, hidden[row, tokens], *held, None, given).float()


@functools.cache
def _package(ignore_pin: bool) -> ModuleType:
    """kvpress; an InputError that says in one line why not."""
    try:
        version, requires = metadata.version("kvpress"), metadata.requires("kvpress") or []
    except metadata.PackageNotFoundError:
        how = "pip install cachetools fire && pip install --no-deps kvpress"
        raise InputError("kvpress is not installed", how) from None
    from packaging.requirements import Requirement

    pins = [r for r in map(Requirement, requires) if r.name == "transformers"]
    here = metadata.version("transformers")
    if not ignore_pin and not all(pin.specifier.contains(here, prereleases=True) for pin in pins):
        wanted = ",".join(str(pin.specifier) for pin in pins)
        what = f"kvpress {version} wants transformers {wanted}, this is {here}"
        raise InputError(what, "method.ignore_pin=true tries all the same")
    try:
        return importlib.import_module("kvpress")
    except ImportError as error:
        raise InputError(f"kvpress {version} cannot be imported: {error}", "install what it needs") from error
