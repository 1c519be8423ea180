# SPDX-License-Identifier: Apache-2.0
"""The files beside a tokenizer that say how media are prepared: read from any published form, written for new models.

Older directories say everything in one flat ``preprocessor_config.json``; newer ones have an object for each
medium in ``processor_config.json``. A model that was read keeps its files byte for byte; these are written
for a vocabulary that has none, in both forms.
"""

from __future__ import annotations

import json
import re
from typing import Any

from model.config import ModelConfig
from model.errors import CheckpointError, ConfigError
from model.processor.chat import AUDIO_MARKS, CHAT_TEMPLATE, IMAGE_MARKS, MediaMarks
from model.processor.settings import AudioSettings, ImageSettings
from model.processor.tokenizer import (
    PREPROCESSOR_FILE,
    PROCESSOR_FILE,
    TEMPLATE_FILE,
    TOKENIZER_CONFIG_FILE,
    Tokenizer,
)
from model.tower_config import AudioConfig, MediaTokens, VisionConfig

UNUSED = re.compile(r"<unused\d+>")
PROCESSOR_CLASS = "Gemma3nProcessor"
IMAGE_SECTION, AUDIO_SECTION = "image_processor", "feature_extractor"
TYPE_FIELDS = {IMAGE_SECTION: "image_processor_type", AUDIO_SECTION: "feature_extractor_type"}


def read_image_settings(tokenizer: Tokenizer, config: VisionConfig) -> ImageSettings | None:
    """What the files beside a tokenizer say about images; None where they say nothing.

    Raises:
        ConfigError: A file is no JSON object, or a value is one that Gemma 3n, or this model, cannot have.
    """
    check_length(tokenizer, "image_seq_length", config.tokens)
    section = read_section(tokenizer, IMAGE_SECTION)
    return None if section is None else ImageSettings.parse(section)


def read_audio_settings(tokenizer: Tokenizer, config: AudioConfig) -> AudioSettings | None:
    """What the files beside a tokenizer say about sound; as ``read_image_settings``."""
    check_length(tokenizer, "audio_seq_length", config.tokens)
    section = read_section(tokenizer, AUDIO_SECTION)
    return None if section is None else AudioSettings.parse(section)


def read_section(tokenizer: Tokenizer, name: str) -> dict[str, Any] | None:
    """The object of one medium, from whichever file has it."""
    nested = read_json(tokenizer, PROCESSOR_FILE).get(name)
    if nested is not None:
        if not isinstance(nested, dict):
            raise ConfigError(f"{PROCESSOR_FILE}: {name} is {nested!r}; it must be an object")
        return nested
    flat = read_json(tokenizer, PREPROCESSOR_FILE)
    return flat if TYPE_FIELDS[name] in flat or flat.get("processor_class") == PROCESSOR_CLASS else None


def check_length(tokenizer: Tokenizer, name: str, tokens: MediaTokens) -> None:
    """Raise ConfigError where a file makes runs of other lengths than the model's config."""
    for file in (PROCESSOR_FILE, PREPROCESSOR_FILE):
        if (said := read_json(tokenizer, file).get(name)) not in (None, tokens.per_item):
            raise ConfigError(
                f"{file} beside {tokenizer.origin}: {name} is {said!r}, but an item of the model has {tokens.per_item}"
                " soft tokens (config.json); take both files from the same checkpoint"
            )


def unprepared(tokenizer: Tokenizer, name: str) -> str:
    """Why nothing is known of how a medium is prepared, and what to do."""
    if tokenizer.sidecar(PREPROCESSOR_FILE) is None and tokenizer.sidecar(PROCESSOR_FILE) is None:
        found = f"no {PREPROCESSOR_FILE} beside {tokenizer.origin} says how to prepare it"
    else:
        found = (
            f"{PREPROCESSOR_FILE} beside {tokenizer.origin} has no {TYPE_FIELDS[name]}, nor {PROCESSOR_FILE} an"
            f" object {name}, so that neither says how to prepare it"
        )
    return f"{found}; copy the one that came with the weights"


def read_json(tokenizer: Tokenizer, name: str) -> dict[str, Any]:
    """A file beside the tokenizer; empty if it is not there."""
    content = tokenizer.sidecar(name)
    try:
        parsed = {} if content is None else json.loads(content)
    except ValueError as error:
        raise ConfigError(f"{name} beside {tokenizer.origin}: not JSON ({error})") from None
    if not isinstance(parsed, dict):
        raise ConfigError(f"{name} beside {tokenizer.origin}: must hold a JSON object")
    return parsed


def marks_of(tokenizer: Tokenizer, tokens: MediaTokens, medium: str) -> MediaMarks:
    """How a medium is written in the words of this tokenizer.

    Raises:
        CheckpointError: The tokenizer has no token of some id, or does not read it back from a text.
    """
    texts = []
    for name, token_id in (("placeholder", tokens.placeholder_id), ("begin", tokens.begin_id), ("end", tokens.end_id)):
        text = tokenizer.token(token_id)
        if text is None or tokenizer.encode(text) != [token_id]:
            found = "has no token of this id" if text is None else f"does not read '{text}' as one token"
            raise CheckpointError(
                f"{tokenizer.origin}: the config names {token_id} as the {name} of {medium}, but the tokenizer"
                f" {found}; take the tokenizer.json that came with the weights, or leave the tower"
                " out, as in modalities=[text]"
            )
        texts.append(text)
    return MediaMarks(*texts, per_item=tokens.per_item)


