# SPDX-License-Identifier: Apache-2.0
"""A text model with a vocabulary of Gemma's build, and what lm-evaluation-harness asks with."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from model.checkpoint.saving import save
from model.gemma3n import Gemma3n
from model.processor.chat import CHAT_TEMPLATE
from model.processor.processor import Processor
from model.processor.tokenizer import Tokenizer
from model.slicing.spec import SliceConfig, SliceSpec
from tests.tiny import tiny_model
from tests.trained_tokenizer import CONFIG, NUM_PIECES, trained_vocabulary
from trainer.data.collate import Collator
from trainer.evaluation.engine import Engine
from trainer.harness.chat import Chat
from trainer.harness.encoding import Encoding
from trainer.harness.generation import Usual
from trainer.harness.model import HarnessModel
from trainer.harness.requests import Asking, Requests
from trainer.soft_tokens import SharedTowers

TEXT = CONFIG.only(())
PUBLISHED = {
    "bos_token_id": 2,
    "eos_token_id": [1, 6],
    "pad_token_id": 0,
    "do_sample": True,
    "top_k": 64,
    "top_p": 0.95,
}
MIXED = SliceConfig(name="mixed", skip_layers=[3, 4, 5], ffn_widths=[48, 16, 24, 16, 32, 48])
FULL, SHORT = SliceSpec.full(TEXT.text), SliceSpec.resolve(MIXED, TEXT.text)


@cache
def tokenizer() -> Tokenizer:
    """With the files that say the same to transformers."""
    content = trained_vocabulary()
    added = {str(token.pop("id")): token for token in json.loads(content)["added_tokens"]}
    names = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
    sidecar = names | {"tokenizer_class": "PreTrainedTokenizerFast", "added_tokens_decoder": added}
    return Tokenizer(
        content,
        {"tokenizer_config.json": json.dumps(sidecar).encode(), "chat_template.jinja": CHAT_TEMPLATE.encode()},
    )


@cache
def processor() -> Processor:
    """Text alone."""
    return Processor(tokenizer(), None, None, TEXT)


def write_checkpoint(model: Gemma3n, directory: Path) -> Path:
    """As a published one, with all that lies beside the weights."""

    def extras(inside: Path) -> None:
        tokenizer().write(inside)
        (inside / "generation_config.json").write_text(json.dumps(PUBLISHED))

    save(model, directory, extras=extras)
    return directory


@torch.no_grad()
def varied() -> Gemma3n:
    """The tiny model, which says something else after every prompt; of ids that no token has it says none."""
    model = tiny_model(TEXT)
    model.head_weight[NUM_PIECES:] = 0
    return model


def engine_of(model: Gemma3n) -> Engine:
    """The model, ready to be asked."""
    return Engine(
        model=model, tokenizer=tokenizer(), collator=Collator(tokenizer().pad_id), towers=SharedTowers(model)
    )  # fmt: skip


def requests_of(*, max_length: int = 512, add_bos: bool | None = None, seed: int = 0) -> Requests:
    """What makes requests for the tiny model."""
    encoding = Encoding(tokenizer=tokenizer(), max_length=max_length, add_bos=add_bos)
    return Requests(encoding=encoding, usual=Usual(stop_ids=frozenset({1, 6})), seed=seed)


def harness_model(
    model: Gemma3n, spec: SliceSpec = FULL, *, batch_size: int = 3, max_length: int = 512, seed: int = 0
) -> HarnessModel:
    """One of its sub-models, as the harness sees it."""
    requests = requests_of(max_length=max_length, seed=seed)
    asking = Asking(engine=engine_of(model), stop_ids=requests.usual.stop_ids, batch_size=batch_size)
    return HarnessModel(asking=asking, spec=spec, requests=requests, chat=Chat.of(tokenizer()))


@dataclass(frozen=True)
class Asked:
    """What the harness asks with."""

    args: tuple[Any, ...]


def asked(*requests: tuple[Any, ...]) -> list[Asked]:
    """Several."""
    return [Asked(request) for request in requests]
