# SPDX-License-Identifier: Apache-2.0
"""The adapter carrier: a LoRA adapter for a sub-model, from one that was trained on the parent.

The update of a weight is ``B @ A``. What the weight loses of its rows, B loses of its rows; what it
loses of its columns, A loses of its columns. Nothing is trained or approximated.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.adapter.naming import travelling_name, travelling_names
from model.checkpoint.blocks import StoredPart
from model.checkpoint.directory import whole_directory
from model.checkpoint.format import StoredTensor, read_header
from model.checkpoint.names import TIED_HEAD, like, modality_of, ours, text_only
from model.checkpoint.reader import sha256
from model.checkpoint.shapes import model_shapes
from model.checkpoint.writer import write_file
from model.config import ModelConfig, TextConfig
from model.errors import CheckpointError, SliceError
from model.json_object import json_object
from model.slicing.count import Layout
from model.slicing.cuts import TOWER_PREFIXES, Kept, Placement, place
from model.slicing.lineage import write_lineage
from model.slicing.submodel import SubModel
from model.tower_config import Modality

ADAPTER_DIRECTORY = "adapter"  # in a slice, where its part of an adapter lies
ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # of every tensor in a PEFT file
BASE = ".base_layer"  # where PEFT keeps what it wraps


@dataclass(frozen=True)
class Factor:
    """What PEFT appends to a module's path, and which axis of the base weight this tensor carries."""

    suffix: str
    base_axis: int
    axis: int  # where the tensor carries it


FACTORS = (
    Factor(".lora_A.weight", base_axis=1, axis=1),
    Factor(".lora_B.weight", base_axis=0, axis=0),
    Factor(".lora_B.bias", base_axis=0, axis=0),
    Factor(".lora_embedding_A", base_axis=0, axis=1),
    Factor(".lora_embedding_B", base_axis=1, axis=0),
)
PATTERNS = ("rank_pattern", "alpha_pattern")
CHANGE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # starts of PEFT that do
# What PEFT chooses modules by, beside ``target_modules``; nothing is left to choose once those are spelled out.
SELECTIONS = ("exclude_modules", "layers_to_transform", "layers_pattern")
LAYER_PATH = re.compile(r"(?P<before>(?:.*\.)?(?P<kind>layers|conformer)\.)(?P<layer>\d+)(?P<after>(?:\..*)?)")


def slice_adapter(source: Path, target: Path, sub: SubModel, config: ModelConfig, *, overwrite: bool = False) -> None:
    """Write the part of a LoRA adapter that belongs to the sub-model ``sub``, as a PEFT directory.

    Args:
        source: A PEFT directory, trained on a model of ``config``.
        target: A directory that does not exist or is empty.
        sub: The part of the parent; the adapter loses what it changes of towers that are left out.
        config: The parent's config.
        overwrite: Whether another adapter at ``target`` may be replaced.

    Raises:
        CheckpointError: ``source`` is no LoRA adapter that can be read, or not one of this parent; or ``target`` is
            in use.
        SliceError: The sub-model does not fit the parent, something in the adapter cannot be cut, or nothing
            of it is left.
    """
    cut = prepare_adapter(source, sub, config)
    with whole_directory(Path(target), overwrite=overwrite, marker=ADAPTER_CONFIG_FILE) as directory:
        cut.write(directory)


@dataclass(frozen=True)
class CutAdapter:
    """A part of an adapter that nothing speaks against, of which no byte is written yet."""

    parts: Sequence[StoredPart]
    config: Mapping[str, Any]  # of PEFT
    lineage: Mapping[str, Any]

    def write(self, directory: Path) -> None:
        """Write it into an empty directory."""
        hashes = {ADAPTER_WEIGHTS_FILE: write_file(directory / ADAPTER_WEIGHTS_FILE, self.parts)}
        content = json.dumps(self.config, indent=2, sort_keys=True) + "\n"
        (directory / ADAPTER_CONFIG_FILE).write_text(content, encoding="utf-8")
        write_lineage(self.lineage, hashes, directory)


