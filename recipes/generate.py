# SPDX-License-Identifier: Apache-2.0
"""Answer a prompt of text, images and sound with a checkpoint, or with a sub-model of it.

The answer alone goes to standard output.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.adapter.lora import check_adapter
from model.config import ModelConfig
from model.errors import ConfigError, InputError
from model.generation.generate import check_prompts, generate, ids_of_media, pad_left
from model.generation.sampling import SamplingConfig
from model.inputs import Inputs
from model.processor.audio import LongAudio
from model.processor.chat import AUDIO_MARKS, IMAGE_MARKS, Message, Role
from model.processor.media import Picture, Recording
from model.processor.processor import Processor
from model.processor.tokenizer import Tokenizer
from model.slicing.spec import SliceConfig
from model.tower_config import Modality
from recipes.build import build_adapted, find_device, without_idle_towers
from recipes.locate import find_checkpoint
from recipes.program import start
from recipes.sizes import resolve_slice
from trainer.config import Device, Precision

UNFINISHED = "\ufffd"  # what the bytes of a character decode to before its last one is there


@dataclass(kw_only=True, slots=True)
class GenerateRecipe:
    """Answer a prompt of text, images and sound with a checkpoint, or with a sub-model of it.

    Images and sound are files, as in image=a.png or audio=[a.wav,b.flac]. They stand before the text, or where
    it says <image_soft_token> and <audio_soft_token>.
    """

    checkpoint: str  # directory or hub name of published weights
    slice: SliceConfig
    generation: SamplingConfig
    prompt: str | None = None  # null reads standard input
    image: Any = None  # a file, or a list of files
    audio: Any = None  # likewise
    long_audio: LongAudio = LongAudio.refuse  # sound of more than 30 s: refuse, truncate, or chunk it into several
    system: str | None = None  # instruction put before the prompt
    adapter_path: Path | None = None  # directory of a trained adapter
    modalities: list[Modality] | None = None  # towers to load if needed, beside text; null = all
    precision: Precision = Precision.fp32
    device: Device = Device.auto


def run(recipe: GenerateRecipe) -> None:
    """Print the answer as it comes."""
    pictures = [Picture(file) for file in files_of("image", recipe.image)]
    recordings = [Recording(file) for file in files_of("audio", recipe.audio)]
    prompt = read_prompt(recipe.prompt, has_media=bool(pictures or recordings))
    checkpoint = find_checkpoint(recipe.checkpoint)
    config = ModelConfig.read(checkpoint)
    unsaid = ids_of_media(config)  # also of towers that are not loaded, so that the answer is the same
    if recipe.modalities is not None:
        config = config.only(recipe.modalities)
    spec = resolve_slice(recipe.slice, config.text)
    processor = Processor.read(checkpoint, config, long_audio=recipe.long_audio)
    # Everything that can be wrong with the prompt is found before the weights are read.
    inputs = prepare(
        processor, [*system_message(recipe.system), *user_message(processor, prompt, pictures, recordings)]
    )
    check_prompts(inputs, recipe.generation, config.text.max_position_embeddings)
    adapted = () if recipe.adapter_path is None else check_adapter(config, recipe.adapter_path)
    loaded = without_idle_towers(config, inputs.ids, adapted=adapted).modalities

    device = find_device(recipe.device)
    model = build_adapted(
        checkpoint, recipe.adapter_path, dtype=recipe.precision.dtype, device=device, modalities=loaded
    )  # fmt: skip
    tokenizer = processor.tokenizer
    stop_ids = {tokenizer.end_of_turn_id, *config.text.eos_token_id}
    tokens = generate(
        model, inputs.to(device), sampling=recipe.generation, stop_ids=stop_ids, spec=spec, unsaid=unsaid
    )  # fmt: skip
    ids = (int(token) for token in tokens)
    for piece in decode_as_it_comes((token for token in ids if token not in stop_ids), tokenizer):
        print(piece, end="", flush=True)
    print()


def files_of(key: str, written: Any) -> list[str]:
    """The files that ``image=`` or ``audio=`` names: one, several, or none.

    Raises:
        ConfigError: It is neither a text nor a list of texts.
    """
    files = [] if written is None else written if isinstance(written, list) else [written]
    if not all(isinstance(file, str) and file.strip() for file in files):
        raise ConfigError(f"{key} is {written!r}; it must be a file or a list of files, as in {key}=a or {key}=[a,b]")
    return [os.path.expanduser(file) for file in files]  # texts, not paths: an address must stay one to be refused


def read_prompt(written: str | None, *, has_media: bool) -> str:
    """The prompt's text, from the command line or from standard input; beside media there may be none.

    Raises:
        InputError: There is none, and no image or sound either.
    """
    prompt = from_standard_input(asks=not has_media) if written is None else written
    if not prompt.strip() and not has_media:
        raise InputError("prompt is empty; give prompt='…', text on standard input, image=FILE or audio=FILE")
    return prompt


def from_standard_input(*, asks: bool) -> str:
    """All of standard input, empty if it is closed; nobody at a terminal is made to type unless it ``asks``.

    Raises:
        InputError: It is no text.
    """
    if sys.stdin is None or sys.stdin.closed or (sys.stdin.isatty() and not asks):
        return ""
    try:
        found = sys.stdin.read()
        found.encode("utf-8")  # where it is read as ASCII, other bytes come as halves of surrogate pairs
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        raise InputError(
            f"prompt: standard input is no text in UTF-8 ({error.reason} at {error.start}); pipe text, or give files"
            " as image=FILE or audio=FILE"
        ) from None
    return found


def system_message(text: str | None) -> list[Message]:
    """The instruction, if there is one."""
    return [] if text is None else [Message(Role.system, text)]


def user_message(
    processor: Processor, prompt: str, pictures: Sequence[Picture], recordings: Sequence[Recording]
) -> tuple[Message, ...]:
    """The prompt with its media: where it has placeholders for them, or before it, images first.

    Raises:
        InputError: It has placeholders of a medium, but not as many as there are items.
    """
    image, audio = processor.image_marks or IMAGE_MARKS, processor.audio_marks or AUDIO_MARKS
    places_images, places_sound = image.placeholder in prompt, audio.placeholder in prompt
    before = (*(() if places_images else pictures), *(() if places_sound else recordings))
    with about("prompt"):
        return processor.place_media(
            [Message(Role.user, (*before, prompt) if before else prompt)],
            pictures if places_images else (),
            recordings if places_sound else (),
        )


def prepare(processor: Processor, messages: Sequence[Message]) -> Inputs:
    """The conversation as the model takes it, media decoded.

    Raises:
        InputError: A text cannot be written, or a medium not be read or not be taken by the model.
    """
    for message in messages:
        for key, media in (("image", message.pictures), ("audio", message.recordings)):
            for medium in media:
                with about(key):
                    processor.check([Message(Role.user, (medium,))])
    with about("prompt"):
        rendered = processor.render(messages, add_generation_prompt=True)
    with about("image"):
        images = processor.pixels(rendered.pictures)
    with about("audio"):
        audio = processor.frames(rendered.recordings)
    inputs = pad_left([processor.tokenizer.encode(rendered.text)], processor.tokenizer.pad_id)
    return dataclasses.replace(inputs, images=images, audio=audio)


@contextmanager
def about(key: str) -> Iterator[None]:
    """Let an error say which argument it is about."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{key}: {error}") from None


def decode_as_it_comes(ids: Iterable[int], tokenizer: Tokenizer) -> Iterator[str]:
    """The text of ``ids`` in pieces, none of which is ever taken back."""
    seen: list[int] = []
    shown = ""
    for token in ids:
        seen.append(token)
        text = tokenizer.decode(seen)
        if not text.endswith(UNFINISHED):
            yield text[len(shown) :]
            shown = text
    yield tokenizer.decode(seen)[len(shown) :]


def main(arguments: Sequence[str]) -> int:
    """Run from a command line; return the exit status."""
    return start("generate", GenerateRecipe, run, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
