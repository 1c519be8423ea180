# SPDX-License-Identifier: Apache-2.0
"""Conversations with pictures and recordings to model inputs, and ids back to text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import NoReturn

import torch
from torch.nn.utils.rnn import pad_sequence

from model.config import ModelConfig
from model.errors import CheckpointError, ConfigError, InputError
from model.inputs import Audio, Images, Inputs
from model.processor.audio import AudioProcessor, LongAudio
from model.processor.chat import (
    AUDIO_MARKS,
    IMAGE_MARKS,
    Message,
    Part,
    Rendered,
    Role,
    place_media,
    render,
    render_text,
)
from model.processor.image import ImageProcessor
from model.processor.media import Picture, Recording
from model.processor.published import (
    AUDIO_SECTION,
    IMAGE_SECTION,
    check_ids,
    marks_of,
    read_audio_settings,
    read_image_settings,
    unprepared,
    write_files,
)
from model.processor.settings import AudioSettings, ImageSettings
from model.processor.template import warn_of_other_template
from model.processor.tokenizer import Tokenizer
from model.tower_config import AudioConfig

SECTIONS = {"vision": IMAGE_SECTION, "audio": AUDIO_SECTION}  # of the files, by tower


class Padding(StrEnum):
    """On which side shorter rows of a batch are filled up; left, where they are to be continued."""

    left = "left"
    right = "right"


class Processor:
    """All that stands between a person's words, pictures and recordings and a model.

    ``images`` and ``audio`` are None where the model has no such tower, or its directory does not say how
    its media are prepared; a conversation without them needs neither.

    Raises:
        CheckpointError: The tokenizer has ids that the model has no rows for, or lacks the marks of a medium.
    """

    def __init__(
        self, tokenizer: Tokenizer, images: ImageProcessor | None, audio: AudioProcessor | None, config: ModelConfig
    ) -> None:
        if tokenizer.vocab_size > config.text.vocab_size:
            raise CheckpointError(
                f"{tokenizer.origin}: has ids up to {tokenizer.vocab_size - 1}, but the model's end at"
                f" {config.text.vocab_size - 1} (vocab_size); new tokens cannot be added behind the media's own, so"
                " give the unused ones that the vocabulary has another meaning"
            )
        self.tokenizer = tokenizer
        self.images = images if config.vision else None
        self.audio = audio if config.audio else None
        self.config = config
        for tower, medium in ((config.vision, "images"), (config.audio, "audio")):
            if tower is not None:
                check_ids(tokenizer, tower, medium)
        self.image_marks = marks_of(tokenizer, config.vision.tokens, "images") if config.vision else None
        self.audio_marks = marks_of(tokenizer, config.audio.tokens, "audio") if config.audio else None

    @classmethod
    def read(
        cls,
        directory: Path,
        config: ModelConfig,
        *,
        long_audio: LongAudio = LongAudio.refuse,
        long_audio_key: str = "long_audio",
    ) -> Processor:
        """The processor of a checkpoint directory; who is to change ``long_audio`` is told so by its key.

        Raises:
            CheckpointError: It has no tokenizer, or not that of ``config``'s model.
            ConfigError: A file says what Gemma 3n cannot do.

        Warns:
            UserWarning: Its chat template writes conversations otherwise than ``render``.
        """
        tokenizer = Tokenizer.read(directory)
        warn_of_other_template(tokenizer)
        image = read_image_settings(tokenizer, config.vision) if config.vision else None
        audio = read_audio_settings(tokenizer, config.audio) if config.audio else None
        heard = None if audio is None or config.audio is None else audio_processor(audio, config.audio, long_audio)
        return cls(
            tokenizer,
            None if image is None else ImageProcessor(image),
            None if heard is None else replace(heard, long_key=long_audio_key),
            config,
        )

    @classmethod
    def create(
        cls,
        tokenizer: Tokenizer,
        config: ModelConfig,
        *,
        image: ImageSettings | None = None,
        audio: AudioSettings | None = None,
        long_audio: LongAudio = LongAudio.refuse,
    ) -> Processor:
        """The processor of a new model, with the files that ``AutoProcessor`` loads beside the tokenizer.

        Args:
            tokenizer: A vocabulary that has the marks of the config's media.
            config: The model's shape.
            image: What is done to pictures; None as published, if there is a vision tower.
            audio: What is done to sound; None as published, if there is an audio tower.
            long_audio: What becomes of recordings that are too long for one clip.

        Raises:
            CheckpointError: As the class.
        """
        image_settings = (image or ImageSettings()) if config.vision else None
        audio_settings = (audio or AudioSettings()) if config.audio else None
        files = write_files(
            tokenizer,
            image=marks_of(tokenizer, config.vision.tokens, "images") if config.vision else None,
            audio=marks_of(tokenizer, config.audio.tokens, "audio") if config.audio else None,
            image_settings=image_settings,
            audio_settings=audio_settings,
        )
        return cls(
            tokenizer.beside(files),
            ImageProcessor(image_settings) if image_settings else None,
            audio_processor(audio_settings, config.audio, long_audio) if audio_settings and config.audio else None,
            config,
        )

    def write(self, directory: Path) -> None:
        """Write the tokenizer and the files beside it into ``directory``, byte for byte as they were read or made.

        Files for media are left out where the model takes none, as they are of a slice.
        """
        self.tokenizer.write(directory, media=self.config.is_multimodal)

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> Rendered:
        """Write a conversation as text, each medium as its run of placeholders; see ``chat.render``.

        A recording too long for one clip becomes several here, if it may; sound files' headers are read.

        Raises:
            InputError: As ``chat.render``; or a recording is missing, too short or too long.
        """
        prepared = [self._prepared(message) for message in messages]
        return render(
            prepared, add_generation_prompt=add_generation_prompt, image=self.image_marks, audio=self.audio_marks
        )

    def render_text(
        self, text: str, pictures: Sequence[Picture] = (), recordings: Sequence[Recording] = ()
    ) -> Rendered:
        """Write a text without turns, the media where its placeholders stand; see ``chat.render_text``.

        Raises:
            InputError: As ``chat.render_text``, or media and placeholders do not come to the same number.
        """
        (message,) = self.place_media([Message(Role.user, text)], pictures, recordings)
        return render_text(self._prepared(message).parts, image=self.image_marks, audio=self.audio_marks)

    def place_media(
        self, messages: Sequence[Message], pictures: Sequence[Picture] = (), recordings: Sequence[Recording] = ()
    ) -> tuple[Message, ...]:
        """Put media where the texts have placeholders, as this tokenizer writes them; see ``chat.place_media``.

        Raises:
            InputError: As ``chat.place_media``.
        """
        image, audio = self.image_marks or IMAGE_MARKS, self.audio_marks or AUDIO_MARKS
        return place_media(messages, pictures, recordings, image=image.placeholder, audio=audio.placeholder)

    def check(self, messages: Sequence[Message]) -> None:
        """Look at everything that can be known of a conversation without decoding its media.

        Raises:
            InputError: As ``render``; or a picture is missing, too large or of no known kind.
        """
        for picture in self.render(messages).pictures:
            picture.check()

    def encode(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> list[int]:
        """The ids of a conversation, placeholders of its media included.

        Raises:
            InputError: As ``render``.
        """
        return self.tokenizer.encode(self.render(messages, add_generation_prompt=add_generation_prompt).text)

    def inputs(
        self,
        conversations: Sequence[Sequence[Message]],
        *,
        padding: Padding = Padding.right,
        add_generation_prompt: bool = False,
    ) -> Inputs:
        """A batch of conversations as the model takes it, media decoded.

        Raises:
            InputError: As ``render``; or there is no conversation, or a medium cannot be decoded.
        """
        rendered = [self.render(messages, add_generation_prompt=add_generation_prompt) for messages in conversations]
        return self.inputs_of(rendered, padding=padding)

    def inputs_of(self, rendered: Sequence[Rendered], *, padding: Padding = Padding.right) -> Inputs:
        """Like ``inputs``, of what is rendered already."""
        if not rendered:
            raise InputError("inputs: no conversation; give at least one")
        rows = [torch.tensor(self.tokenizer.encode(one.text), dtype=torch.int64) for one in rendered]
        ids = pad_sequence(rows, batch_first=True, padding_value=self.tokenizer.pad_id, padding_side=padding.value)
        real = [torch.ones(len(row), dtype=torch.bool) for row in rows]
        return Inputs(
            ids=ids,
            mask=pad_sequence(real, batch_first=True, padding_side=padding.value),
            images=self.pixels([picture for one in rendered for picture in one.pictures]),
            audio=self.frames([recording for one in rendered for recording in one.recordings]),
        )

    def pixels(self, pictures: Sequence[Picture]) -> Images | None:
        """Pictures decoded and resized; None for none.

        Raises:
            InputError: One cannot be decoded, or the model takes no pictures.
        """
        if not pictures:
            return None
        processor = self.images or self._refuse(pictures[0], "vision", self.config.vision)
        return Images(pixels=torch.stack([processor(picture) for picture in pictures]))

    def frames(self, recordings: Sequence[Recording]) -> Audio | None:
        """Recordings decoded, each a clip; None for none.

        Raises:
            InputError: One cannot be decoded, or the model takes no recordings.
        """
        if not recordings:
            return None
        processor = self.audio or self._refuse(recordings[0], "audio", self.config.audio)
        return Audio.of([processor(recording) for recording in recordings])

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ``ids``, special tokens and media left out."""
        return self.tokenizer.decode(ids)

    def _prepared(self, message: Message) -> Message:
        """The message as it is rendered: recordings cut into clips, media refused that the model cannot take."""
        for picture in message.pictures:
            if self.images is None:
                self._refuse(picture, "vision", self.config.vision)
        if not message.recordings:
            return message
        audio = self.audio or self._refuse(message.recordings[0], "audio", self.config.audio)
        parts: list[Part] = []
        for part in message.parts:
            parts.extend(audio.split(part) if isinstance(part, Recording) else (part,))
        return replace(message, content=tuple(parts))

    def _refuse(self, medium: Picture | Recording, tower: str, config: object) -> NoReturn:
        if config is None:
            raise InputError(
                f"{medium}: the model has no {tower} tower; leave it out, or take a checkpoint that has one"
                " (modalities)"
            )
        raise InputError(f"{medium}: {unprepared(self.tokenizer, SECTIONS[tower])}")


def audio_processor(settings: AudioSettings, config: AudioConfig, long: LongAudio) -> AudioProcessor:
    """The audio processor of a model, whose clips fit into its runs of placeholders.

    Raises:
        ConfigError: The tower hears another number of mels than there are.
    """
    if settings.feature_size != config.input_feat_size:
        raise ConfigError(
            f"audio settings: feature_size is {settings.feature_size}, but the audio tower takes"
            f" {config.input_feat_size} mels (input_feat_size); they must be equal"
        )
    return AudioProcessor(settings, max_frames=config.max_frames, long=long)
