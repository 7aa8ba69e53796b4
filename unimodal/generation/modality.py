"""The modality state machine: which token may come next, for every row of a batch at once.

    TEXT ──boi──▶ ROWS ──▶ COLUMNS ──▶ CODE ──▶ ... CODE ──▶ EOL ──▶ CODE ... ──▶ EOI ──eoi──▶ TEXT      ──eos──▶ done
           └────────────(fixed layout)──▶┘

Inside an image there is one kind of legal token at every place, so an image span cannot come out wrong, and none is
opened that would not fit. Masks are rows of one table (kind x vocabulary) and transitions are arithmetic on tensors:
the decode path never needs a token on the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import IntEnum

import torch
from torch import Tensor

from tokenizers_vq.layout import FixedLayout, Size
from tokenizers_vq.token_space import TokenSpace

# Shapes: B rows, V vocabulary, Z image sizes.

ANY_SIZE = -1


class Kind(IntEnum):
    """What a row may generate next."""

    TEXT = 0
    MIXED = 1
    """Text or the beginning of an image."""
    IMAGE = 2
    """The beginning of an image and nothing else."""
    STRUCTURED = 3
    """What a grammar over the text allows; its mask comes from outside."""
    FREE = 4
    """Anything but padding: no rules."""
    END = 5
    ROWS = 6
    COLUMNS = 7
    CODE = 8
    EOL = 9
    EOI = 10
    PLAN = 11
    """Text up to a picture, whose beginning ends the answer."""


OUTSIDE = {"text": Kind.TEXT, "image": Kind.IMAGE, "mixed": Kind.MIXED}


@dataclass(kw_only=True)
class ModalityState:
    """Where each row is, all (B,): `kind` says what comes next, `outside` what comes next outside images, `wanted` the
    number of the size that images have to have (or ANY_SIZE). Of the image that is open: its rows and columns, and
    how many of its codes are `drawn`. `in_image` holds between boi and eoi; `done` rows have ended.
    """

    kind: Tensor
    outside: Tensor
    wanted: Tensor
    rows: Tensor
    columns: Tensor
    drawn: Tensor
    in_image: Tensor
    done: Tensor

    def select(self, index: Tensor) -> ModalityState:
        """Some rows, in the order of `index`."""
        return ModalityState(**{item.name: getattr(self, item.name)[index] for item in fields(self)})

    @classmethod
    def cat(cls, states: Sequence[ModalityState]) -> ModalityState:
        """The rows of all states, one after the other."""
        return cls(**{item.name: torch.cat([getattr(state, item.name) for state in states]) for item in fields(cls)})

    @property
    def progress(self) -> Tensor:
        """(B,) the share of the open image that is drawn."""
        return (self.drawn / (self.rows * self.columns).clamp_min(1)).clamp_max(1)


class ModalityMachine:
    """Masks and transitions of one token space."""

    def __init__(self, space: TokenSpace, device: torch.device | str = "cpu") -> None:
        self.space, self.device = space, torch.device(device)
        self.is_grid = not isinstance(space.layout, FixedLayout)
        self.sizes = torch.tensor(space.layout.sizes, device=device)
        self.ends = torch.tensor(space.ends, device=device)
        self.spans = torch.tensor([space.layout.span_of(size) for size in space.layout.sizes], device=device)
        self.table = torch.where(_allowed_table(space), 0.0, float("-inf")).to(device)
        counts = torch.arange(space.layout.num_tokens if self.is_grid else 0, device=device)
        self._row_counts = (self.sizes[:, :1] == counts).float()
        self._column_counts = (self.sizes[:, 1:] == counts).float()

    def start(self, outside: Sequence[Kind], sizes: Sequence[Size | None]) -> ModalityState:
        """All rows outside images; `sizes` are those that are asked for, each one of the layout's."""
        known = self.space.layout.sizes
        kinds = torch.tensor([int(kind) for kind in outside], dtype=torch.int64, device=self.device)
        wanted = [ANY_SIZE if size is None else known.index(size) for size in sizes]
        nothing = torch.zeros_like(kinds)
        no = nothing.bool()
        return ModalityState(
            kind=kinds,
            outside=kinds,
            wanted=torch.tensor(wanted, dtype=torch.int64, device=self.device),
            rows=nothing,
            columns=nothing,
            drawn=nothing,
            in_image=no,
            done=no,
        )

    def fits(self, state: ModalityState, left: Tensor) -> Tensor:
        """left (B,) tokens of the budget -> bool (B, Z): which images fit, and one token more to end the answer."""
        sizes = torch.arange(len(self.spans), device=self.device)
        asked_for = (state.wanted[:, None] == ANY_SIZE) | (state.wanted[:, None] == sizes)
        return asked_for & (self.spans + 1 <= left[:, None])

    def bias(self, state: ModalityState, left: Tensor, may_begin: Tensor | None = None) -> Tensor:
        """What is added to logits: (B, V) of 0 and -inf. `may_begin` (B,): may an image start? None: where it fits."""
        may_begin = self.fits(state, left).any(-1) if may_begin is None else may_begin
        kind = torch.where((state.kind == Kind.IMAGE.value) & ~may_begin, Kind.END.value, state.kind)
        kind = torch.where((state.kind == Kind.MIXED.value) & ~may_begin, Kind.TEXT.value, kind)
        bias = self.table[kind]
        return self._with_size(bias, state, left) if self.is_grid else bias

    def _with_size(self, bias: Tensor, state: ModalityState, left: Tensor) -> Tensor:
        """Rows that generate the height or width of an image may choose what the layout has and what fits."""
        already_there = torch.where(state.kind == Kind.COLUMNS.value, 2, 1)  # tokens of the span that are there already
        fits = self.fits(state, left + already_there)
        high = fits.float() @ self._row_counts
        wide = (fits & (self.sizes[:, 0] == state.rows[:, None])).float() @ self._column_counts
        counts = torch.where((state.kind == Kind.ROWS.value)[:, None], high, wide)
        asks = ((state.kind == Kind.ROWS.value) | (state.kind == Kind.COLUMNS.value))[:, None]
        first, last = self.space.text_size, self.space.image_offset
        side_bias = torch.where(asks, torch.where(counts > 0, 0.0, float("-inf")), bias[:, first:last])
        return torch.cat([bias[:, :first], side_bias, bias[:, last:]], dim=1)

    def advance(self, state: ModalityState, tokens: Tensor) -> ModalityState:
        """The state after tokens (B,). In image mode a row ends with its image."""
        specials, free = self.space.specials, state.outside == Kind.FREE.value
        opened, closed = tokens == specials.boi, tokens == specials.eoi
        kind_before = state.kind
        drawn = torch.where(opened, 0, state.drawn + (tokens >= self.space.image_offset))
        rows, columns = self._size(state, tokens, opened)
        after_code = torch.where(drawn % columns.clamp_min(1) == 0, Kind.EOL.value, Kind.CODE.value)
        after_code = after_code if self.is_grid else torch.full_like(kind_before, Kind.CODE.value)
        after_code = torch.where(drawn >= rows * columns, Kind.EOI.value, after_code)
        kind = torch.where(kind_before == Kind.CODE.value, after_code, kind_before)
        kind = torch.where((kind_before == Kind.EOL.value) | (kind_before == Kind.COLUMNS.value), Kind.CODE.value, kind)
        kind = torch.where(kind_before == Kind.ROWS.value, Kind.COLUMNS.value, kind)
        kind = torch.where(opened, int(Kind.ROWS if self.is_grid else Kind.CODE), kind)
        kind = torch.where(closed | free, state.outside, kind)
        planned = opened & (state.outside == Kind.PLAN.value)
        ended = (tokens[:, None] == self.ends).any(-1) | (closed & (state.outside == Kind.IMAGE.value)) | planned
        return ModalityState(
            kind=kind,
            outside=state.outside,
            wanted=state.wanted,
            rows=rows,
            columns=columns,
            drawn=drawn,
            in_image=(state.in_image | opened) & ~closed & ~planned,
            done=state.done | ended,
        )

    def close_images(self, state: ModalityState, rows: Tensor) -> ModalityState:
        """The state after the eoi of images that were drawn as a whole, in some rows."""
        closed = torch.zeros_like(state.in_image).index_fill(0, rows, True)
        tokens = torch.full_like(state.kind, self.space.specials.eoi)
        return keep_where(closed, self.advance(state, tokens), state)

    def _size(self, state: ModalityState, tokens: Tensor, opened: Tensor) -> tuple[Tensor, Tensor]:
        if not self.is_grid:
            rows, columns = self.space.layout.sizes[0]
            return torch.where(opened, rows, state.rows), torch.where(opened, columns, state.columns)
        side_bias = tokens - self.space.text_size
        rows = torch.where(state.kind == Kind.ROWS.value, side_bias, state.rows)
        return rows, torch.where(state.kind == Kind.COLUMNS.value, side_bias, state.columns)


