# SPDX-License-Identifier: Apache-2.0
"""What runtimes take for granted of a checkpoint of Gemma 3n, and where a given one differs.

Each function looks at the checkpoint as a runtime is given it, and says what is wrong with it in the
words of one line, or None. Which runtime has which needs stands in ``model/slicing/runtimes.py``.
What no slice can change (four streams, eight heads, …) is not asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from model.config import LayerType, ModelConfig, TextConfig
from model.slicing.spec import SliceSpec
from model.tower_config import Modality

# Constants in the sources of llama.cpp, true of both published models.
OWN_KV_LAYERS = 20  # layers that make keys and values; those behind them read
PERIOD = 5  # every fifth layer attends to everything
SPARSE_LAYERS, SPARSITY = 10, 0.95  # the first layers' share of silenced neurons; the others are dense

BUNDLES = {35: 16_384, 30: 8_192}  # layers and width of what Google ships for LiteRT: E4B and E2B


@dataclass(frozen=True)
class Shipped:
    """A checkpoint as a runtime is given it, and what it was cut from.

    ``has_dead_kv`` is whether the file holds the keys and values of layers that read another's; None
    if that is not known.
    """

    config: ModelConfig
    spec: SliceSpec
    parent: ModelConfig
    has_dead_kv: bool | None = None
    vocabulary_trimmed: bool = False
    audio_trimmed: bool = False

    @property
    def text(self) -> TextConfig:
        """The text decoder that the runtime computes."""
        return self.config.text

    @property
    def has_readers(self) -> bool:
        """Whether any layer attends to the keys and values of another."""
        return self.text.num_kv_shared_layers > 0


@dataclass(frozen=True)
class Need:
    """One thing that a runtime takes for granted.

    ``missing`` says what of it a checkpoint lacks and what to do, or None if it has it.
    """

    text: str
    missing: Callable[[Shipped], str | None]


def kind_at(position: int) -> LayerType:
    """The layer type that a runtime assumes which counts in fives."""
    return LayerType.full_attention if position % PERIOD == PERIOD - 1 else LayerType.sliding_attention


def sparsity_at(position: int) -> float:
    """The activation sparsity that a runtime assumes which does not read it."""
    return SPARSITY if position < SPARSE_LAYERS else 0.0


def differing_widths(shipped: Shipped) -> str | None:
    """Layers wider or narrower than the first, where only the first one's width is read."""
    widths = shipped.text.intermediate_size
    if len(set(widths)) == 1:
        return None
    return f"widths differ ({min(widths):,} to {max(widths):,}), only the first is read; make them one"


def other_count_of_producers(shipped: Shipped) -> str | None:
    """More or fewer layers with keys and values of their own than the runtime has as a constant."""
    first = shipped.text.first_shared_layer
    if first == OWN_KV_LAYERS:
        return None
    return f"{first} layers make keys and values, {OWN_KV_LAYERS} is a constant; skip layers behind those only"


def other_pattern(shipped: Shipped) -> str | None:
    """Layers that are local where the runtime counts a global one, or the other way round."""
    types = shipped.text.layer_types
    wrong = [position for position, kind in enumerate(types) if kind is not kind_at(position)]
    if not wrong:
        return None
    return f"layer {wrong[0]} is {types[wrong[0]]}, every fifth counts as global; skip whole blocks of {PERIOD}"


def other_sparsity(shipped: Shipped) -> str | None:
    """Sparse layers elsewhere than where the runtime has them."""
    pattern = shipped.text.activation_sparsity_pattern
    wrong = [position for position, sparsity in enumerate(pattern) if sparsity != sparsity_at(position)]
    if not wrong:
        return None
    return (
        f"layer {wrong[0]} has sparsity {pattern[wrong[0]]:g}, but the first {SPARSE_LAYERS} layers' being {SPARSITY}"
        " is a constant; keep the parent's sparse layers, all of them"
    )


def producers_elsewhere(shipped: Shipped) -> str | None:
    """A reader whose producer is not the last or the last but one of those before the readers."""
    text = shipped.text
    for reader in range(text.first_shared_layer, text.num_hidden_layers):
        back = 2 if text.layer_types[reader] is LayerType.sliding_attention else 1
        producer = text.kv_producer(reader)
        if producer != text.first_shared_layer - back:
            return (
                f"layer {reader} reads keys and values of layer {producer}, layer {text.first_shared_layer - back} is"
                " taken for its producer; keep the parent's last local and last global layer before its readers"
            )
    return None


