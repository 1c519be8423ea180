# SPDX-License-Identifier: Apache-2.0
"""The files of a tokenizer for a vocabulary that keeps some of its tokens, all ids in them by their new numbers.

A text whose pieces are all kept is read as before; all other text becomes smaller pieces, at last bytes, and is
given back unchanged (``model/processor/derivation.py`` says why). Which tokens a vocabulary must keep for that,
``Trimming.closed`` adds; a vocabulary that lacks one of them is refused.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import tokenizers

from model.errors import CheckpointError, MatsliceError, SliceError
from model.json_object import json_object
from model.processor.derivation import Derivations
from model.processor.tokenizer import MEDIA_FILES, TEMPLATE_FILE, TEXT_FILES, TOKENIZER_CONFIG_FILE, TOKENIZER_FILE
from model.slicing.vocabulary import Vocabulary, renumbered

GENERATION_FILE = "generation_config.json"
PROCESSOR_FIELD = "processor_class"  # of tokenizer_config.json: what transformers encodes media with
ADDED_FILE = "added_tokens.json"
SENTENCEPIECE_FILE = "tokenizer.model"  # a compiled form of the whole vocabulary; tokenizer.json says the same
UNCHANGED_FILES = (TEMPLATE_FILE, "chat_template.json", "special_tokens_map.json")  # they name tokens, not ids
REWRITING = ("String", "content", "replacement", "prepend")  # fields of its steps that hold text
SHOWN = 5  # tokens that a message lists


class Trimming:
    """A ``tokenizer.json`` that is to lose tokens.

    Args:
        content: The file.
        sidecars: The files beside it, by name; those that list added tokens are looked at.
        origin: The file, for messages.

    Raises:
        CheckpointError: A file cannot be read, or the tokenizer is not of a kind whose tokens can be dropped.
    """

    def __init__(self, content: bytes, sidecars: Mapping[str, bytes], *, origin: str = TOKENIZER_FILE) -> None:
        self.origin = origin
        self._content = parsed(content, origin)
        try:
            self._bpe = Derivations(self._content, origin=origin)
            self._added = {token["content"]: int(token["id"]) for token in self._content.get("added_tokens") or ()}
            self.ids = self._bpe.vocab | self._added  # of every token
            self._required = {*self._bpe.alphabet(), *self._named_ids(), *ids_of_sidecars(sidecars)}
        except MatsliceError:
            raise
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(
                f"{origin}: it, or {TOKENIZER_CONFIG_FILE} or {ADDED_FILE} beside it, has something else where a"
                f" tokenizer has its tokens ({error!r}); take the files that came with the weights"
            ) from None

    def _named_ids(self) -> Iterator[int]:
        """The ids that the file uses for more than a token of its model."""
        yield from self._added.values()
        yield from ids_within(self._content.get("post_processor"))
        yield from (self.ids[one] for one in self._rewritten() if one in self.ids)
        if padding := self._content.get("padding"):
            yield padding["pad_id"]
        if self._bpe.unknown is not None:
            yield self.ids[self._bpe.unknown]

    @classmethod
    def read(cls, directory: Path) -> Trimming:
        """That of a checkpoint directory.

        Raises:
            CheckpointError: As the class; or there is no ``tokenizer.json``.
        """
        path = directory / TOKENIZER_FILE
        if not path.is_file():
            found = f"only {SENTENCEPIECE_FILE}" if (directory / SENTENCEPIECE_FILE).is_file() else "none"
            raise CheckpointError(
                f"{directory}: a vocabulary is trimmed by its {TOKENIZER_FILE}, and there is {found}; copy the one that"
                " came with the weights into it"
            )
        return cls(path.read_bytes(), files_of(directory, (TOKENIZER_CONFIG_FILE, ADDED_FILE)), origin=str(path))

    def _rewritten(self) -> set[str]:
        """The characters that text is rewritten with, as '▁' for a space: their bytes would not be written back."""
        steps = [self._content.get(name) for name in ("normalizer", "pre_tokenizer", "decoder")]
        return {one for step in steps for text in texts_within(step) for one in text}

    def required(self) -> set[int]:
        """The ids that stay in any case: added and special tokens, and those any text can be written in; closed."""
        return self._bpe.close(self._required)

    def closed(self, ids: Iterable[int]) -> set[int]:
        """``ids``, and those they are built of."""
        return self._bpe.close(ids)

    def check(self, vocabulary: Vocabulary) -> None:
        """Raise SliceError where text would be read otherwise though all its pieces are kept, or not at all."""
        if lost := [number for number in sorted(self.required()) if number not in vocabulary]:
            raise SliceError(
                f"vocabulary: drops {self._named(lost)} of {self.origin}; added tokens, bytes and single characters of"
                " a vocabulary without bytes must stay: keep them too"
            )
        kept = [number for number in self._bpe.vocab.values() if number in vocabulary]
        if lost := [number for number in sorted(self.closed(kept)) if number not in vocabulary]:
            raise SliceError(
                f"vocabulary: drops {self._named(lost)} of {self.origin}, of which kept tokens are built; keep what"
                " Trimming.closed adds to them"
            )

    def trimmed(self, vocabulary: Vocabulary) -> bytes:
        """The ``tokenizer.json`` of the kept tokens.

        Raises:
            SliceError: As ``check``.
        """
        self.check(vocabulary)
        vocab = {token: number for token, number in self._bpe.vocab.items() if number in vocabulary}
        merges = [
            (left, right)
            for left, right in self._bpe.merges
            if left in vocab and right in vocab and left + right in vocab
        ]
        added = sorted(self._content.get("added_tokens") or (), key=lambda token: token["id"])
        added = [token | {"id": vocabulary.new_id(token["id"])} for token in added]
        vocab = {token: vocabulary.new_id(number) for token, number in sorted(vocab.items(), key=lambda item: item[1])}
        content = self._content | {
            "added_tokens": added,
            "post_processor": renumbered_processor(self._content.get("post_processor"), vocabulary),
        }
        if padding := self._content.get("padding"):
            content["padding"] = padding | {"pad_id": vocabulary.new_id(padding["pad_id"])}
        expected = {token: vocabulary.new_id(old) for token, old in self.ids.items() if old in vocabulary}
        # The library numbers added tokens behind the model's. Where that is wrong they get their ids as the model's
        # own, which changes nothing else: their text is found before the model sees any.
        for placed in (vocab, vocab | {token["content"]: token["id"] for token in added}):
            content["model"] = self._content["model"] | {"vocab": placed, "merges": merges}
            result = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
            if tokenizers.Tokenizer.from_buffer(result).get_vocab(with_added_tokens=True) == expected:
                return result
        raise AssertionError("the library numbers the tokens otherwise")

    def _named(self, ids: list[int]) -> str:
        """Some tokens with their ids, for a message."""
        tokens = {number: token for token, number in self.ids.items()}
        listed = ", ".join(f"{tokens.get(number, 'a token')!r} ({number})" for number in ids[:SHOWN])
        return listed + (f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else "")


def trimmed_files(
    source: Path, vocabulary: Vocabulary, *, media: bool, trimming: Trimming | None = None
) -> dict[str, bytes]:
    """The tokenizer, processor and generation files of a checkpoint directory, for the kept tokens.

    ``tokenizer.model`` is not among them: nothing reads it where there is a ``tokenizer.json``, and it would say
    something else. Gemma's own tokenizer takes some 10 s and 900 MB of memory, so one that was read is handed on.

    Args:
        source: The checkpoint.
        vocabulary: The kept ids.
        media: Whether files by which images and sound are processed are wanted.
        trimming: Of its tokenizer, if it was read already.

    Raises:
        SliceError: The vocabulary drops a token that the files need.
        CheckpointError: A file cannot be read, or the tokenizer is of a kind that cannot be trimmed.

    Warns:
        UserWarning: ``tokenizer.model`` is left out.
    """
    files = files_of(source, (*TEXT_FILES, GENERATION_FILE, *(MEDIA_FILES if media else ())))
    if has_model := files.pop(SENTENCEPIECE_FILE, None) is not None:
        warnings.warn(
            f"{source / SENTENCEPIECE_FILE} is not carried into the trimmed checkpoint: it is a compiled form of the"
            f" whole vocabulary, which {TOKENIZER_FILE} says too; a program that reads nothing else cannot use it",
            stacklevel=2,
        )
    results = {name: content for name, content in files.items() if name in UNCHANGED_FILES}
    if has_model or (source / TOKENIZER_FILE).is_file():
        results[TOKENIZER_FILE] = (trimming or Trimming.read(source)).trimmed(vocabulary)
    for name in files.keys() - results.keys():
        content, where = parsed(files[name], str(source / name)), str(source / name)
        if name == ADDED_FILE:
            content = {token: vocabulary.new_id(old) for token, old in content.items()}
        else:
            content = renumbered(content, vocabulary, where)
            if decoder := content.get("added_tokens_decoder"):
                content["added_tokens_decoder"] = {
                    str(vocabulary.new_id(int(old))): token for old, token in decoder.items()
                }
            if not media and name == TOKENIZER_CONFIG_FILE:
                content.pop(PROCESSOR_FIELD, None)
        results[name] = as_file(content)
    return results


def files_without_processor(source: Path) -> dict[str, bytes]:
    """Those of a checkpoint's files that name a processor, as they are beside a model that takes in text alone.

    transformers' ``AutoProcessor`` would look for the files of that processor, instead of giving the tokenizer.

    Raises:
        CheckpointError: The file cannot be read.
    """
    results: dict[str, bytes] = {}
    for name, found in files_of(source, (TOKENIZER_CONFIG_FILE,)).items():
        content = parsed(found, str(source / name))
        if content.pop(PROCESSOR_FIELD, None) is not None:
            results[name] = as_file(content)
    return results


def as_file(content: Mapping[str, Any]) -> bytes:
    """JSON as it is written."""
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def files_of(directory: Path, names: Iterable[str]) -> dict[str, bytes]:
    """Those of the named files that a directory has."""
    return {name: (directory / name).read_bytes() for name in names if (directory / name).is_file()}


def parsed(content: bytes, where: str) -> dict[str, Any]:
    """The JSON object that a file holds, or CheckpointError."""
    try:
        return json_object(content)
    except ValueError as error:
        raise CheckpointError(
            f"{where}: not JSON that can be read ({error}); take the file that came with the weights"
        ) from None


def ids_of_sidecars(sidecars: Mapping[str, bytes]) -> set[int]:
    """The ids that the files beside a tokenizer give to added tokens."""
    decoder = parsed(sidecars.get(TOKENIZER_CONFIG_FILE, b"{}"), TOKENIZER_CONFIG_FILE).get("added_tokens_decoder")
    listed = parsed(sidecars.get(ADDED_FILE, b"{}"), ADDED_FILE)
    return {int(number) for number in (*(decoder or {}), *listed.values())}


def texts_within(step: Any) -> Iterator[str]:
    """The texts that a normalizer, pre-tokenizer or decoder looks for or writes."""
    if isinstance(step, list):
        for one in step:
            yield from texts_within(one)
    elif isinstance(step, dict):
        for name, value in step.items():
            if name in REWRITING and isinstance(value, str):
                yield value
            else:
                yield from texts_within(value)


def ids_within(processor: Any) -> Iterator[int]:
    """The ids in a ``post_processor``, of whichever kind."""
    if isinstance(processor, dict):
        for token in (processor.get("special_tokens") or {}).values():
            yield from token["ids"]
        yield from (processor[name][1] for name in ("sep", "cls") if name in processor)
        for inner in processor.get("processors") or ():
            yield from ids_within(inner)


def renumbered_processor(processor: Any, vocabulary: Vocabulary) -> Any:
    """A ``post_processor`` by its new ids."""
    if not isinstance(processor, dict):
        return processor
    result = dict(processor)
    if tokens := processor.get("special_tokens"):
        result["special_tokens"] = {
            name: token | {"ids": [vocabulary.new_id(old) for old in token["ids"]]} for name, token in tokens.items()
        }
    for name in ("sep", "cls"):
        if name in processor:
            result[name] = [processor[name][0], vocabulary.new_id(processor[name][1])]
    if inner := processor.get("processors"):
        result["processors"] = [renumbered_processor(one, vocabulary) for one in inner]
    return result
