# SPDX-License-Identifier: Apache-2.0
"""The model's shape, spelled as in the published ``config.json``, complete and checked.

``TextConfig`` is what the decoder relies on. ``ModelConfig`` adds the towers' configs, and the file around
them: everything we do not interpret (generation hints, library versions) is carried along and written back.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from model.errors import ConfigError
from model.json_object import json_object
from model.tower_config import AudioConfig, Modality, VisionConfig, like

CONFIG_FILE = "config.json"
MULTIMODAL, TEXT_ONLY = "gemma3n", "gemma3n_text"  # model_type; compared whole: "gemma3" is another model


class LayerType(StrEnum):
    """How far back a layer attends: to a window, or to everything."""

    sliding_attention = "sliding_attention"
    full_attention = "full_attention"


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The text decoder. Fields are those of ``config.json``; defaults are Gemma 3n's shared values.

    Per-layer fields are tuples with one entry per layer, and their length *is* the number of layers.

    Raises:
        ConfigError: A field contradicts another, or asks for something Gemma 3n does not have.

    Source: transformers' ``Gemma3nTextConfig``.
    """

    intermediate_size: tuple[int, ...]
    layer_types: tuple[LayerType, ...]
    activation_sparsity_pattern: tuple[float, ...]
    num_kv_shared_layers: int
    hidden_size: int = 2048
    num_attention_heads: int = 8
    num_key_value_heads: int = 2
    head_dim: int = 256
    sliding_window: int = 512  # tokens, the attending one included
    max_position_embeddings: int = 32_768  # tokens
    rope_theta: float = 1_000_000.0  # full_attention layers
    rope_local_base_freq: float = 10_000.0  # sliding_attention layers
    rms_norm_eps: float = 1e-6
    final_logit_softcapping: float = 30.0
    vocab_size: int = 262_400
    vocab_size_per_layer_input: int = 262_144
    hidden_size_per_layer_input: int = 256
    altup_num_inputs: int = 4
    altup_coef_clip: float | None = 120.0
    altup_correct_scale: bool = True
    laurel_rank: int = 64
    initializer_range: float = 0.02
    pad_token_id: int = 0
    eos_token_id: tuple[int, ...] = (1,)
    bos_token_id: int = 2

    def __post_init__(self) -> None:
        layers = self.num_hidden_layers
        for name in ("intermediate_size", "activation_sparsity_pattern"):
            if (found := len(getattr(self, name))) != layers:
                raise ConfigError(
                    f"config: {name} has {found} entries, but layer_types has {layers};"
                    " per-layer fields need one entry per layer"
                )
        check_numbers(self)
        if layers == 0 or min(self.intermediate_size) <= 0:
            raise ConfigError("config: a model needs at least one layer, and every layer at least one neuron")
        if not all(0 <= sparsity < 1 for sparsity in self.activation_sparsity_pattern):
            raise ConfigError("config: activation_sparsity_pattern must hold shares in [0, 1)")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"config: {self.num_attention_heads} attention heads cannot share"
                f" {self.num_key_value_heads} key/value heads evenly"
            )
        if self.head_dim % 2:
            raise ConfigError(f"config: head_dim is {self.head_dim}; rotary embedding needs an even one")
        if not 0 <= self.num_kv_shared_layers < layers:
            raise ConfigError(
                f"config: num_kv_shared_layers is {self.num_kv_shared_layers} of {layers} layers;"
                f" allowed are 0 to {layers - 1}"
            )
        if missing := sorted(set(self.layer_types) - set(self.layer_types[: self.first_shared_layer])):
            raise ConfigError(
                f"config: the last {self.num_kv_shared_layers} layers read keys and values of earlier ones,"
                f" but no layer before {self.first_shared_layer} is of type {', '.join(missing)}"
            )

    @property
    def num_hidden_layers(self) -> int:
        """How many decoder layers there are."""
        return len(self.layer_types)

    @property
    def first_shared_layer(self) -> int:
        """The first layer that makes no keys and values of its own."""
        return self.num_hidden_layers - self.num_kv_shared_layers

    def kv_producer(self, layer: int) -> int:
        """The layer whose keys and values ``layer`` attends to: itself, or the last unshared one of its type."""
        if layer < self.first_shared_layer:
            return layer
        kind = self.layer_types[layer]
        return max(i for i in range(self.first_shared_layer) if self.layer_types[i] is kind)

    @classmethod
    def parse(cls, published: Mapping[str, Any]) -> TextConfig:
        """Read the text part of a published ``config.json``: old or new form, int or list widths.

        Raises:
            ConfigError: A value is missing, malformed, or of a model we do not implement.
        """
        refuse_unsupported(published)
        layers = integer(published, "num_hidden_layers", 35)
        types = published.get("layer_types") or [
            "full_attention" if (i + 1) % 5 == 0 else "sliding_attention" for i in range(layers)
        ]
        sparse = 10 if layers > 10 else 0  # transformers' default where the field is absent
        widths = published.get("intermediate_size", 16_384)
        sparsity = published.get("activation_sparsity_pattern")
        theta, local_theta = rotary_bases(published)
        values: dict[str, Any] = {
            "intermediate_size": per_layer("intermediate_size", widths, layers, int),
            "layer_types": per_layer("layer_types", types, layers, layer_type),
            "activation_sparsity_pattern": per_layer(
                "activation_sparsity_pattern", [0.95] * sparse + [0.0] * (layers - sparse) if sparsity is None
                else sparsity, layers, float,
            ),
            "num_kv_shared_layers": integer(published, "num_kv_shared_layers", 15),
            "rope_theta": theta,
            "rope_local_base_freq": local_theta,
        }  # fmt: skip
        eos = published.get("eos_token_id", 1)
        values["eos_token_id"] = tuple(eos) if isinstance(eos, list) else (eos,)
        for known in dataclasses.fields(cls):
            if known.name not in values and published.get(known.name) is not None:
                values[known.name] = like(known.default, published[known.name], known.name)
        if "altup_coef_clip" in published and published["altup_coef_clip"] is None:
            values["altup_coef_clip"] = None  # no clipping, which differs from not saying
        return cls(**values)

    def publish(self) -> dict[str, Any]:
        """The fields as transformers 5 reads them; rotary bases in the older form too, which mlx-lm and Ollama read."""
        fields = dataclasses.asdict(self)
        theta, local_theta = self.rope_theta, self.rope_local_base_freq
        for name in ("intermediate_size", "activation_sparsity_pattern"):
            fields[name] = list(fields[name])
        return fields | {
            "model_type": TEXT_ONLY,
            "layer_types": [kind.value for kind in self.layer_types],
            "num_hidden_layers": self.num_hidden_layers,
            "eos_token_id": self.eos_token_id[0] if len(self.eos_token_id) == 1 else list(self.eos_token_id),
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": theta},
                "sliding_attention": {"rope_type": "default", "rope_theta": local_theta},
            },
            "hidden_activation": "gelu_pytorch_tanh",
            "altup_active_idx": 0,
            "attention_bias": False,
            "attention_dropout": 0.0,
            "tie_word_embeddings": True,
        }


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A whole ``config.json``: the text decoder, the towers beside it, and what the file said besides.

    Raises:
        ConfigError: The ids of text and media do not fit together.
    """

    text: TextConfig
    vision: VisionConfig | None = None
    audio: AudioConfig | None = None
    published: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        towers = [tower for tower in (self.vision, self.audio) if tower is not None]
        for tower in towers:
            if tower.ids.start < self.text.vocab_size_per_layer_input or tower.ids.stop > self.text.vocab_size:
                raise ConfigError(
                    f"config: a tower's ids are {tower.ids.start} to {tower.ids.stop - 1}; they must lie behind the"
                    f" text's {self.text.vocab_size_per_layer_input} (vocab_size_per_layer_input) and before"
                    f" {self.text.vocab_size} (vocab_size)"
                )
        if len(towers) == 2 and set(towers[0].ids) & set(towers[1].ids):
            raise ConfigError("config: the ids of vision_config and audio_config overlap (vocab_offset, vocab_size)")
        taken = {self.text.pad_token_id, self.text.bos_token_id, *self.text.eos_token_id}
        for name, tower in (("boi_token_id", self.vision), ("boa_token_id", self.audio)):
            if tower is None:
                continue
            begin = tower.tokens.begin_id
            if begin in taken or not 0 <= begin < self.text.vocab_size_per_layer_input:
                raise ConfigError(
                    f"config: {name} is {begin}; it must be one of the text's {self.text.vocab_size_per_layer_input}"
                    " ids (vocab_size_per_layer_input) and stand for nothing else: not for padding, for begin or end"
                    " of a text, or for the other medium"
                )
            taken.add(begin)

    @property
    def is_multimodal(self) -> bool:
        """Whether there is a tower beside the text decoder."""
        return self.vision is not None or self.audio is not None

    @property
    def is_published_multimodal(self) -> bool:
        """Whether the file this was read from is of a multimodal model, whose towers may have been left out since."""
        return self.is_multimodal or self.published.get("model_type") == MULTIMODAL

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """What a model of this config takes in: text, and what it has a tower for."""
        towers = ((Modality.vision, self.vision), (Modality.audio, self.audio))
        return (Modality.text, *(modality for modality, tower in towers if tower is not None))

    def only(self, modalities: Iterable[Modality]) -> ModelConfig:
        """The config without the towers of other modalities; text stays, named or not.

        Without a tower, ids of its medium's vocabulary are read from the text's table like any other id.

        Raises:
            ConfigError: There is no tower for one of them.
        """
        wanted = {Modality.text, *modalities}
        if missing := sorted(wanted - set(self.modalities)):
            raise ConfigError(
                f"modalities: {', '.join(missing)} asked for, but this model has {', '.join(self.modalities)};"
                " leave out what it has no tower for"
            )
        vision = self.vision if Modality.vision in wanted else None
        audio = self.audio if Modality.audio in wanted else None
        return dataclasses.replace(self, vision=vision, audio=audio)

    @classmethod
    def read(cls, directory: Path | str) -> ModelConfig:
        """Read ``config.json`` of a checkpoint directory.

        Raises:
            ConfigError: There is none, it is not JSON, or it is of another model.
        """
        path = Path(directory) / CONFIG_FILE
        try:
            published = json_object(path.read_bytes())
        except FileNotFoundError:
            raise ConfigError(f"{directory}: no {CONFIG_FILE} there; give the directory of a checkpoint") from None
        except json.JSONDecodeError as error:
            raise ConfigError(f"{path}:{error.lineno}: not JSON ({error.msg}); copy it anew") from None
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); copy it anew") from None
        except (ValueError, OSError) as error:
            raise ConfigError(f"{path}: cannot be read ({error}); copy it anew") from None
        kind = published.get("model_type")
        if kind not in (MULTIMODAL, TEXT_ONLY):
            raise ConfigError(f"{path}: model_type is {kind!r}; matslice reads '{MULTIMODAL}' and '{TEXT_ONLY}'")
        try:
            part = published.get("text_config") or {} if kind == MULTIMODAL else published
            if not isinstance(part, dict):
                raise ConfigError(f"text_config is {part!r}; it must be an object")
            if kind == MULTIMODAL and published.get("eos_token_id") is not None:
                part = part | {"eos_token_id": published["eos_token_id"]}  # of tuned models, the fuller list
            text = TextConfig.parse(part)
            towers: dict[str, Any] = {}
            if kind == MULTIMODAL and published.get("vision_config", {}) is not None:
                towers["vision"] = VisionConfig.parse(published)
            if kind == MULTIMODAL and published.get("audio_config", {}) is not None:
                towers["audio"] = AudioConfig.parse(published)
            return cls(text=text, **towers, published=published)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None

    def publish(self) -> dict[str, Any]:
        """The content of a ``config.json`` that transformers 5 loads; with one tower only, that matslice loads."""
        carried = dict(self.published)
        for tower, kind in ((self.vision, VisionConfig), (self.audio, AudioConfig)):
            for name in kind.TOKEN_FIELDS if tower is None else ():
                carried.pop(name, None)  # ids of a medium that the model knows nothing of
        if not self.is_multimodal:
            text = carried.pop("text_config", {}) or {}
            kept = without_media(carried) | text if self.is_published_multimodal else carried
            return without_old_forms(kept) | {"architectures": ["Gemma3nForCausalLM"]} | self.text.publish()
        content = {"architectures": ["Gemma3nForConditionalGeneration"]} | carried | {"model_type": MULTIMODAL}
        for name, tower in (("vision_config", self.vision), ("audio_config", self.audio)):
            # Null says that there is none; leaving it out would say that it is as published.
            content[name] = None if tower is None else (carried.get(name) or {}) | tower.publish()
            content |= {} if tower is None else tower.publish_tokens()
        content["text_config"] = without_old_forms(carried.get("text_config") or {}) | self.text.publish()
        return content

    def write(self, directory: Path) -> None:
        """Write ``config.json`` into ``directory``."""
        content = json.dumps(self.publish(), indent=2, sort_keys=True) + "\n"
        (directory / CONFIG_FILE).write_text(content, encoding="utf-8")


def without_media(published: Mapping[str, Any]) -> dict[str, Any]:
    """What the top level of a multimodal file says that a text-only file says too."""
    return {key: published[key] for key in ("transformers_version", "dtype", "torch_dtype") if key in published}


def without_old_forms(published: Mapping[str, Any]) -> dict[str, Any]:
    """Drop the file's own spellings of rotary bases; ``publish`` says them anew, so that no two differ."""
    return {k: v for k, v in published.items() if k not in ("rope_theta", "rope_local_base_freq", "rope_scaling")}


