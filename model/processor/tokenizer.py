# SPDX-License-Identifier: Apache-2.0
"""Text to ids and back, by the ``tokenizer.json`` that lies beside the weights.

The file is carried as bytes and written back unchanged, with the files that other libraries keep
beside it: a slice speaks exactly its parent's language. Nothing is added to a text, but by ``encode_marked``:
whoever wants a ``<bos>`` writes it, as the chat template does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import tokenizers

from model.errors import CheckpointError

TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE, TEMPLATE_FILE = "tokenizer_config.json", "chat_template.jinja"
PREPROCESSOR_FILE, PROCESSOR_FILE = "preprocessor_config.json", "processor_config.json"
MEDIA_FILES = (PREPROCESSOR_FILE, PROCESSOR_FILE, "video_preprocessor_config.json")  # of no use to a text-only model
TEXT_FILES = (
    TOKENIZER_CONFIG_FILE, "special_tokens_map.json", "added_tokens.json", TEMPLATE_FILE, "chat_template.json",
    "tokenizer.model",
)  # fmt: skip
PAD, BOS, START_OF_TURN, END_OF_TURN = "<pad>", "<bos>", "<start_of_turn>", "<end_of_turn>"


@dataclass(frozen=True)
class Encoded:
    """Ids, and for each the half-open range of characters it stands for."""

    ids: list[int]
    offsets: list[tuple[int, int]]


class Tokenizer:
    """The vocabulary of a Gemma checkpoint.

    Raises:
        CheckpointError: The content is no tokenizer, or has no token for padding, beginning or turns.
    """

    def __init__(self, content: bytes, sidecars: Mapping[str, bytes], *, origin: str = TOKENIZER_FILE) -> None:
        self._content = content
        self._sidecars = dict(sidecars)
        self._origin = origin
        try:
            self._backend = tokenizers.Tokenizer.from_buffer(content)
        except Exception as error:  # the library raises Exception itself
            raise CheckpointError(
                f"{origin}: not a tokenizer ({error}); take the file that came with the weights"
            ) from None
        self._check_ids()
        # A file may ask for cutting or filling; how long a sequence may be is not the vocabulary's business.
        self._backend.no_truncation()
        self._backend.no_padding()
        self.pad_id = self._required(PAD)
        self.bos_id = self._required(BOS)
        self.start_of_turn_id = self._required(START_OF_TURN)
        self.end_of_turn_id = self._required(END_OF_TURN)
        self.vocab_size = max(self._backend.get_vocab(with_added_tokens=True).values()) + 1
        self.fingerprint = hashlib.sha256(content).hexdigest()

    @classmethod
    def read(cls, directory: Path) -> Tokenizer:
        """Read ``tokenizer.json`` of a checkpoint directory.

        Raises:
            CheckpointError: There is none, or it is not a Gemma tokenizer.
        """
        path = directory / TOKENIZER_FILE
        if not path.is_file():
            raise CheckpointError(
                f"{directory}: no {TOKENIZER_FILE} there; copy the one that came with the weights into it"
            )
        sidecars = {
            name: (directory / name).read_bytes()
            for name in (*TEXT_FILES, *MEDIA_FILES)
            if (directory / name).is_file()
        }
        return cls(path.read_bytes(), sidecars, origin=str(path))

    def write(self, directory: Path, *, media: bool = True) -> None:
        """Write the tokenizer's files into ``directory``, byte for byte as they were read.

        Args:
            directory: Where to; it is made if it is not there.
            media: Whether to write what images and sound are processed by, which a text-only model has no use for.
        """
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in {TOKENIZER_FILE: self._content, **self._sidecars}.items():
            if media or name not in MEDIA_FILES:
                (directory / name).write_bytes(content)

    def sidecar(self, name: str) -> bytes | None:
        """The content of a file that lies beside the tokenizer, if there is one."""
        return self._sidecars.get(name)

    def beside(self, files: Mapping[str, bytes]) -> Tokenizer:
        """The same vocabulary with other files beside it; those not named stay."""
        return Tokenizer(self._content, self._sidecars | dict(files), origin=self._origin)

    @property
    def origin(self) -> str:
        """Where it was read, for messages."""
        return self._origin

    def token(self, token_id: int) -> str | None:
        """The token of this id as it is written in a text, if there is one."""
        return self._backend.id_to_token(token_id)

    def encode(self, text: str) -> list[int]:
        """The ids of ``text``; the text of a special token becomes its id, and nothing is added."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def encode_marked(self, text: str) -> list[int]:
        """Like ``encode``, with what ``tokenizer.json`` itself puts around a text, such as Gemma's ``<bos>``."""
        return self._backend.encode(text).ids

    def encode_spans(self, text: str) -> Encoded:
        """Like ``encode``, with the characters of ``text`` that each id stands for.

        Ids that share one character (its bytes are several tokens) all have that character's range.
        """
        encoding = self._backend.encode(text, add_special_tokens=False)
        return Encoded(encoding.ids, encoding.offsets)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ``ids``, special tokens left out."""
        return self._backend.decode(list(ids), skip_special_tokens=True)

    def added(self) -> dict[int, tokenizers.AddedToken]:
        """The tokens that a text's own characters are not cut into, by their ids."""
        return self._backend.get_added_tokens_decoder()

    def _check_ids(self) -> None:
        # The library numbers added tokens behind the others, whatever the file says; other libraries believe the file.
        for token in json.loads(self._content).get("added_tokens") or ():
            if (found := self._backend.token_to_id(token["content"])) != token["id"]:
                raise CheckpointError(
                    f"{self._origin}: says that '{token['content']}' has the id {token['id']}, but it is read as"
                    f" {found}; a token cannot be added behind ids that no token has, so give one of the unused tokens"
                    " this meaning, or take the tokenizer.json that came with the weights"
                )

    def _required(self, token: str) -> int:
        found = self._backend.token_to_id(token)
        if found is None:
            raise CheckpointError(f"{self._origin}: has no token '{token}'; matslice needs a Gemma tokenizer")
        return found
