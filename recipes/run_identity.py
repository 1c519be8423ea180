# SPDX-License-Identifier: Apache-2.0
"""What a run is, as ``recipes.train`` writes it into ``run.json``: read, and made that of a smaller model.

A run that trains several sizes goes on doing so if all of them lie in the sub-model, under their names, their
layers numbered as there. If one does not, the sub-model itself is trained from now on (elastic=off): what a size
would be that is larger than the model, nobody can say.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.adapter.config import AdapterConfig
from model.adapter.lora import attach
from model.adapter.targets import TargetSet, pattern_of
from model.config import ModelConfig, TextConfig
from model.errors import SliceError
from model.freezing import Part, freeze, modules_of
from model.gemma3n import Gemma3n
from model.slicing.spec import SliceSpec
from trainer.elastic import ElasticPolicy

Identity = Mapping[str, Any]
READ_HERE = frozenset({"model", "towers", "freeze", "base", "adapter", "specs", "elastic", "trainer"})


def adapter_of(identity: Identity) -> AdapterConfig | None:
    """The adapter that a run trains; None if it trains weights."""
    written = identity["adapter"]
    return written and AdapterConfig(**written | {"targets": [TargetSet(target) for target in written["targets"]]})


def towers_of(identity: Identity) -> list[str]:
    """The media that the model of a run takes in."""
    return [medium for medium, tower in identity["towers"].items() if tower]


def shape_of(config: ModelConfig) -> dict[str, Any]:
    """What an identity says of the model, as JSON has it."""
    towers = {"vision": config.vision, "audio": config.audio}
    shape = {"model": dataclasses.asdict(config.text)}
    shape["towers"] = {name: tower and dataclasses.asdict(tower) for name, tower in towers.items()}
    return json.loads(json.dumps(shape, default=str))


def trained_shapes(identity: Identity, config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of what a run trains of a model of this config, in the order that its optimizer has them."""
    empty, adapter = Gemma3n.build(config, device="meta"), adapter_of(identity)
    if adapter is None:
        freeze(empty, map(Part, identity["freeze"]), identity.get("freeze_matching", ()))
    model = empty if adapter is None else attach(empty, adapter)
    return {name: tuple(own.shape) for name, own in model.named_parameters() if own.requires_grad}


def sliced_identity(identity: Identity, small: ModelConfig, spec: SliceSpec) -> dict[str, Any]:
    """What ``matslice train`` will say that the sliced run is, but for its base, which is not there yet.

    Args:
        identity: The run's.
        small: The config of the sub-model.
        spec: The part of the run's model that it is.

    Raises:
        SliceError: What the run trains is chosen by names, which are others in the sub-model, or cannot be cut.
    """
    refuse_names(identity)
    empty = Gemma3n.build(small, device="meta")
    changed = {**identity, **shape_of(small), **sliced_sizes(identity, small.text, spec)}
    changed["freeze"] = [part for part in identity["freeze"] if modules_of(empty, Part(part))]
    if (adapter := adapter_of(identity)) is not None:
        names = [name for name, _ in empty.named_modules()]
        targets = [one.value for one in adapter.targets if any(map(pattern_of(one).fullmatch, names))]
        changed["adapter"] = identity["adapter"] | {"targets": targets}
    return changed


def refuse_names(identity: Identity) -> None:
    """Raise SliceError for a run of which a part cannot go on as it is: it may be merged, and the model sliced."""
    adapter = adapter_of(identity)
    keys = ("targets_matching", "exclude_matching", "rank_pattern", "alpha_pattern")
    named = [f"adapter.{key}" for key in keys if adapter is not None and getattr(adapter, key)]
    named += ["freeze_matching"] if identity.get("freeze_matching") else []
    way = "merge the adapter, or take the weights, and slice the model by itself"
    if named:
        raise SliceError(f"the run has {named[0]}, whose expressions mean other modules in a sub-model; {way}")
    if adapter is not None and adapter.dora:
        raise SliceError(f"the run has adapter.dora, whose magnitudes cannot be cut with a weight; {way}")


def sliced_sizes(identity: Identity, small: TextConfig, spec: SliceSpec) -> dict[str, Any]:
    """The sizes that are trained from now on, and how they are drawn; the module says which."""
    written = [SliceSpec(one["name"], tuple(one["kept_layers"]), tuple(one["ffn_widths"])) for one in identity["specs"]]
    trained = [inside for size in written if (inside := size_within(size, spec)) is not None]
    is_elastic = identity["elastic"]["policy"] != ElasticPolicy.off
    if is_elastic and len(trained) == len(written) and not all(size.is_full(small) for size in trained):
        return {"specs": as_json(trained), "elastic": identity["elastic"]}
    return {
        "specs": as_json([SliceSpec.full(small)]),
        "elastic": {"policy": ElasticPolicy.off.value, "probabilities": {}},
    }


def as_json(specs: list[SliceSpec]) -> list[dict[str, Any]]:
    """Sizes as an identity has them."""
    return json.loads(json.dumps([dataclasses.asdict(spec) for spec in specs]))


def size_within(size: SliceSpec, spec: SliceSpec) -> SliceSpec | None:
    """A size of the parent as a part of the sub-model ``spec``; None if it has what the sub-model lacks."""
    widest = dict(zip(spec.kept_layers, spec.ffn_widths, strict=True))
    if any(width > widest.get(layer, 0) for layer, width in zip(size.kept_layers, size.ffn_widths, strict=True)):
        return None
    return SliceSpec(size.name, tuple(map(spec.kept_layers.index, size.kept_layers)), size.ffn_widths)


def words_to_go_on(output: Path, base: Path, before: Identity, now: Identity) -> list[str]:
    """What is said differently to ``matslice train``: places, and those of the settings that mean another thing now."""
    words = [f"checkpoint={base}", f"trainer.output={output}", "trainer.resume=true"]
    if towers_of(now) != towers_of(before):
        words.append(f"modalities=[{','.join(['text', *towers_of(now)])}]")
    if now["freeze"] != before["freeze"]:
        words.append(f"freeze=[{','.join(now['freeze'])}]")
    if now["adapter"] != before["adapter"]:
        words.append(f"adapter.targets=[{','.join(now['adapter']['targets'])}]")
    if now["elastic"] != before["elastic"]:
        words.append("elastic=off")
    elif now["elastic"]["policy"] != ElasticPolicy.off and now["specs"] != before["specs"]:
        for size in now["specs"]:
            layers = range(len(now["model"]["layer_types"]))
            skipped = ",".join(str(layer) for layer in layers if layer not in size["kept_layers"])
            widths = ",".join(map(str, size["ffn_widths"]))
            words += [f"sizes.{size['name']}.{key}" for key in (f"skip_layers=[{skipped}]", f"ffn_widths=[{widths}]")]
    return words
