# SPDX-License-Identifier: Apache-2.0
"""Tensors to a checkpoint directory: shards of bounded size, an index, and a rename at the end.

Tensors are streamed: at most one shard is held in memory, whatever the size of the model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from model.checkpoint.directory import whole_directory
from model.checkpoint.shapes import model_shapes
from model.config import CONFIG_FILE, ModelConfig, TextConfig
from model.errors import CheckpointError
from model.gemma3n import Gemma3n
from model.slicing.count import Layout

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = f"{WEIGHTS_FILE}.index.json"
SHARD_BYTES = 5_000_000_000  # what the hub and its tools are used to
GENERATION_FILE = "generation_config.json"  # where transformers' generate looks for the ids to stop at
METADATA = {"format": "pt"}  # transformers refuses files without it


def save(
    model: Gemma3n,
    target: Path,
    *,
    max_shard_bytes: int = SHARD_BYTES,
    overwrite: bool = False,
    extras: Callable[[Path], None] | None = None,
) -> None:
    """Write a live model as a checkpoint that ``load`` and transformers read, with the towers the model has.

    Without towers it is the checkpoint of a text-only model, also if the model was read from a multimodal one.
    With only one of the two, transformers does not read it: it knows no Gemma 3n with one tower.

    Args:
        model: The model; a LoRA adapter must be merged first.
        target: A directory that does not exist or is empty.
        max_shard_bytes: Size of a weight file; a single larger tensor gets a file of its own.
        overwrite: Whether another checkpoint at ``target`` may be replaced.
        extras: Called with the directory being written, to add files such as the tokenizer's.

    Raises:
        CheckpointError: ``target`` is in use, or the model has an adapter in it.
    """
    check_plain(model, str(target))
    tensors = ((name, parameter.detach()) for name, parameter in model.named_parameters())
    write_checkpoint(
        tensors, model.config, target, max_shard_bytes=max_shard_bytes, overwrite=overwrite, extras=extras
    )  # fmt: skip


def check_plain(model: Gemma3n, where: str) -> None:
    """Raise CheckpointError unless a model's parameters are those of its config and nothing else.

    An adapter that is attached adds some and renames others.
    """
    found = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    expected = model_shapes(model.config, Layout.used)
    if odd := sorted({name for name, _ in found.items() ^ expected.items()}):
        raise CheckpointError(
            f"{where}: the model's parameters are not those of its config ({len(odd)} differ, the first is"
            f" '{odd[0]}'); if an adapter is attached, merge it first: merge(adapted) gives the plain model"
        )


def write_checkpoint(
    tensors: Iterable[tuple[str, Tensor]],
    config: ModelConfig,
    target: Path,
    *,
    max_shard_bytes: int = SHARD_BYTES,
    overwrite: bool = False,
    extras: Callable[[Path], None] | None = None,
) -> None:
    """Write named tensors and their config as a checkpoint directory; see ``save`` for the arguments.

    Raises:
        CheckpointError: ``target`` is in use, or a name comes twice.
    """
    with whole_directory(target, overwrite=overwrite, marker=CONFIG_FILE) as directory:
        write_tensors(tensors, directory, max_shard_bytes)
        config.write(directory)
        if extras is not None:
            extras(directory)
        if not (directory / GENERATION_FILE).exists():
            write_generation_config(config.text, directory)


def write_generation_config(config: TextConfig, directory: Path) -> None:
    """Tell transformers which ids end an answer, and no more: how to sample is for who generates to say."""
    content = {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(config.eos_token_id),
        "pad_token_id": config.pad_token_id,
    }
    (directory / GENERATION_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_tensors(tensors: Iterable[tuple[str, Tensor]], directory: Path, max_shard_bytes: int) -> None:
    """Write the weight files, and their index if there are several."""
    home: dict[str, int] = {}  # tensor -> number of its shard
    total_bytes, num_shards = 0, 0
    for shard in shards(tensors, max_shard_bytes):
        if twice := sorted(home.keys() & shard.keys()):
            raise CheckpointError(f"{directory}: tensor '{twice[0]}' comes twice; every name may be written once")
        save_file(shard, numbered(directory, num_shards), metadata=METADATA)
        home |= dict.fromkeys(shard, num_shards)
        total_bytes += sum(tensor.nbytes for tensor in shard.values())
        num_shards += 1
        del shard  # before the next one is filled
    if num_shards == 1:
        numbered(directory, 0).rename(directory / WEIGHTS_FILE)
        return
    # The number of shards is part of their names, and only now known.
    names = [f"model-{number + 1:05}-of-{num_shards:05}.safetensors" for number in range(num_shards)]
    for number, name in enumerate(names):
        numbered(directory, number).rename(directory / name)
    index = {"metadata": {"total_size": total_bytes}, "weight_map": {name: names[home[name]] for name in sorted(home)}}
    (directory / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def shards(tensors: Iterable[tuple[str, Tensor]], max_shard_bytes: int) -> Iterator[dict[str, Tensor]]:
    """Group tensors in the order they come; a shard exceeds the limit only if it holds a single tensor."""
    shard: dict[str, Tensor] = {}
    used_bytes = 0
    for name, tensor in tensors:
        if shard and (used_bytes + tensor.nbytes > max_shard_bytes or name in shard):
            yield shard
            shard, used_bytes = {}, 0
        shard[name] = stored(tensor)
        used_bytes += tensor.nbytes
    yield shard


def stored(tensor: Tensor) -> Tensor:
    """The tensor as safetensors can write it: on the CPU, in one piece, with no memory but its own."""
    tensor = tensor.detach().cpu().contiguous()
    whole = tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor if whole else tensor.clone()


def numbered(directory: Path, number: int) -> Path:
    """The name of a shard while the number of shards is not known."""
    return directory / f"shard-{number:05}.safetensors"