def prepare_adapter(source: Path, sub: SubModel, config: ModelConfig) -> CutAdapter:
    """Look at all that ``slice_adapter`` can be refused for, with its arguments and errors; nothing is written."""
    source = Path(source)
    sub.check(config)
    written, tensors = read(source)
    refuse_uncuttable(source, written, tensors)
    refuse_another_base(source, written, tensors, config)
    sliced = slice_tensors(tensors, sub, config.text)
    if sub.modalities is not None and config.only(sub.modalities).modalities == (Modality.text,):
        # The base becomes a text-only model, whose modules transformers names otherwise.
        sliced = {name: renamed(placement) for name, placement in sliced.items()}
    if not any(factor for _, factor in map(split, sliced)):
        raise SliceError(
            f"slice '{sub.name}': {source} adapts none of the kept layers and towers; nothing is left of it; leave"
            " adapter_path out, or keep what it adapts (skip_layers, modalities)"
        )
    lineage = {
        "spec": dataclasses.asdict(sub.spec),
        "parent": {"sha256": {ADAPTER_WEIGHTS_FILE: sha256(source / ADAPTER_WEIGHTS_FILE)}},
    }
    parts = [StoredPart(tensors[name], placement) for name, placement in sliced.items()]
    return CutAdapter(parts, slice_peft_config(written, tensors, sub), lineage)


def renamed(placement: Placement) -> Placement:
    """The same part, under the name that a text-only model of transformers has for it."""
    return dataclasses.replace(placement, name=PREFIX + text_only(placement.name.removeprefix(PREFIX)))


def read(source: Path) -> tuple[dict[str, Any], dict[str, StoredTensor]]:
    """Config of a PEFT directory, and where its tensors lie, by their names in it."""
    require_files(source)
    try:
        written = json_object((source / ADAPTER_CONFIG_FILE).read_bytes())
    except (ValueError, OSError) as error:
        raise CheckpointError(
            f"{source}: cannot be read as a PEFT adapter ({ADAPTER_CONFIG_FILE}: {error}); copy it anew"
        ) from None
    return written, read_header(source / ADAPTER_WEIGHTS_FILE)


def require_files(directory: Path) -> None:
    """Raise CheckpointError unless both files of a PEFT directory are there."""
    for name in (ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE):
        if not (directory / name).is_file():
            raise CheckpointError(f"{directory}: no {name} there; give the directory of a LoRA adapter")


def refuse_uncuttable(source: Path, written: dict[str, Any], tensors: Iterable[str]) -> None:
    """Raise SliceError, by name, for what has no part that a sub-model could use."""
    if (kind := written.get("peft_type")) != "LORA":
        raise CheckpointError(
            f"{source}: its peft_type is {kind!r}, and only 'LORA' can be sliced; merge it, then slice the model"
        )
    refuse_changed_base(source, written.get("init_lora_weights"))
    for name in tensors:
        if ".lora_magnitude_vector" in name:
            raise SliceError(
                f"{source}: '{name}' is a DoRA magnitude, a norm over all of a weight's columns;"
                " it does not hold for a part of them, so DoRA adapters cannot be sliced; merge, then slice the model"
            )
    for setting in ("use_dora", "layer_replication", "target_parameters", "trainable_token_indices"):
        if written.get(setting):
            raise SliceError(f"{source}: has {setting}, which cannot be sliced; merge, then slice the model")


def refuse_changed_base(directory: Path, start: object) -> None:
    """Raise CheckpointError for an adapter whose ``start`` changed the base it was trained on, which nobody saved."""
    if isinstance(start, str) and start.startswith(CHANGE_BASE):
        raise CheckpointError(
            f"{directory}: its init_lora_weights is '{start}', by which PEFT changes the base it is trained on, so it"
            " fits no published one; save it anew by PEFT's path_initial_model_for_weight_conversion"
        )


def refuse_another_base(
    source: Path, written: Mapping[str, Any], tensors: Mapping[str, StoredTensor], config: ModelConfig
) -> None:
    """Raise CheckpointError for what the decoder does not have, and sizes that are not its weights', or of one rank."""
    known = model_shapes(config, Layout.published)
    ranks: dict[str, set[int]] = {}
    for name, tensor in tensors.items():
        module, factor = split(name)
        weight = ours(weight_name(name))
        if weight not in known and modality_of(weight) is Modality.text and weight != TIED_HEAD:
            raise CheckpointError(
                f"{source}: '{name}' belongs to '{weight}', which the parent does not have; give the adapter of this"
                " checkpoint, or the checkpoint it was trained on"
            )
        if factor is None or weight not in known:
            continue
        found, expected = tensor.shape[factor.axis], known[weight][factor.base_axis]
        if found != expected:
            raise CheckpointError(
                f"{source}: '{name}' fits a weight of {found}, but the parent's '{weight}' has {expected}; give the"
                " adapter of this checkpoint, or the checkpoint it was trained on"
            )
        if len(tensor.shape) > 1:
            ranks.setdefault(module, set()).add(tensor.shape[1 - factor.axis])
    pattern = spell_pattern(written.get("rank_pattern") or {}, {module: ours(module) for module in ranks})
    for module, found in ranks.items():
        rank = pattern.get(travelling_name(ours(module)), written.get("r"))
        if found != {rank}:
            raise CheckpointError(
                f"{source}: the factors of '{module}' are of rank {', '.join(map(str, sorted(found)))}, but"
                f" {ADAPTER_CONFIG_FILE} says {rank}; the two files are not of one adapter: copy both anew"
            )


