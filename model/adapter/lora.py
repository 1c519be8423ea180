# SPDX-License-Identifier: Apache-2.0
"""LoRA by PEFT: attach, save, load, merge. Only this file and the layers beside it import peft.

An adapted feed-forward layer can be narrowed like a plain one: the factors lose exactly what the base
weight loses, so a sub-model's adapter is the part of its parent's adapter that the table of cuts says.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model.adapter.config import AdapterConfig
from model.adapter.hiding import hidden
from model.adapter.layers import NarrowLoraLinear, ScaledLoraEmbedding
from model.adapter.naming import travelling_names
from model.adapter.start import begin, check_starts, double, starts, take_starts, with_starts
from model.adapter.targets import UNCALLED, check_patterns, matches, resolve_targets
from model.checkpoint.checking import misfit
from model.checkpoint.directory import whole_directory
from model.checkpoint.format import METADATA
from model.checkpoint.names import PER_LAYER_TABLE, TOKEN_TABLE, modality_of, ours, text_only, unused
from model.checkpoint.saving import check_plain
from model.config import ModelConfig, TextConfig
from model.errors import CheckpointError
from model.gemma3n import Gemma3n
from model.layers.embedding import ScaledEmbedding, TablePlacement
from model.slicing.adapter import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_WEIGHTS_FILE,
    BASE,
    PATTERNS,
    PREFIX,
    SELECTIONS,
    adapted_modules,
    refuse_changed_base,
    require_files,
    spell_pattern,
    weight_name,
)
from model.tower_config import Modality

# PEFT imports transformers, and that torchvision wherever it is installed, though nothing here needs it: it costs
# a second, and one built for another torch than the one beside it cannot be imported at all.
with hidden("torchvision"):
    from peft import LoraConfig, PeftModel, PeftType, get_peft_model
    from peft.config import PeftConfig
    from peft.utils.save_and_load import get_peft_model_state_dict, set_peft_model_state_dict

MAGNITUDE = ".lora_magnitude_vector"  # what DoRA has beside its factors
ADAPTER = "default"  # PEFT's name of the one adapter a model has here


def base_of(model: Gemma3n | PeftModel) -> Gemma3n:
    """The model itself, without what an adapter wraps around it."""
    return model if isinstance(model, Gemma3n) else cast(Gemma3n, model.get_base_model())


def attach(model: Gemma3n, config: AdapterConfig) -> PeftModel:
    """Freeze ``model``, put a fresh LoRA adapter into it, and give what is to be trained.

    The result is called like the model, ``spec`` included. Factors are float32 whatever the model's dtype.
    The update is zero at first. ``model`` itself is changed: its layers are wrapped in place, their weights as they
    are.

    Raises:
        ConfigError: A target set or an expression matches nothing, or a module cannot begin as asked for.
        CheckpointError: The model has an adapter already.
    """
    check_plain(model, "adapter")
    targets = targets_of(model, config)
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=targets,
        rank_pattern=dict(config.rank_pattern),
        alpha_pattern=dict(config.alpha_pattern),
        use_rslora=config.rslora,
        use_dora=config.dora,
        init_lora_weights="gaussian" if config.init == "gaussian" else True,
    )
    adapted = cast(PeftModel, get_peft_model(model, with_our_layers(lora)))
    begin(adapted, config, ADAPTER)
    return adapted.train()


def targets_of(model: nn.Module, config: AdapterConfig) -> list[str]:
    """Full paths of the modules of ``model`` that an adapter would sit on, in the model's order.

    Raises:
        ConfigError: Something that chooses modules matches none, or one of them cannot begin as asked for.
    """
    targets = resolve_targets(
        model, config.targets, matching=config.targets_matching, excluded=config.exclude_matching
    )  # fmt: skip
    patterns = {"rank_pattern": config.rank_pattern, "alpha_pattern": config.alpha_pattern}
    check_patterns(targets, patterns)
    check_starts(model, targets, config)
    return targets


def describe_targets(model: nn.Module, config: AdapterConfig) -> list[str]:
    """Where an adapter would sit, line by line: each set and expression with its number of modules and one of them."""
    found = matches(model, config.targets, config.targets_matching)
    lines = [f"  {what}: {len(names)} modules, such as {names[0]}" for what, names in found.items()]
    return [f"adapter: {len(targets_of(model, config))} modules", *lines]


def load_adapter(model: Gemma3n, directory: Path | str, *, trainable: bool = False) -> PeftModel:
    """Put a saved LoRA adapter into ``model``, strictly: every tensor finds its place and every place its tensor.

    Reads any PEFT directory, also one trained on transformers' Gemma 3n, multimodal or text-only. The result is in
    evaluation mode, or in training mode if it is ``trainable``: dropout is part of training only.

    Raises:
        CheckpointError: The directory is no LoRA adapter, one of a model of another shape, or of AltUp's
            coefficients; or the model has an adapter already.
    """
    adapted, tensors = put_in(model, Path(directory), trainable=trainable)
    set_peft_model_state_dict(adapted, tensors, adapter_name=ADAPTER)
    return adapted.train(trainable)


def check_adapter(
    config: ModelConfig,
    directory: Path | str,
    *,
    table: TablePlacement = TablePlacement.device,
    merged: bool = False,
) -> frozenset[Modality]:
    """Whose modules a saved adapter changes; it is held against the shape of a model of which no weight is read.

    Args:
        config: That of the model.
        directory: Of the adapter.
        table: Where the model's table of per-layer embeddings is going to lie.
        merged: Whether it is going to be merged.

    Raises:
        CheckpointError: As ``load_adapter``; or the adapter changes the table, which is not on the device; or it is to
            be merged and cannot be.
    """
    _, tensors = put_in(Gemma3n.build(config, device="meta"), Path(directory), trainable=False)
    module = PREFIX + PER_LAYER_TABLE.removesuffix("weight")
    if table is not TablePlacement.device and any(name.startswith(module) for name in tensors):
        raise CheckpointError(
            f"{directory}: changes the per-layer table, which takes no adapter where it lies (per_layer_table is"
            f" {table}); set per_layer_table=device"
        )
    if merged:
        refuse_head(tensors, str(directory))
    return frozenset(map(modality_of, adapted_modules(tensors)))


def put_in(model: Gemma3n, directory: Path, *, trainable: bool) -> tuple[PeftModel, dict[str, Tensor]]:
    """``model`` with places for a saved adapter, and the tensors that belong there; raises as ``load_adapter``."""
    check_plain(model, str(directory))
    lora, tensors = read_adapter(directory, model.config.text)
    refuse_uncalled(directory, tensors)
    refuse_absent(directory, tensors, model.config)
    lora.inference_mode = not trainable
    lora.task_type = None  # PEFT's task classes expect transformers' call signature
    try:
        adapted = PeftModel(model, with_our_layers(lora), ADAPTER)
    except ValueError as error:  # PEFT's word for targets that are not in the model
        raise CheckpointError(f"{directory}: does not fit this model ({error})") from error
    try:
        check_factors(directory, tensors, adapter_tensors(adapted))
    except CheckpointError:
        cast(Any, adapted).unload()
        raise
    return adapted, tensors


def save_adapter(adapted: PeftModel, directory: Path | str, *, overwrite: bool = False) -> None:
    """Write the adapter of a model as an ordinary PEFT directory.

    It loads onto our model, and by ``PeftModel.from_pretrained`` onto the same base in transformers:
    tensors are named as there, which differs between a multimodal base and a text-only one.

    Raises:
        CheckpointError: ``directory`` is in use, or the model has several adapters.
    """
    check_sole(adapted)
    base, tensors = cast(Gemma3n, adapted.get_base_model()), adapter_tensors(adapted)
    lora = copy.copy(cast(LoraConfig, adapted.peft_config[ADAPTER]))
    modules = adapted_modules(tensors)
    spell_patterns(lora, {module: module for module in modules})
    spell_targets(lora, modules)  # PEFT shortens long lists to leaf names, which modules of the towers have, too
    lora.inference_mode = True
    if starts(adapted):
        double(lora)
    with whole_directory(Path(directory), overwrite=overwrite, marker=ADAPTER_CONFIG_FILE) as aside:
        stored = {file_name(name, base.config): value.detach().cpu().contiguous() for name, value in tensors.items()}
        save_file(stored, aside / ADAPTER_WEIGHTS_FILE, metadata=METADATA)
        lora.save_pretrained(str(aside))


def merge(adapted: PeftModel) -> Gemma3n:
    """Add the adapter's updates to the weights and give the plain model, under its original names.

    The adapted model is used up. Sums are taken in float32 and rounded once to the model's dtype.

    Raises:
        CheckpointError: The adapter changes the token table, the sum is not finite, or there are several adapters.
    """
    check_sole(adapted)
    refuse_head(adapter_tensors(adapted), "adapter")
    merged = cast(Gemma3n, cast(Any, adapted).merge_and_unload())
    for name, parameter in merged.named_parameters():
        if not torch.isfinite(parameter).all():
            raise CheckpointError(f"adapter: '{name}' is not finite after merging; the adapter or its base is broken")
    return merged.requires_grad_(True)


def refuse_head(tensors: Iterable[str], where: str) -> None:
    """Raise CheckpointError where an adapter changes the table that is also the head."""
    if TOKEN_TABLE.removesuffix(".weight") in adapted_modules(tensors):
        raise CheckpointError(
            f"{where}: changes the token table's reading, but the table is also the head; merging would change the"
            " head too, so such an adapter cannot be merged; use it beside the weights (adapter_path=… merge=false)"
        )


def check_sole(adapted: PeftModel) -> None:
    """Raise CheckpointError unless a model has one adapter, under the name we give it."""
    if (names := sorted(adapted.peft_config)) != [ADAPTER]:
        raise CheckpointError(
            f"adapter: the model has the adapters {names}, but one per model is supported, named '{ADAPTER}';"
            " save and merge them from models of their own, each made by attach or load_adapter"
        )


def with_our_layers(lora: LoraConfig) -> LoraConfig:
    """The same config, under which PEFT wraps our own kinds of layer in our own kinds of LoRA."""
    lora._register_custom_module({nn.Linear: NarrowLoraLinear, ScaledEmbedding: ScaledLoraEmbedding})  # noqa: SLF001 (documented)
    return lora


def adapter_tensors(adapted: PeftModel) -> dict[str, Tensor]:
    """What is saved of a model, by the names that PEFT saves it under."""
    return with_starts(adapted, trained_tensors(adapted))


def trained_tensors(adapted: PeftModel) -> dict[str, Tensor]:
    """What is trained of a model, by the same names."""
    return get_peft_model_state_dict(adapted, adapter_name=ADAPTER, save_embedding_layers=False)


@torch.no_grad()
def restore(adapted: PeftModel, directory: Path) -> None:
    """Give the factors that are trained, in place, the values they had when they were saved by ``save_adapter``.

    Raises:
        CheckpointError: The directory is no LoRA adapter, or not one of this model with these settings.
    """
    _, stored = read_adapter(directory, cast(Gemma3n, adapted.get_base_model()).config.text)
    check_factors(directory, stored, adapter_tensors(adapted))
    stored = take_starts(adapted, stored)
    for name, tensor in trained_tensors(adapted).items():
        tensor.copy_(stored[name])


def file_name(name: str, base: ModelConfig) -> str:
    """The name a tensor of an adapter has in the file: that of the module it belongs to in transformers.

    PEFT 0.21 does not translate between transformers' multimodal and text-only names. What counts is the base as
    it stands in its file, for transformers reads all of it, with the towers that were left out here.
    """
    return name if base.is_published_multimodal else PREFIX + text_only(name.removeprefix(PREFIX))


def read_adapter(directory: Path, config: TextConfig) -> tuple[LoraConfig, dict[str, Tensor]]:
    """Config and tensors of a PEFT directory, both under our names, without what a model of ``config`` never reads."""
    require_files(directory)  # for what is missing, PEFT would ask the hub
    try:
        lora = PeftConfig.from_pretrained(str(directory))
        tensors = load_file(directory / ADAPTER_WEIGHTS_FILE)
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise CheckpointError(f"{directory}: cannot be read as a PEFT adapter ({error})") from error
    if not isinstance(lora, LoraConfig) or lora.peft_type != PeftType.LORA:
        raise CheckpointError(f"{directory}: is a {lora.peft_type} adapter; only LoRA is supported")
    refuse_changed_base(directory, lora.init_lora_weights)
    refuse_trained_tokens(directory, lora, tensors)
    lora.init_lora_weights = True  # the cheapest: all of it is overwritten
    unread = unused(config)
    tensors = {name: tensor for name, tensor in tensors.items() if ours(weight_name(factor_of(name))) not in unread}
    modules = {module: ours(module) for module in adapted_modules(tensors)}
    spell_patterns(lora, modules)
    if isinstance(lora.target_modules, (list, set)) and not lora.exclude_modules:
        # Names say which tensors there should be, which expressions for another layout do not.
        lora.target_modules = travelling_names(lora.target_modules)
    else:
        spell_targets(lora, modules.values())
    return lora, {PREFIX + ours(name.removeprefix(PREFIX)): tensor for name, tensor in tensors.items()}


def factor_of(name: str) -> str:
    """The tensor itself, or, for a magnitude of DoRA, the factor that stands beside it."""
    return name.replace(MAGNITUDE, ".lora_B.weight") if name.endswith(MAGNITUDE) else name


def refuse_trained_tokens(directory: Path, lora: LoraConfig, tensors: Iterable[str]) -> None:
    """Raise CheckpointError for tokens that were trained without factors: what they mean here is not what was trained.

    PEFT reads single ones without the scale of our table, and leaves open whether the head, which is the same table,
    is that of the copy.
    """
    remedy = "merge it in transformers and load the result, or train it without"
    if lora.trainable_token_indices:
        raise CheckpointError(
            f"{directory}: has trainable_token_indices, which this model cannot take apart from its token table;"
            f" {remedy} them"
        )
    if lora.modules_to_save and any(ours(name.removeprefix(PREFIX)) == TOKEN_TABLE for name in tensors):
        raise CheckpointError(
            f"{directory}: has a token table of its own (modules_to_save), but the table is also the head, of which it"
            f" does not say whether it is the same; {remedy} it"
        )


def refuse_uncalled(directory: Path, tensors: Iterable[str]) -> None:
    """Raise CheckpointError for factors of layers whose weights our model takes without calling the layer."""
    if uncalled := sorted(module for module in adapted_modules(tensors) if module.endswith(UNCALLED)):
        raise CheckpointError(
            f"{directory}: adapts '{uncalled[0]}', whose weight is clipped and used in a layer that the model"
            " never calls, so the adapter would do nothing until it is merged; merge it in transformers and load"
            f" the result, or train it without {' and '.join(UNCALLED)}"
        )


def refuse_absent(directory: Path, tensors: Iterable[str], config: ModelConfig) -> None:
    """Raise CheckpointError for factors of a tower, or its embedder, that the model does not have."""
    adapted = {modality_of(module) for module in adapted_modules(tensors)}
    if absent := sorted(adapted - set(config.modalities)):
        raise CheckpointError(
            f"{directory}: adapts the model's {' and '.join(absent)} part, but this model has"
            f" {', '.join(config.modalities)}; load the base with all its modalities"
        )


def spell_patterns(lora: LoraConfig, modules: Mapping[str, str]) -> None:
    """Name every module a rank or alpha pattern is meant for; see ``spell_pattern`` for ``modules``."""
    for setting in PATTERNS:
        setattr(lora, setting, spell_pattern(getattr(lora, setting) or {}, modules))


def spell_targets(lora: LoraConfig, modules: Iterable[str]) -> None:
    """Name every adapted module, and drop all else that chose them."""
    lora.target_modules = travelling_names(modules)
    for setting in SELECTIONS:
        setattr(lora, setting, None)


def check_factors(directory: Path, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise one CheckpointError that names all that is missing, extra or misshapen in an adapter file."""
    # PEFT files of adapted embeddings hold the embedding itself, too.
    factors = {name: tensor.shape for name, tensor in found.items() if not name.endswith(f"{BASE}.weight")}
    if told := misfit(factors, expected, {name: tensor.shape for name, tensor in expected.items()}):
        raise CheckpointError(
            f"{directory}: does not fit this model: {told};"
            " give the model it was trained on, or slice the adapter like its base"
        )
