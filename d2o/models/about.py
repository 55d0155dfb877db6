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
        self._outputs: list[Tensor] | None = None

    def __deepcopy__(self, memo: dict) -> About:
        return self

    @property
    def folder(self) -> str:
        """Where the model was loaded from; "" where that is nowhere."""
        return str(getattr(self.model.config, "_name_or_path", "") or "")

    def output(self, layer: int) -> Tensor:
        """The weight `[hidden, Hq * D]` of the projection behind the attention of a layer. InputError for a model whose
        projections are not found."""
        if self._outputs is None:
            modules = [module for module in self.model.modules() if hasattr(module, "layer_idx")]
            found = [next((getattr(m, name) for name in OUTPUTS if hasattr(m, name)), None) for m in modules]
            weights = [one.weight for one in found if isinstance(getattr(one, "weight", None), Tensor)]
            if len(weights) != self.model.config.get_text_config().num_hidden_layers:
                what = f"{self.model.config.model_type}: no projection was found behind the attention of every layer"
                raise InputError(what, "take a model such as Llama, or a method that does not weigh outputs")
            self._outputs = weights
        return self._outputs[layer]
