# SPDX-License-Identifier: Apache-2.0
"""All that decides which part of a checkpoint is cut out: the decoder's spec, and what stays of what is around it.

The spec alone is also what a forward pass takes. Towers, layers of the audio tower and the vocabulary are cut on
carriers only: no forward pass leaves a part of them out.
"""

from __future__ import annotations

from dataclasses import dataclass

from model.config import ModelConfig
from model.errors import SliceError
from model.slicing.spec import SliceSpec, is_whole
from model.slicing.vocabulary import Vocabulary
from model.tower_config import Modality


@dataclass(frozen=True)
class SubModel:
    """A part of a parent model, relative to the parent; None is all that the parent has.

    ``audio_layers`` are the kept conformer layers of the audio tower, by index in the parent, ascending.
    """

    spec: SliceSpec
    modalities: tuple[Modality, ...] | None = None  # text always stays, named or not
    audio_layers: tuple[int, ...] | None = None
    vocabulary: Vocabulary | None = None

    @property
    def name(self) -> str:
        """The spec's."""
        return self.spec.name

    def has(self, modality: Modality) -> bool:
        """Whether what belongs to this modality stays."""
        return self.modalities is None or modality is Modality.text or modality in self.modalities

    def check(self, config: ModelConfig) -> None:
        """Raise SliceError where this is not a part of ``config`` that can compute anything.

        Raises:
            ConfigError: There is no tower for one of the modalities.
        """
        self.spec.check(config.text)
        wanted = config if self.modalities is None else config.only(self.modalities)
        if self.audio_layers is not None:
            if wanted.audio is None:
                raise SliceError(
                    f"slice '{self.name}': layers of an audio tower are left out, but the sub-model has none;"
                    " leave out skip_audio_layers, or keep audio among the modalities"
                )
            check_audio_layers(self.name, self.audio_layers, wanted.audio.conf_num_hidden_layers)
        if self.vocabulary is not None:
            self.vocabulary.check(wanted)

    def then(self, second: SubModel) -> SubModel:
        """The description, in this sub-model's parent, of the part ``second`` of this sub-model.

        Raises:
            SliceError: ``second`` has something that this sub-model does not have.
        """
        if absent := [modality for modality in second.modalities or () if not self.has(modality)]:
            raise SliceError(
                f"slice '{second.name}': asks for {', '.join(absent)}, which slice '{self.name}' leaves out; leave out"
                " what it has no tower for"
            )
        first_audio, second_audio = self.audio_layers, second.audio_layers
        if first_audio is not None and second_audio is not None:
            check_audio_layers(second.name, second_audio, len(first_audio))
            second_audio = tuple(first_audio[layer] for layer in second_audio)
        vocabulary = second.vocabulary
        if self.vocabulary is not None and vocabulary is not None:
            vocabulary = self.vocabulary.then(vocabulary)
        modalities = self.modalities if second.modalities is None else second.modalities
        keeps_audio = modalities is None or Modality.audio in modalities
        return SubModel(
            self.spec.then(second.spec),
            modalities,
            (first_audio if second_audio is None else second_audio) if keeps_audio else None,
            self.vocabulary if vocabulary is None else vocabulary,
        )


def check_audio_layers(name: str, kept: tuple[int, ...], layers: int) -> None:
    """Raise SliceError unless the kept layers are some of the audio tower's, in order."""
    if not kept:
        raise SliceError(f"slice '{name}': skip_audio_layers leaves no layer of the audio tower; keep at least one")
    if odd := [layer for layer in kept if not is_whole(layer)]:
        raise SliceError(f"slice '{name}': kept audio layers are whole numbers from 0 on, and one is {odd[0]!r}")
    if list(kept) != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= layers:
        raise SliceError(
            f"slice '{name}': keeps layers {list(kept)} of the audio tower; they must be ascending, without repeats,"
            f" and among 0 to {layers - 1}"
        )