def refuse_unsupported(published: Mapping[str, Any]) -> None:
    """Raise ConfigError for values under which Gemma 3n would compute something else."""
    supported = {
        "altup_active_idx": 0,  # the reference adds the per-layer input to streams 1.. whatever this says
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "tie_word_embeddings": True,
        "attention_dropout": 0.0,
    }
    if published.get("final_logit_softcapping", 30.0) is None:
        raise ConfigError("final_logit_softcapping is null; Gemma 3n caps its scores, so it must be a number")
    for name, allowed in supported.items():
        if (found := published.get(name, allowed)) != allowed:
            raise ConfigError(f"{name} is {found!r}; Gemma 3n has {allowed!r}, and nothing else is implemented")


def rotary_bases(published: Mapping[str, Any]) -> tuple[float, float]:
    """The global and the local rotary base, from the new form or the old one."""
    theta = published.get("rope_theta", 1_000_000.0)
    local_theta = published.get("rope_local_base_freq", 10_000.0)
    parameters = published.get("rope_parameters") or {}
    if not set(parameters) <= set(LayerType) or not all(isinstance(kind, dict) for kind in parameters.values()):
        raise ConfigError(f"rope_parameters is {parameters!r}; it must hold an object each for {', '.join(LayerType)}")
    for kind in (*parameters.values(), published.get("rope_scaling") or {}):
        rope_type = kind.get("rope_type", kind.get("type", "default"))
        if rope_type != "default":
            raise ConfigError(f"rope_type is {rope_type!r}; Gemma 3n has 'default', and no scaling is implemented")
    return (
        float(parameters.get("full_attention", {}).get("rope_theta", theta)),
        float(parameters.get("sliding_attention", {}).get("rope_theta", local_theta)),
    )