def missing_kind(shipped: Shipped) -> str | None:
    """No local layer, or no global one, among those that make keys and values."""
    text = shipped.text
    missing = sorted(set(LayerType) - set(text.layer_types[: text.first_shared_layer]))
    return f"no {missing[0]} layer makes keys and values, it looks for one; keep one" if missing else None


def missing_dead_kv(shipped: Shipped) -> str | None:
    """Readers without keys and values, where the runtime asks every layer for them."""
    if shipped.has_dead_kv is False and shipped.has_readers:
        return "asks for keys and values in every layer, the file has none for readers; write dead_kv=zeros"
    return None


def unknown_dead_kv(shipped: Shipped) -> str | None:
    """That the file must have what nothing computes with, while it is not known whether it does."""
    if shipped.has_dead_kv is None and shipped.has_readers:
        return "if the file has keys and values in every layer, as published ones have; else write dead_kv=zeros"
    return None


def without_dead_kv(shipped: Shipped) -> str | None:
    """Which versions load a file that lacks what nothing computes with."""
    if shipped.has_dead_kv is False and shipped.has_readers:
        return "from September 2026 on (pull request 54917); for older versions write dead_kv=zeros"
    return None


def one_tower(shipped: Shipped) -> str | None:
    """A tower without the other: config classes of both have defaults, and null means these."""
    towers = shipped.config.modalities[1:]
    return f"has a tower for {towers[0]} alone; keep both or none (modalities=[text])" if len(towers) == 1 else None


def missing_tower(shipped: Shipped) -> str | None:
    """A tower that was left out, where both are always built."""
    if missing := [modality for modality in Modality if modality not in shipped.config.modalities]:
        return f"has no tower for {' and '.join(missing)}, both are always built; keep both"
    return None


def missing_vision(shipped: Shipped) -> str | None:
    """No vision tower, where one is always converted."""
    return None if shipped.config.vision else "has no tower for vision, one is always converted; keep it"


def text_only(shipped: Shipped) -> str | None:
    """A text-only model, where only the multimodal one's config and names are known."""
    if shipped.config.is_multimodal:
        return None
    return "is a text-only model, of which only the multimodal kind is known; keep a tower"


def no_old_rope(shipped: Shipped) -> str | None:
    """Rotary bases only in the form of transformers 5, where the older one is read."""
    published = shipped.config.publish()
    text = published.get("text_config", published)
    missing = [name for name in ("rope_theta", "rope_local_base_freq") if name not in text]
    return f"text_config has no {' and no '.join(missing)}; write the config anew" if missing else None


def trimmed_vocabulary(shipped: Shipped) -> str | None:
    """Fewer tokens, where the tokenizer is recognised by what it makes of a known text."""
    if shipped.vocabulary_trimmed:
        return "has a trimmed vocabulary, whose tokenizer its converter does not know; keep all tokens"
    return None


def moved_placeholders(shipped: Shipped) -> str | None:
    """Placeholders of media with other ids, where these are constants."""
    if shipped.vocabulary_trimmed:
        return "has a trimmed vocabulary, ids of images and sound are constants; keep all tokens"
    return None


def not_a_bundle(shipped: Shipped) -> str | None:
    """Anything but the two published models: nothing converts another one."""
    text = shipped.text
    same_text = (
        set(text.intermediate_size) == {BUNDLES.get(text.num_hidden_layers)}
        and not (other_pattern(shipped) or other_count_of_producers(shipped) or other_sparsity(shipped))
    )  # fmt: skip
    cut = shipped.vocabulary_trimmed or shipped.audio_trimmed or missing_tower(shipped)
    if same_text and not cut:
        return None
    return "is neither E4B nor E2B, and only Google's bundles of these exist; nothing converts other slices"


def bundle_weights(_: Shipped) -> str | None:
    """Whose weights those of a bundle are."""
    return "as Google's bundle, with its weights"


def cut_at_load(shipped: Shipped) -> str | None:
    """That the same can be had of the uncut parent, if the constants of a load-time slice hold for it."""
    parent, first = shipped.parent.text, shipped.parent.text.first_shared_layer
    sparsity = tuple(sparsity_at(layer) for layer in range(parent.num_hidden_layers))
    if (
        first != OWN_KV_LAYERS
        or parent.activation_sparsity_pattern != sparsity
        or not {first - 2, first - 1} <= set(shipped.spec.kept_layers)
        or shipped.spec.is_full(parent)
    ):
        return None
    return "also cut from its parent at load, by a row of a CSV (--matformer-config-path)"
