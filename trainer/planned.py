# SPDX-License-Identifier: Apache-2.0
"""What is to be trained, as far as memory hangs on it; no data, no weights."""

from __future__ import annotations

from dataclasses import dataclass

from model.adapter.config import AdapterConfig
from model.config import ModelConfig
from model.freezing import Part as Frozen
from model.slicing.spec import SliceSpec
from trainer.config import TrainerConfig
from trainer.optimizers.config import OptimConfig

PICTURE_PX = (768, 768)  # height and width, as published


@dataclass(frozen=True, kw_only=True)
class Planned:
    """What is to be trained, and how much at once.

    Args:
        width: Tokens of a row.
        document: Tokens of each example in it; the last one may be shorter.
        specs: The sub-models of a step, one after the other; none for the whole model.
        workers: Threads that make batches ahead, of one each.
        images: Pictures in a row.
        clips: Recordings in a row, as long as the audio tower takes them.
        picture_px: Height and width of a picture as the vision tower gets it.
        is_measured: Whether there are rows to be measured on, before training and after it.
    """

    config: ModelConfig
    adapter: AdapterConfig | None
    optim: OptimConfig
    trainer: TrainerConfig
    width: int
    document: int
    specs: tuple[SliceSpec, ...] = ()
    workers: int = 0
    images: int = 0
    clips: int = 0
    picture_px: tuple[int, int] = PICTURE_PX
    is_measured: bool = False
    freeze: tuple[Frozen, ...] = ()
    freeze_matching: tuple[str, ...] = ()

    @property
    def lengths(self) -> tuple[int, ...]:
        """What the model gets of each example in a row: all tokens but the last, after which nothing is to be said."""
        lengths = (self.document - 1,) * (self.width // self.document)
        return (*lengths, rest - 1) if (rest := self.width % self.document) > 1 else lengths

    @property
    def table_shape(self) -> tuple[int, int]:
        """Rows and columns of the table of per-layer embeddings."""
        text = self.config.text
        return text.vocab_size_per_layer_input, text.num_hidden_layers * text.hidden_size_per_layer_input