def check_numbers(config: TextConfig) -> None:
    """Raise ConfigError for sizes, bounds and ids that no decoder can have."""
    for name in ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "sliding_window",
                 "vocab_size", "vocab_size_per_layer_input", "hidden_size_per_layer_input",
                 "altup_num_inputs", "laurel_rank", "final_logit_softcapping", "rms_norm_eps",
                 "rope_theta", "rope_local_base_freq"):  # fmt: skip
        if not 0 < getattr(config, name) < math.inf:  # nor NaN, which a JSON file may hold
            raise ConfigError(f"config: {name} is {getattr(config, name)}; it must be positive and finite")
    if not 0 <= config.initializer_range < math.inf or not (config.altup_coef_clip or 0.0) >= 0:
        raise ConfigError("config: initializer_range and altup_coef_clip must be numbers, and not negative")
    if not 0 <= config.pad_token_id < min(config.vocab_size, config.vocab_size_per_layer_input):
        raise ConfigError(
            f"config: pad_token_id is {config.pad_token_id}; it must be one of the text's"
            f" {config.vocab_size_per_layer_input} ids (vocab_size_per_layer_input)"
        )


def integer(published: Mapping[str, Any], name: str, default: int) -> int:
    """A whole number, or ConfigError."""
    value = published.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConfigError(f"{name} is {value!r}; it must be a whole number")
    return value


def per_layer(name: str, value: Any, layers: int, convert: Any) -> tuple[Any, ...]:
    """One entry per layer; a single width stands for all."""
    if isinstance(value, int) and name == "intermediate_size":
        value = [value] * layers
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ConfigError(f"{name} is {value!r}; it must be a list with one entry per layer")
    if len(value) != layers:
        raise ConfigError(f"{name} has {len(value)} entries for {layers} layers (num_hidden_layers); give one each")
    kind = {int: int, float: (int, float)}.get(convert, str)
    if not all(isinstance(entry, kind) and not isinstance(entry, bool) for entry in value):
        raise ConfigError(f"{name} is {value!r}; an entry is of the wrong kind")
    return tuple(convert(entry) for entry in value)


def layer_type(name: str) -> LayerType:
    """The layer type of this name, or ConfigError."""
    if name not in LayerType.__members__:
        raise ConfigError(f"layer_types has {name!r}; allowed are {', '.join(LayerType)}")
    return LayerType(name)
