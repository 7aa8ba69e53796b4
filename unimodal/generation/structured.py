"""Answers whose text follows a grammar: the host's part, for the rows of a batch that have one.

A grammar has to consume every token of text, so the host syncs after every token with a batch that has such an answer.
During an image the grammar rests: it consumes boi and eoi, and never a code.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tokenizers_vq.token_space import TokenSpace
from unimodal.generation.modality import ModalityState
from unimodal.generation.requests import Matcher, TextGrammar
from unimodal.generation.rows import RowStatus

# Shapes: P answers, T text ids.


class Structured:
    """The matchers of a batch, one for each answer that has a grammar."""

    def __init__(self, space: TokenSpace) -> None:
        self.space = space
        self.matchers: list[Matcher | None] = []
        self.seen_steps: list[int] = []
        self.stuck_rows: list[bool] = []
        self.bias: Tensor | None = None
        """(P, T) of 0 and -inf, added to the logits of text ids; None while no answer has a grammar."""

    @property
    def active(self) -> bool:
        """Whether any answer has a grammar."""
        return any(matcher is not None for matcher in self.matchers)

    def add(self, grammars: Sequence[TextGrammar | None]) -> None:
        """Answers join, with or without a grammar."""
        self.matchers += [None if grammar is None else grammar.start() for grammar in grammars]
        self.seen_steps += [0] * len(grammars)
        self.stuck_rows += [False] * len(grammars)

    def keep(self, kept: Sequence[int]) -> None:
        """Only these answers stay, in this order."""
        self.matchers = [self.matchers[index] for index in kept]
        self.seen_steps = [self.seen_steps[index] for index in kept]
        self.stuck_rows = [self.stuck_rows[index] for index in kept]

    def stuck(self, index: int) -> bool:
        """Whether the grammar asked an answer for an image that does not fit."""
        return self.stuck_rows[index]

    def prepare(self, state: ModalityState, may_draw: Tensor) -> None:
        """Work out what each grammar allows next. `may_draw` (P,) says whether an image would fit."""
        if not self.active:
            self.bias = None
            return
        may_begin = may_draw.tolist()
        resting = (state.in_image | state.done).tolist()
        bias = torch.zeros(len(self.matchers), self.space.text_size)
        for index, matcher in enumerate(self.matchers):
            if matcher is not None and not resting[index]:
                mask, self.stuck_rows[index] = text_mask(self.space, matcher, may_begin=may_begin[index])
                bias[index].masked_fill_(~mask, float("-inf"))
        self.bias = bias.to(may_draw.device)

    def follow(self, statuses: Sequence[RowStatus]) -> None:
        """Advance the grammars by the tokens that were sampled since the last time."""
        for index, (matcher, one) in enumerate(zip(self.matchers, statuses, strict=True)):
            if matcher is not None and one.step > self.seen_steps[index]:
                self.seen_steps[index] = one.step
                if one.token < self.space.text_size and not self.stuck_rows[index]:
                    matcher.consume(one.token)


def text_mask(space: TokenSpace, matcher: Matcher, *, may_begin: bool) -> tuple[Tensor, bool]:
    """bool (T,): the text ids that may come next; and whether the grammar is stuck: its image does not fit.

    `may_begin`: whether an image would fit. A grammar at its end, or stuck, leaves eos.
    """
    specials, mask = space.specials, matcher.mask()
    stuck = False
    if not may_begin and mask[specials.boi]:
        mask = mask.clone()
        mask[specials.boi] = False
        stuck = not bool(mask.any())
    if not mask.any():
        mask = torch.zeros_like(mask)
        mask[specials.eos] = True
    return mask, stuck