def keep_where(moving: Tensor, new: ModalityState, old: ModalityState) -> ModalityState:
    """The new state where a row moves (B,), the old one elsewhere."""
    return ModalityState(
        **{
            item.name: torch.where(moving, getattr(new, item.name), getattr(old, item.name))
            for item in fields(ModalityState)
        }
    )


def check_spans(ids: Sequence[int], space: TokenSpace) -> tuple[int, int]:
    """(image spans, malformed ones) of a sequence.

    A span opens with boi. A run of codes or of the layout's own ids that no boi opened counts as a malformed span.
    """
    spans = malformed = index = 0
    while index < len(ids):
        opened = ids[index] == space.specials.boi
        if not opened and ids[index] < space.text_size:
            index += 1
            continue
        image = space.read_image(ids, index) if opened else None
        spans += 1
        malformed += image is None
        index = image.end if image else _after(ids, index + opened, space)
    return spans, malformed


def _after(ids: Sequence[int], index: int, space: TokenSpace) -> int:
    while index < len(ids) and ids[index] >= space.text_size:
        index += 1
    return index


def _allowed_table(space: TokenSpace) -> Tensor:
    """bool (kinds, V); heights and widths are filled in by `bias`, the mask of a structured row comes from outside."""
    specials, size = space.specials, space.vocab_size
    table = torch.zeros(len(Kind), size, dtype=torch.bool)
    text = torch.zeros(size, dtype=torch.bool)
    text[: space.text_size] = True
    text[[specials.pad, specials.bos, specials.boi, specials.eoi, specials.sep, specials.null]] = False
    table[Kind.TEXT] = table[Kind.MIXED] = table[Kind.PLAN] = text
    for kind in (Kind.MIXED, Kind.IMAGE, Kind.PLAN):
        table[kind, specials.boi] = True
    table[Kind.END, specials.eos] = table[Kind.EOI, specials.eoi] = True
    table[Kind.CODE, space.image_offset :] = True
    table[Kind.STRUCTURED, : space.text_size] = True
    table[Kind.FREE] = True
    table[Kind.FREE, specials.pad] = False
    if not isinstance(space.layout, FixedLayout):
        table[Kind.EOL, space.eol] = True
    return table
