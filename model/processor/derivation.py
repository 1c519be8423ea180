# SPDX-License-Identifier: Apache-2.0
"""Of which smaller tokens a BPE vocabulary builds each of its tokens.

BPE starts from the characters of a text (a character that is no token becomes its bytes, or the unknown token) and
joins the neighbours whose merge ranks first, the leftmost of several, until no merge applies. A vocabulary can lose
tokens without changing how the others are found, if it keeps with every token what that token is built of:

*Theorem.* Let ``K`` be a set of tokens that is closed (``Derivations.close``), and let the smaller vocabulary have
the tokens ``K``, and of the merges, in their order, those whose left, right and result are in ``K``. A text whose
pieces are all in ``K`` has the same pieces under both.

*Proof.* (1) Whenever a token stands over a stretch of the text, only merges inside the stretch have made it, and
among those inside it, each was the first by rank and place: what happens outside changes nothing inside. So they
are the merges that BPE makes of the stretch alone, and what they pass through is what the stretch alone passes
through, whatever stands around it. (2) The stretch's symbols, put together, are the token's own text, unless bytes
or the unknown token are among them; for such tokens the closure takes the parts of *every* merge that makes them,
and their parts. So all that BPE passes through on its way to pieces in ``K`` is in ``K``. (3) By induction over the
steps the smaller vocabulary does the same: the characters and bytes it starts from are in ``K`` exactly where the
pieces need them; the merge that came first was among the kept ones, which are some of all in the same order, so it
still comes first; and where no merge applied, none of fewer applies. ∎

Added tokens are found before all this, and words that are tokens as a whole (``ignore_merges``) beside it; what
stays of them stays found.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

from model.errors import CheckpointError

BYTE = re.compile(r"<0x[0-9A-F]{2}>")
NUM_BYTES = 256
POSITIONAL = ("continuing_subword_prefix", "end_of_word_suffix")  # by which a token is another at another place


class Derivations:
    """The BPE model of a ``tokenizer.json``, asked what its tokens are built of.

    Args:
        content: The whole file, parsed.
        origin: The file, for messages.

    Attributes:
        vocab: The id of every token of the model; added tokens may lie beside it.
        merges: The pairs that are joined, first ones first.

    Raises:
        CheckpointError: It is no BPE, or one whose tokens are not all built in the same way everywhere.
    """

    def __init__(self, content: Mapping[str, Any], *, origin: str) -> None:
        model = content.get("model")
        if not isinstance(model, dict) or model.get("type", "BPE") != "BPE" or "merges" not in model:
            kind = model.get("type") if isinstance(model, dict) else None
            raise CheckpointError(
                f"{origin}: its model is {kind or 'none that is named'}; only the vocabulary of a BPE model can be"
                " trimmed, which Gemma's is: keep the whole vocabulary of this one"
            )
        if strange := [name for name in (*POSITIONAL, "dropout") if model.get(name)]:
            raise CheckpointError(
                f"{origin}: its model has {strange[0]}={model[strange[0]]!r}, with which pieces of a text depend on"
                " more than the merges; Gemma's has none: keep the whole vocabulary of this one"
            )
        self.vocab: dict[str, int] = model["vocab"]
        self.merges = [pair_of(merge, origin) for merge in model["merges"]]
        self.unknown: str | None = model.get("unk_token")
        self.falls_back = bool(model.get("byte_fallback")) and all(f"<0x{i:02X}>" in self.vocab for i in range(256))
        self._token = {number: token for token, number in self.vocab.items()}
        self._rank: dict[tuple[int, int], tuple[int, int]] = {}  # pair -> its place, and what it makes
        self._makers: dict[int, list[tuple[int, int]]] = defaultdict(list)  # of tokens with bytes in them
        self._parts: dict[int, frozenset[int]] = {}
        try:
            for place, (left, right) in enumerate(self.merges):
                self._add(place, left, right)
        except KeyError as error:
            raise CheckpointError(
                f"{origin}: a merge has {error}, which is no token; take the file that came with the weights"
            ) from None

    def _add(self, place: int, left: str, right: str) -> None:
        pair, made = (self.vocab[left], self.vocab[right]), self.vocab[left + right]
        self._rank[pair] = place, made  # of two equal merges the later one holds, as in the library
        if self._is_foreign(left + right):
            self._makers[made].append(pair)

    def _is_foreign(self, token: str) -> bool:
        """Whether a token may stand for other text than its own: a character's bytes, or an unknown one."""
        return ("<0x" in token and bool(BYTE.search(token))) or bool(self.unknown and self.unknown in token)

    def alphabet(self) -> set[int]:
        """The ids that every text can be written in, if the vocabulary has such: bytes, or single characters."""
        if self.falls_back:
            return {self.vocab[f"<0x{byte:02X}>"] for byte in range(NUM_BYTES)}
        return {number for token, number in self.vocab.items() if len(token) == 1 or BYTE.fullmatch(token)}

    def close(self, ids: Iterable[int]) -> set[int]:
        """``ids``, and all that the tokens among them are built of."""
        closed: set[int] = set()
        waiting = list(ids)
        while waiting:
            number = waiting.pop()
            if number not in closed:
                closed.add(number)
                waiting.extend(self.parts(number) - closed)
        return closed

    def parts(self, number: int) -> frozenset[int]:
        """The ids that BPE passes through on its way to a token; none if no merge makes it."""
        if number not in self._parts:
            makers = (one for pair in self._makers.get(number, ()) for one in pair)
            self._parts[number] = self._passed(number).union(makers) - {number}
        return self._parts[number]

    def _passed(self, number: int) -> frozenset[int]:
        """The ids in use while BPE works on the text of a token alone, if that token comes out."""
        symbols = [self.vocab.get(character, -1) for character in self._token.get(number, "")]
        if -1 in symbols:  # bytes make tokens with bytes in their names, not this one
            return frozenset()
        passed = set(symbols)
        while len(symbols) > 1:
            ranked = [(self._rank[pair], at) for at, pair in enumerate(pairwise(symbols)) if pair in self._rank]
            if not ranked:
                return frozenset()
            (_, made), at = min(ranked)
            symbols[at : at + 2] = [made]
            passed.add(made)
        return frozenset(passed) if symbols == [number] else frozenset()


def pair_of(merge: object, origin: str) -> tuple[str, str]:
    """The two halves of a merge, of either form that files have: two strings, or one with a space between."""
    halves = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(halves, list) or len(halves) != 2 or not all(isinstance(half, str) for half in halves):
        raise CheckpointError(
            f"{origin}: {merge!r} is no merge; it must be two tokens in a list, or with one space between"
        )
    return halves[0], halves[1]