def check_ids(tokenizer: Tokenizer, config: VisionConfig | AudioConfig, medium: str) -> None:
    """Raise CheckpointError where a word of the text has an id of a medium, whose rows are no words'.

    Other marks may stand there, as published; what was added as a word is known by being normalized as one.
    """
    words = {token_id for token_id, token in tokenizer.added().items() if token.normalized and not token.special}
    for token_id in config.ids:
        text = tokenizer.token(token_id)
        if text is None or token_id in config.tokens.ids or UNUSED.fullmatch(text):
            continue
        if token_id in words or not (text.startswith("<") and text.endswith(">")):
            raise CheckpointError(
                f"{tokenizer.origin}: '{text}' has the id {token_id}, but {config.ids.start} to {config.ids.stop - 1}"
                f" are ids of {medium} (vocab_offset, vocab_size), which a text cannot use; give one of the unused"
                " tokens of the text this meaning"
            )


def with_media_tokens(tokenizer: bytes, config: ModelConfig) -> bytes:
    """A ``tokenizer.json`` that also has the marks of the config's media, by their published names, at their ids.

    For a vocabulary of one's own: train it no larger than the first id of the media's vocabularies.

    Raises:
        CheckpointError: An id belongs to another token already, or a mark has another id.
    """
    content = json.loads(tokenizer)
    vocabulary: dict[str, int] = content["model"]["vocab"]
    if not isinstance(vocabulary, dict):
        raise CheckpointError(
            f"tokenizer: is of type {content['model'].get('type')}, whose ids are places in a list; take one that gives"
            " its tokens ids (BPE, WordPiece, WordLevel)"
        )
    listed = {token["content"]: token["id"] for token in content["added_tokens"]}
    vocabulary.update(listed)  # where they keep their ids; added tokens alone are numbered behind all others
    taken = {number: token for token, number in vocabulary.items()}
    for tower, marks in ((config.vision, IMAGE_MARKS), (config.audio, AUDIO_MARKS)):
        texts = (marks.begin, marks.placeholder, marks.end)
        for text, token_id in zip(texts, tower.tokens.ids if tower else (), strict=tower is not None):
            if taken.get(token_id, text) != text or vocabulary.get(text, token_id) != token_id:
                raise CheckpointError(
                    f"tokenizer: '{text}' must have the id {token_id}, which '{taken.get(token_id, text)}' has;"
                    " it must be free, so train a smaller vocabulary or give the mark that id from the start"
                )
            vocabulary[text] = token_id
            if text not in listed:
                plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
                content["added_tokens"].append({"id": token_id, "content": text, "special": True} | plain)
    content["added_tokens"].sort(key=lambda token: token["id"])
    return json.dumps(content, ensure_ascii=False).encode()


def write_files(
    tokenizer: Tokenizer,
    *,
    image: MediaMarks | None,
    audio: MediaMarks | None,
    image_settings: ImageSettings | None,
    audio_settings: AudioSettings | None,
) -> dict[str, bytes]:
    """The files with which transformers' ``AutoProcessor`` loads a directory.

    It has one processor for Gemma 3n, which takes both media; for a model of one medium the files serve us,
    and its tokenizer loads there.
    """
    config = read_json(tokenizer, TOKENIZER_CONFIG_FILE)
    names = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
    # Not 'GemmaTokenizer': that class builds its own pre-tokeniser, and would read another vocabulary wrongly.
    config = names | {"tokenizer_class": "PreTrainedTokenizerFast"} | config
    given = config.get("extra_special_tokens")
    extra: dict[str, Any] = dict(given) if isinstance(given, dict) else {}
    if isinstance(given, list):  # names of no meaning of their own; they have another field beside those that have one
        config["additional_special_tokens"] = [*config.get("additional_special_tokens", ()), *given]
    for marks, prefix, letter in ((image, "image", "i"), (audio, "audio", "a")):
        if marks is not None:
            extra |= {f"{prefix}_token": marks.placeholder, f"bo{letter}_token": marks.begin}
            extra |= {f"eo{letter}_token": marks.end}
    lengths = {}
    if image is not None:
        lengths["image_seq_length"] = image.per_item
    if audio is not None:
        lengths["audio_seq_length"] = audio.per_item
    kind = {"processor_class": PROCESSOR_CLASS} if image and audio else {}
    sections = {
        name: settings.publish()
        for name, settings in ((IMAGE_SECTION, image_settings), (AUDIO_SECTION, audio_settings))
        if settings is not None
    }
    flat = {field: value for published in sections.values() for field, value in published.items()}
    config.pop("chat_template", None)  # a file of its own, so that it is said once
    return {
        TOKENIZER_CONFIG_FILE: as_bytes(config | kind | {"extra_special_tokens": extra}),
        TEMPLATE_FILE: chat_template(image, audio).encode(),
        PROCESSOR_FILE: as_bytes(kind | lengths | sections),
        PREPROCESSOR_FILE: as_bytes(kind | lengths | flat),
    }


def chat_template(image: MediaMarks | None, audio: MediaMarks | None) -> str:
    """The template in the words of a tokenizer."""
    template = CHAT_TEMPLATE
    for published, ours in ((IMAGE_MARKS, image), (AUDIO_MARKS, audio)):
        if ours is not None:
            template = template.replace(published.placeholder, ours.placeholder)
    return template


def as_bytes(content: dict[str, Any]) -> bytes:
    """JSON as it is written beside weights."""
    return (json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
