# SPDX-License-Identifier: Apache-2.0
"""Answer a prompt with a checkpoint, or with a sub-model of it. The answer alone goes to standard output."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence

from model.config import ModelConfig
from model.errors import InputError
from model.generation.generate import generate, pad_left
from model.processor.chat import Message, Role, render
from model.processor.tokenizer import Tokenizer
from model.slicing.spec import SliceSpec
from recipes.build import build_adapted, build_tokenizer, find_checkpoint, find_device
from recipes.program import start
from recipes.schema import GenerateRecipe

UNFINISHED = "\ufffd"  # what the bytes of a character decode to before its last one is there


def run(recipe: GenerateRecipe) -> None:
    """Print the answer as it comes."""
    prompt = read_prompt(recipe.prompt)
    checkpoint = find_checkpoint(recipe.checkpoint)
    config = ModelConfig.read(checkpoint)
    spec = SliceSpec.resolve(recipe.slice, config.text)
    tokenizer = build_tokenizer(None, checkpoint, config.text)
    system = [] if recipe.system is None else [Message(Role.system, recipe.system)]
    rendered = render([*system, Message(Role.user, prompt)], add_generation_prompt=True)
    device = find_device(recipe.device)
    model = build_adapted(checkpoint, recipe.adapter_path, dtype=recipe.precision.dtype, device=device)

    stop_ids = {tokenizer.end_of_turn_id, *config.text.eos_token_id}
    inputs = pad_left([tokenizer.encode(rendered.text)], tokenizer.pad_id, device=device)
    tokens = generate(model, inputs, sampling=recipe.generation, stop_ids=stop_ids, spec=spec)
    ids = (int(token) for token in tokens)
    for piece in decode_as_it_comes((token for token in ids if token not in stop_ids), tokenizer):
        print(piece, end="", flush=True)
    print()


def read_prompt(written: str | None) -> str:
    """The prompt, from the command line or from standard input.

    Raises:
        InputError: There is none.
    """
    prompt = sys.stdin.read() if written is None else written
    if not prompt.strip():
        raise InputError("prompt is empty; give prompt='…', or text on standard input")
    return prompt


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
    return start("generate", run, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
