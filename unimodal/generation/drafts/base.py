"""Drafts: guesses of an answer's next tokens, which one pass checks together (Leviathan et al., arXiv 2211.17192).

The noise of a token depends on the answer's seed and the token's number alone, so plain decoding would take one certain
token at each place. A draft is kept where it is that token: answers with drafts are those without, id for id. A pass
over the last token and W drafts gives 1 to W + 1 tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from unimodal.generation.drafts.pace import Pace

# Shapes: P answers, R rows of the cache, W drafts of each answer, D model width.


class Guesses(NamedTuple):
    """Ids (P, W) of what comes next, and bool (P, W): which of them are guesses at all."""

    ids: Tensor
    known: Tensor


class Pass(NamedTuple):
    """What a drafter may read after a pass; tensors alone, and no waiting for a device."""

    batch: Any
    """The `Batch`, with everything that the pass has changed but its drafts."""
    tokens: Tensor
    """(P, W + 1): what was sampled after the last token, after one draft, ..."""
    taken: Tensor
    """(P,): how many of them the answer took; 0 where it stood still."""
    features: Tensor
    """(R, W + 1, D) of the rows of the cache that were fed, before the heads."""
    positions: Tensor
    slots: Tensor
    """(R, W + 1) of their tokens."""


class Drafter(Protocol):
    """Guesses what comes after a pass."""

    def __call__(self, done: Pass, window: int) -> Guesses:
        """`window` guesses for each answer."""
        ...


def combined(guesses: list[Guesses]) -> Guesses:
    """Each guess from the first drafter that knows it."""
    first, *others = guesses
    ids, known = first
    for other in others:
        ids, known = other.ids.where(~known & other.known, ids), known | other.known
    return Guesses(ids, known)


@dataclass(frozen=True)
class Drafting:
    """How a batch drafts: guesses of one drafter after the other, at most `window` of them for each pass.

    With a `pace` each pass has the window that it measured to be the fastest; without, it is always `window`.
    """

    drafters: tuple[Drafter, ...] = ()
    window: int = 0
    pace: Pace | None = None

    def __call__(self, done: Pass, window: int) -> Tensor:
        """(P, W) ids; the padding id, which never comes true, where nothing is known."""
        ids, known = combined([drafter(done, window) for drafter in self.drafters])
        return ids.where(known, done.batch.space.specials.pad)


PLAIN = Drafting()
"""One token a pass."""
