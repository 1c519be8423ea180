# SPDX-License-Identifier: Apache-2.0
"""LoRA around our own kinds of layer: narrowed with the layer, begun as PEFT begins it, scaled like a table."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from model.adapter.hiding import hidden
from model.errors import ConfigError
from model.layers.embedding import ScaledEmbedding

# PEFT imports transformers, and that torchvision wherever it is installed, though nothing here needs it: it costs
# a second, and one built for another torch than the one beside it cannot be imported at all.
with hidden("torchvision"):
    from peft.tuners.lora import Embedding, Linear
    from peft.tuners.lora.variants import DoraLinearVariant


class NarrowLoraLinear(Linear):
    """LoRA around a linear map, or DoRA; if that is a ``NarrowLinear``, weight and factors are narrowed alike.

    ``start`` holds what the factors began as, where that was a part of the weight (PiSSA, OLoRA). It is taken away of
    what the factors give, not of the weight: a base stays bit for bit the one that was published, and so an adapter
    that is saved fits it, one that is switched off leaves it, and no dtype rounds the difference.
    """

    start_down: Float[Tensor, "rank columns"] | None
    start_up: Float[Tensor, "rows rank"] | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Not in state dicts: what is saved of them is in the factors, see ``model.adapter.start``.
        self.register_buffer("start_down", None, persistent=False)
        self.register_buffer("start_up", None, persistent=False)

    def update_layer(self, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Add an adapter to the layer; PEFT calls this."""
        super().update_layer(adapter_name, *args, **kwargs)
        variant = self.lora_variant.get(adapter_name)
        if variant is not None and not isinstance(variant, DoraLinearVariant):
            raise ConfigError(f"adapter: {type(variant).__name__} cannot be narrowed with its layer; use plain LoRA")

    def get_delta_weight(self, adapter: str) -> Float[Tensor, "rows columns"]:
        """What the adapter adds to the weight, without magnitudes; PEFT calls this to merge."""
        update = super().get_delta_weight(adapter)
        if self.start_down is None or self.start_up is None:
            return update
        return update - self.scaling[adapter] * (self.start_up @ self.start_down)

    def forward(
        self, x: Float[Tensor, "... columns"], rows: int | None = None, columns: int | None = None
    ) -> Float[Tensor, "... rows"]:
        """The first ``rows`` outputs from the first ``columns`` inputs, adapter included."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        # A plain linear map in a layer of ours takes no sizes.
        whole = rows is None and columns is None
        result = self.base_layer(x) if whole else self.base_layer(x, rows=rows, columns=columns)
        if self.disable_adapters or self.merged:
            return result
        dtype, own = result.dtype, result
        for name in self.active_adapters:
            if name not in self.lora_A:
                continue
            # Factors are float32 beside a bfloat16 base, as everywhere in PEFT; only the sum is rounded.
            down, up, bias = self.narrow_factors(name, rows, columns)
            inputs = self._cast_input_dtype(x, down.dtype)
            dropped = self.lora_dropout[name](inputs)
            update = F.linear(F.linear(dropped, down), up, bias) * self.scaling[name]
            if name in self.lora_variant:
                ratio = self.magnitude_ratio(name, rows)
                # As in PEFT, inputs that the adapter does not see are not seen by what it changes of the weight either.
                is_whole = isinstance(self.lora_dropout[name], nn.Identity) or not self.training
                plain = self.without_bias(own, rows) if is_whole else self.linear_part(dropped, rows, columns)
                update = (ratio - 1) * plain + ratio * update
            if self.start_down is not None and self.start_up is not None:
                taken = F.linear(F.linear(inputs, self.start_down[:, :columns]), self.start_up[:rows])
                update = update - taken * self.scaling[name]
            result = result + update
        return result.to(dtype)

    def without_bias(self, result: Float[Tensor, "... rows"], rows: int | None) -> Float[Tensor, "... rows"]:
        """What a layer gave, without its bias, if it has one."""
        bias = cast(nn.Linear, self.get_base_layer()).bias
        return result if bias is None else result - bias[:rows]

    def linear_part(
        self, x: Float[Tensor, "... columns"], rows: int | None, columns: int | None
    ) -> Float[Tensor, "... rows"]:
        """A part of the weight applied to other inputs than the layer's."""
        return F.linear(x, self.narrow_weight(rows, columns, x))

    def narrow_factors(self, name: str, rows: int | None, columns: int | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """The parts of both factors, and of the second one's bias, that belong to a part of the weight."""
        down, up = (cast(nn.Linear, factors[name]) for factors in (self.lora_A, self.lora_B))
        bias = None if up.bias is None else up.bias[:rows]
        return down.weight[:, :columns], up.weight[:rows], bias

    def narrow_weight(self, rows: int | None, columns: int | None, like: Tensor) -> Float[Tensor, "rows columns"]:
        """A part of the base weight, in the dtype of ``like``."""
        return cast(nn.Linear, self.get_base_layer()).weight[:rows, :columns].to(like.dtype)

    def magnitude_ratio(self, name: str, rows: int | None) -> Float[Tensor, " rows"]:
        """DoRA's magnitudes over the lengths of the rows they belong to.

        Lengths are those of whole rows even if columns are cut: the narrowed layer then computes what the same part
        of the merged weight does. As in PEFT, no gradient goes through them.
        """
        magnitude = cast(nn.Linear, self.lora_magnitude_vector[name]).weight[:rows]
        with torch.no_grad():
            down, up, _ = self.narrow_factors(name, rows, None)
            weight = self.narrow_weight(rows, None, magnitude) + self.scaling[name] * (up @ down)
            lengths = torch.linalg.norm(weight, dim=1)
        return magnitude / lengths


class ScaledLoraEmbedding(Embedding):
    """LoRA around a ``ScaledEmbedding``: the adapter's rows are scaled like the table's."""

    def _get_embed_scale(self) -> Tensor:
        table = cast(ScaledEmbedding, self.get_base_layer())
        return torch.tensor(table.scale, device=table.weight.device, dtype=table.weight.dtype)
