# SPDX-License-Identifier: Apache-2.0
"""A sub-model as lm-evaluation-harness wants a model: an object with its methods, of no class of its.

The harness is not imported here, so all of this can be tested without it; ``library`` tells it of this class.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch

from model.slicing.spec import SliceSpec
from trainer.harness.chat import Chat
from trainer.harness.requests import Asking, Request, RequestKind, Requests, in_turn

PARTS = 10  # how often it is told how far it is


@runtime_checkable
class Instance(Protocol):
    """What the harness asks with: texts and settings."""

    @property
    def args(self) -> tuple[Any, ...]:
        """A prompt and what may follow it, a text, or a prompt and settings."""
        ...


@runtime_checkable
class CacheHook(Protocol):
    """Keeps answers for another run, if its user wants that."""

    def add_partial(self, attr: str, req: Any, res: Any) -> None:
        """One answer."""
        ...


@dataclass(kw_only=True)
class HarnessModel:
    """One sub-model, asked by the harness.

    Args:
        asking: The model that it is a part of.
        spec: Which part.
        requests: What is asked, as tokens.
        chat: How conversations are written, if they are asked for.
        about: Goes into the harness's results: what model this is.
    """

    asking: Asking
    spec: SliceSpec
    requests: Requests
    chat: Chat
    about: Mapping[str, Any] = field(default_factory=dict)
    cache_hook: CacheHook | None = None
    rank: int = 0  # one process alone
    world_size: int = 1

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """How likely texts are behind their prompts, and whether greedy decoding would say them."""
        return self.answers(RequestKind.loglikelihood, requests)

    def loglikelihood_rolling(self, requests: Sequence[Instance]) -> list[float]:
        """How likely whole texts are."""
        return self.answers(RequestKind.loglikelihood_rolling, requests)

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """How prompts go on."""
        return self.answers(RequestKind.generate_until, requests)

    def answers(self, kind: RequestKind, requests: Sequence[Instance]) -> list[Any]:
        """What is answered, in order; answers are kept where the harness keeps them."""
        wanted = in_turn(
            self.requests.of(kind, one.args, f"lm_eval: {kind} request {number}") for number, one in enumerate(requests)
        )
        progress = Progress(f"{kind} requests", sum(request.weight for request in wanted if has_work(request)))
        asking = Asking(
            engine=self.asking.engine, stop_ids=self.asking.stop_ids, batch_size=self.asking.batch_size,
            told=progress.add,
        )  # fmt: skip
        (found,) = asking.answers(wanted, [self.spec])
        if self.cache_hook is not None:
            for one, answer in zip(requests, found, strict=True):
                self.cache_hook.add_partial(kind, one.args, answer)
        return found

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Keep answers with this from now on."""
        self.cache_hook = cache_hook

    def apply_chat_template(
        self,
        chat_history: Sequence[Mapping[str, str]],
        add_generation_prompt: bool = True,  # noqa: FBT001
    ) -> str:
        """A conversation as the checkpoint's template writes it."""
        return self.chat.write(chat_history, add_generation_prompt=add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str | None:  # noqa: FBT001
        """The template, for the results; none where none is applied. There is one, whatever name is asked for."""
        return self.chat.text if chat_template else None

    @property
    def tokenizer_name(self) -> str:
        """What tells requests that the harness keeps from those for another tokenizer or template."""
        return f"matslice-{self.requests.encoding.tokenizer.fingerprint}"

    @property
    def max_length(self) -> int:
        """Tokens that the model is given at most."""
        return self.requests.encoding.max_length

    @property
    def batch_size(self) -> int:
        """Sequences that it reads at once."""
        return self.asking.batch_size

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.asking.engine.device

    def get_model_info(self) -> dict[str, Any]:
        """What model this is, for the results."""
        return {
            **self.about,
            "max_length": self.max_length,
            "add_bos_token": self.requests.encoding.add_bos,
        }

    def all_gather(self, tensor: Any) -> Any:
        """What all processes have: of one alone, its own."""
        return tensor

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any]:  # noqa: ARG002
        """Likewise."""
        return [obj]

    def barrier(self) -> None:
        """Wait for the other processes, of which there are none."""


def has_work(request: Request) -> bool:
    """Whether anything is computed for a request; of an empty text nothing is."""
    return bool(request.rows or request.prompt)


@dataclass
class Progress:
    """Tells on standard error how far it is: results come only at the end."""

    what: str
    total: int
    done: int = 0

    def add(self, more: int) -> None:
        """So many more are done."""
        before, self.done = self.done, self.done + more
        if PARTS * self.done // self.total > PARTS * before // self.total:
            print(f"{self.done:,} of {self.total:,} {self.what}", file=sys.stderr, flush=True)
