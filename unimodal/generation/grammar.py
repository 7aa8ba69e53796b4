"""The modality state machine: which token may come next, for every row of a batch at once.

    TEXT ──boi──▶ IMAGE, N codes left ──code──▶ N-1 ... 0 left ──eoi──▶ TEXT        TEXT ──eos──▶ DONE

In IMAGE the only legal tokens are image codes while codes are left, then eoi: an image span cannot come out wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tokenizers_vq.token_space import TokenSpace

# Shapes: B rows, V vocabulary.

Mode = Literal["text", "image", "mixed"]
MODES: tuple[Mode, ...] = ("text", "image", "mixed")
OUTSIDE = -1


@dataclass(kw_only=True)
class ModalityState:
    """codes_left (B,): image codes still to come, -1 outside an image. done (B,): the row has ended."""

    codes_left: Tensor
    done: Tensor

    @property
    def in_image(self) -> Tensor:
        """(B,) True between boi and eoi."""
        return self.codes_left >= 0


class ModalityGrammar:
    """Masks and transitions for one token space and mode."""

    def __init__(self, space: TokenSpace, mode: Mode) -> None:
        if mode not in MODES:
            raise ValueError(f"the mode is one of {', '.join(MODES)}, got {mode!r}")
        self.space, self.mode = space, mode
        specials, size = space.specials, space.vocab_size
        text = torch.zeros(size, dtype=torch.bool)
        text[: space.image_offset] = True
        text[[specials.pad, specials.bos, specials.boi, specials.eoi, specials.sep, specials.null]] = False
        self._text = text
        self._codes = torch.arange(size) >= space.image_offset
        self._boi, self._eoi, self._eos = (_only(size, i) for i in (specials.boi, specials.eoi, specials.eos))

    def start(self, rows: int) -> ModalityState:
        """All rows in text."""
        return ModalityState(codes_left=torch.full((rows,), OUTSIDE), done=torch.zeros(rows, dtype=torch.bool))

    def allowed(self, state: ModalityState, room: Tensor) -> Tensor:
        """state, room (B,) tokens left for each row -> bool (B, V). No image is begun that would not fit."""
        fits = (room >= self.space.layout.span + 1)[:, None]
        outside = self._outside(fits)
        inside = torch.where((state.codes_left > 0)[:, None], self._codes, self._eoi)
        return torch.where(state.in_image[:, None], inside, outside)

    def _outside(self, fits: Tensor) -> Tensor:
        if self.mode == "text":
            return self._text.expand(len(fits), -1)
        if self.mode == "image":
            return torch.where(fits, self._boi, self._eos)
        return self._text | (self._boi & fits)

    def advance(self, state: ModalityState, tokens: Tensor) -> ModalityState:
        """The state after tokens (B,). In image mode a row ends with its image."""
        specials = self.space.specials
        left = torch.where(state.codes_left > 0, state.codes_left - 1, state.codes_left)
        left = torch.where(tokens == specials.boi, self.space.layout.num_codes, left)
        left = torch.where(tokens == specials.eoi, OUTSIDE, left)
        ended = tokens == (specials.eoi if self.mode == "image" else specials.eos)
        return ModalityState(codes_left=left, done=state.done | ended | (tokens == specials.eos))


class FreeGrammar(ModalityGrammar):
    """No rules: any token but padding. Shows what the model has learned of the format by itself."""

    def allowed(self, state: ModalityState, room: Tensor) -> Tensor:
        """Everything but pad."""
        del room
        mask = torch.ones(len(state.done), self.space.vocab_size, dtype=torch.bool)
        mask[:, self.space.specials.pad] = False
        return mask

    def advance(self, state: ModalityState, tokens: Tensor) -> ModalityState:
        """As with rules, but only eos ends a row and only eoi an image."""
        following = super().advance(state, tokens)
        return ModalityState(codes_left=following.codes_left, done=state.done | (tokens == self.space.specials.eos))


def check_spans(ids: list[int], space: TokenSpace) -> tuple[int, int]:
    """(image spans, malformed ones) of a sequence.

    A span opens with boi; it is well formed when exactly N codes and then eoi follow. A run of codes that no boi opened
    counts as a malformed span.
    """
    specials, size = space.specials, space.layout.num_codes
    spans = malformed = index = 0
    while index < len(ids):
        opened = ids[index] == specials.boi
        if not opened and ids[index] < space.image_offset:
            index += 1
            continue
        index += opened
        begin = index
        while index < len(ids) and ids[index] >= space.image_offset:
            index += 1
        closed = index < len(ids) and ids[index] == specials.eoi
        spans += 1
        malformed += not (opened and closed and index - begin == size)
    return spans, malformed


def _only(size: int, token: int) -> Tensor:
    mask = torch.zeros(size, dtype=torch.bool)
    mask[token] = True
    return mask