def slice_tensors(names: Iterable[str], sub: SubModel, config: TextConfig) -> dict[str, Placement]:
    """Where each tensor of a PEFT file goes in the sub-model's, under its new name in the same spelling."""
    return {name: placement for name in names if (placement := place_factor(name, sub, config))}


def place_factor(name: str, sub: SubModel, config: TextConfig) -> Placement | None:
    """Place one tensor of a PEFT file; None if its layer or tower is left out."""
    module, factor = split(name)
    base_name = weight_name(name)
    placement = place(ours(base_name), sub, config)
    if placement is None:
        return None
    new_name = like(base_name, placement.name)
    if factor is None:
        new_name = new_name if base_name == module else new_name.removesuffix(".weight") + f"{BASE}.weight"
        return Placement(PREFIX + new_name, placement.kept)
    carried = tuple(Kept(factor.axis, kept.ranges) for kept in placement.kept if kept.axis == factor.base_axis)
    return Placement(PREFIX + new_name.removesuffix(".weight") + factor.suffix, carried)


def split(name: str) -> tuple[str, Factor | None]:
    """The module a tensor of a PEFT file belongs to, and which of its factors it is (None: the name is no factor's)."""
    path = name.removeprefix(PREFIX)
    for factor in FACTORS:
        if path.endswith(factor.suffix):
            return path.removesuffix(factor.suffix), factor
    return path, None


def weight_name(name: str) -> str:
    """The weight that a tensor of a PEFT file is a factor of.

    Tensors that are no factors are weights: of a module trained in full, or of an embedding, which PEFT
    keeps beside its factors.
    """
    module, factor = split(name)
    return f"{module}.weight" if factor else module.replace(f"{BASE}.weight", ".weight")


def slice_peft_config(written: Mapping[str, Any], names: Iterable[str], sub: SubModel) -> dict[str, Any]:
    """``adapter_config.json`` of the sub-model's adapter, every module spelled out.

    How the parent's config chose its modules does not matter: those that have tensors are those it chose.

    Args:
        written: The parent's.
        names: Tensors of the parent's adapter.
        sub: The part of the parent.
    """
    moves = {module: renumbered(module, sub) for module in adapted_modules(names)}
    moved = {old: new for old, new in moves.items() if new is not None}
    changes = {setting: spell_pattern(written.get(setting) or {}, moved) for setting in PATTERNS}
    changes |= dict.fromkeys(SELECTIONS)
    changes |= {"base_model_name_or_path": None, "revision": None}  # the parent's base is not this adapter's
    in_full = written.get("modules_to_save")
    if in_full is not None:
        changes["modules_to_save"] = [new for entry in in_full if (new := renumbered(entry, sub)) is not None]
    return dict(written) | changes | {"target_modules": travelling_names(moved.values())}


def adapted_modules(names: Iterable[str]) -> set[str]:
    """Full paths of the modules that have factors among these tensors of a PEFT file."""
    return {module for module, factor in map(split, names) if factor}


def renumbered(path: str, sub: SubModel) -> str | None:
    """A module path with its layer's new number; None if it is left out; as it is if it names no layer."""
    media = [medium for medium in TOWER_PREFIXES if modality_of(f"{ours(path)}.") is medium]
    if not all(sub.has(medium) for medium in media):
        return None
    match = LAYER_PATH.fullmatch(path)
    if match is None:
        return path
    kept = sub.spec.kept_layers if match["kind"] == "layers" else sub.audio_layers
    if kept is None:
        return path
    layer = int(match["layer"])
    return f"{match['before']}{kept.index(layer)}{match['after']}" if layer in kept else None


def spell_pattern(pattern: Mapping[str, Any], modules: Mapping[str, str]) -> dict[str, Any]:
    """A rank or alpha pattern with one entry for each module it was meant for, by travelling name.

    Args:
        pattern: Expressions and their values. PEFT matches them to the end of the path a module had in the
            model that was trained, and takes the first that fits.
        modules: That path, which is the one in the file, and our path, of every module to spell out.
    """
    spelled: dict[str, Any] = {}  # ranks are whole; alphas need not be
    for path, our_path in modules.items():
        values = (value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", path))
        if (value := next(values, None)) is not None:
            spelled[travelling_name(our_path)] = value
    return spelled
