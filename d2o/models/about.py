"""What a layer may be told of the model that it serves, besides what it attends to. Asked, never copied."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from d2o.errors import InputError

OUTPUTS = ("o_proj", "dense")  # what families call the projection behind attention


class About:
    """Of one model. `words`: its tokenizer, text to ids without special tokens; None where nobody gave one."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.words: Callable[[str], list[int]] | None = None
        self._attentions: list[nn.Module] | None = None

    def __deepcopy__(self, memo: dict) -> About:
        return self

    @property
    def folder(self) -> str:
        """Where the model was loaded from; "" where that is nowhere."""
        return str(getattr(self.model.config, "_name_or_path", "") or "")

    def attention(self, layer: int) -> nn.Module:
        """The attention module of a layer, which has a projection behind it. InputError for a model of which they are
        not found."""
        if self._attentions is None:
            modules = [module for module in self.model.modules() if hasattr(module, "layer_idx")]
            found = [module for module in modules if isinstance(getattr(_behind(module), "weight", None), Tensor)]
            if len(found) != self.model.config.get_text_config().num_hidden_layers:
                what = f"{self.model.config.model_type}: no projection was found behind the attention of every layer"
                raise InputError(what, "take a model such as Llama, or a method that does not weigh outputs")
            self._attentions = found
        return self._attentions[layer]

    def output(self, layer: int) -> Tensor:
        """The weight `[hidden, Hq * D]` of the projection behind the attention of a layer. InputError as there."""
        return _behind(self.attention(layer)).weight


def _behind(attention: nn.Module) -> nn.Module | None:
    return next((getattr(attention, name) for name in OUTPUTS if hasattr(attention, name)), None)
