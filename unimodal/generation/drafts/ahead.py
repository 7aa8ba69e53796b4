"""Where drafts would lead the modality machine, for all tokens of a window at once.

Drafts stay where a closed form says what follows: inside one image, between its header and its last code, and in text
that no grammar rules. So a draft never leaves its image span, and never ends an answer.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import NamedTuple

import torch
from torch import Tensor

from unimodal.generation.modality import Kind, ModalityMachine, ModalityState

# Shapes: B answers, W drafts of each.

TEXT_KINDS = (Kind.TEXT, Kind.MIXED, Kind.PLAN, Kind.FREE)
"""Kinds that a plain text id leaves as they are."""


class Ahead(NamedTuple):
    """What follows if drafts come true."""

    states: ModalityState
    """(B * (W + 1)): of each answer its state now, after one draft, after two, ..."""
    drafts: Tensor
    """(B, W): those that were given; where the layout of an image leaves no choice, what it asks for."""
    follows: Tensor
    """bool (B, W): whether `states` after this draft is what the machine would be in."""


def states_ahead(machine: ModalityMachine, state: ModalityState, drafts: Tensor) -> Ahead:
    """A state (B) and drafts (B, W) -> what follows."""
    window = drafts.shape[1]
    spread = ModalityState(**{item.name: getattr(state, item.name)[:, None] for item in fields(state)})
    drawing = spread.in_image & ((spread.kind == Kind.CODE.value) | (spread.kind == Kind.EOL.value))
    steps = torch.arange(window + 1, device=drafts.device)
    kind, drawn, inside = _image_states(machine, spread, steps)
    kind, drawn = torch.where(drawing, kind, spread.kind), torch.where(drawing, drawn, spread.drawn)
    if machine.is_grid:
        drafts = torch.where(kind[:, :-1] == Kind.EOL.value, machine.space.eol, drafts)
    follows = torch.where(drawing, inside[:, 1:], _stays_text(machine, spread, drafts)) & ~spread.done
    known = {item.name: getattr(spread, item.name).expand_as(kind) for item in fields(state)}
    states = replace(spread, **{**known, "kind": kind, "drawn": drawn})
    flat = {item.name: getattr(states, item.name).reshape(-1) for item in fields(state)}
    return Ahead(ModalityState(**flat), drafts, follows)


def _image_states(machine: ModalityMachine, spread: ModalityState, steps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """State (B, 1) in an image, steps (W + 1,) -> (B, W + 1): kinds, codes drawn, and whether that is in the span.

    A grid's row is its codes and an end of line, but for the last; a fixed layout is one such row.
    """
    total = (spread.rows * spread.columns).clamp_min(1)
    width = spread.columns.clamp_min(1) if machine.is_grid else total
    height, ended = total // width, spread.drawn // width - (spread.kind == Kind.EOL.value).long()
    place = spread.drawn + ended + steps
    row, column = place // (width + 1), place % (width + 1)
    after_row = torch.where(row >= height - 1, Kind.EOI.value, Kind.EOL.value)
    kind = torch.where(column == width, after_row, Kind.CODE.value)
    return kind, row * width + column, place < height * (width + 1)


def _stays_text(machine: ModalityMachine, spread: ModalityState, drafts: Tensor) -> Tensor:
    """bool (B, W): whether a draft is a plain id of text, and text is what comes."""
    plain = (drafts < machine.space.text_size) & (machine.table[Kind.TEXT.value][drafts] == 0)
    plain = plain & ~(drafts[..., None] == machine.ends).any(-1)
    text = torch.zeros_like(spread.in_image)
    for kind in TEXT_KINDS:
        text = text | (spread.kind == kind)
    return plain & ~spread.in_image & text
