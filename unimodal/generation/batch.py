"""The rows that are decoded together: one cache, one forward pass a token, whatever each row is doing.

An answer has a main row, and while its image is drawn by codes with guidance one or two rows more, which hold the
contexts it is compared with and are fed the same codes. `step` is tensors only; `sync` is the one place where the host
learns what has happened, and between syncs a row that has ended, or that waits for its contexts or for a painter,
stands still. Rows that are parked, because a painter draws for them later, take no part in the forward pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tokenizers_vq.token_space import TokenSpace
from unimodal.generation.context import Context, Piece, Reading, guidance_contexts, lay_out, read_prompt
from unimodal.generation.drafts.base import PLAIN, Drafting
from unimodal.generation.forward import EagerForward, Forward
from unimodal.generation.guidance import RowGuidance
from unimodal.generation.modality import ModalityMachine, ModalityState
from unimodal.generation.painters.base import Painted, Painter
from unimodal.generation.prefill import NewAnswer, Prefill
from unimodal.generation.recording import RecordedSteps, Steps
from unimodal.generation.requests import Request
from unimodal.generation.rows import BatchLimits, Row, RowStatus, close_gaps, move_last, rows_by_role
from unimodal.generation.sampling import RowSampling, exact
from unimodal.generation.stepping import advance, may_draw, waits
from unimodal.generation.structured import Structured
from unimodal.model.cache import KVCache, LayerCache
from unimodal.model.model import UnifiedModel

# Shapes: P answers, R rows of the cache, V vocabulary, N maximum of new tokens.

PER_ANSWER = (
    *("budget", "token_limit", "step_count", "num_sampled", "position", "tokens", "has_contexts", "image_slots"),
    *("seeds", "drafts", "out", "log_probs"),
)
"""Tensors of a batch with one row for each answer."""


class Batch:
    """Answers in the making. Empty at first; `add` and `remove` change it between steps."""

    def __init__(
        self,
        model: UnifiedModel,
        space: TokenSpace,
        limits: BatchLimits,
        forward: Forward | None = None,
        painter: Painter | None = None,
        reading: Reading | None = None,
        drafting: Drafting = PLAIN,
    ) -> None:
        self.model, self.space, self.limits, self.painter = model, space, limits, painter
        self.drafting, self.window = drafting, drafting.window
        self.forward, self.reading = forward or EagerForward(model), reading or Reading()
        self.steps = RecordedSteps() if self.forward.recordable else Steps()
        self.device, self.machine = model.device, ModalityMachine(space, model.device)
        slots = limits.slots + 1  # the last slot is padding's
        layers = model.config.cached_layers if drafting.window else None
        self.cache = KVCache(model.config.trunk, 0, slots, model.dtype, self.device, layers)
        self.prefill = Prefill(model, self.cache, space.specials.pad)
        self.rows, self.numbers = list[Row](), list[int]()
        self.parked: frozenset[int] = frozenset()
        self.requests, self.contexts = dict[int, Request](), dict[int, Context]()
        self.structured = Structured(space)
        self.state = self.machine.start([], [])
        self.budget, self.token_limit, self.step_count, self.num_sampled = (self.integers([]) for _ in range(4))
        self.position, self.tokens = self.integers([]), self.integers([])
        self.has_contexts, self.image_slots = self.integers([]).bool(), self.integers([])
        self.seeds, self.drafts = self.integers([]), self.integers([]).view(0, self.window)
        nothing = torch.zeros(0, limits.steps + drafting.window + 1, device=self.device)
        self.log_probs, self.out = exact(nothing.to(model.dtype)), nothing.long()
        self._null: list[LayerCache] | None = None
        self.reach, self._prompts = 0, self.drafts
        self._arrange()

    def __len__(self) -> int:
        return len(self.numbers)

    # -- what changes between steps

    def add(self, new: Sequence[NewAnswer], *, keep: Set[int] = frozenset()) -> None:
        """Answers join; see `Prefill.add`."""
        self.cache.grow(len(self.rows) + len(new))
        self.prefill.add(new, len(self.rows), keep)
        for item in new:
            slot = len(item.piece) - 1
            self.rows.append(Row(answer=item.number, offset=slot - item.piece.positions[-1]))
            self.numbers.append(item.number)
            self.requests[item.number] = item.request
        configs = [item.request.config for item in new]
        kinds = [config.outside(painted=self.painter is not None) for config in configs]
        self.state = ModalityState.cat([self.state, self.machine.start(kinds, [c.image_size for c in configs])])
        nothing, no = self.integers([0] * len(new)), self.integers([0] * len(new)).bool()
        context = self.model.config.trunk.max_length
        joined = {
            "budget": self.integers([config.max_new_tokens for config in configs]),
            "token_limit": self.integers([min(i.request.config.max_new_tokens, context - len(i.piece)) for i in new]),
            "step_count": nothing,
            "num_sampled": nothing,
            "position": self.integers([item.piece.positions[-1] for item in new]),
            "tokens": self.integers([item.piece.tokens[-1] for item in new]),
            "has_contexts": no,
            "image_slots": self.integers([self.painter.slots(i.request) if self.painter else 0 for i in new]),
            "seeds": self.integers([item.request.seed for item in new]),
            "drafts": self.drafts.new_full((len(new), self.window), self.space.specials.pad),
            "out": self.out.new_zeros(len(new), self.out.shape[1]),
            "log_probs": self.log_probs.new_zeros(len(new), self.out.shape[1]),
        }
        for name in PER_ANSWER:
            setattr(self, name, torch.cat([getattr(self, name), joined[name]]))
        self.structured.add([config.grammar for config in configs])
        self._arrange()

    def remove(self, gone: set[int]) -> None:
        """Answers leave, with all their rows."""
        kept = [index for index, row in enumerate(self.rows) if row.answer not in gone]
        close_gaps(self.rows, kept, self.cache, self.limits.slots)
        self.parked -= gone
        for number in gone:
            self.requests.pop(number, None)
            self.contexts.pop(number, None)
        self._arrange()

    def park(self, numbers: Set[int]) -> bool:
        """Keep the rows of answers out of every step until `insert`; whether they are others than before."""
        if numbers == self.parked:
            return False
        self.parked = frozenset(numbers)
        self._arrange()
        return True

    def assign_contexts(self, statuses: Mapping[int, RowStatus]) -> None:
        """Give rows to answers that wait for the contexts of their image, and take them from those outside images."""
        idle = {number for number, status in statuses.items() if status.waits or not status.in_image}
        kept = [index for index, row in enumerate(self.rows) if row.role == 0 or row.answer not in idle]
        waiting = [number for number in self.numbers if statuses[number].waits and not self.painted(number)]
        if len(kept) == len(self.rows) and not waiting:
            return
        close_gaps(self.rows, kept, self.cache, self.limits.slots)
        for number in waiting:
            self._add_contexts(number, statuses[number].position)
        self.has_contexts[self.integers([self.numbers.index(number) for number in waiting])] = True
        self._arrange()

    def painted(self, number: int) -> bool:
        """Whether a painter draws an answer's images."""
        return self.painter is not None and self.painter.slots(self.requests[number]) > 0

    def context(self, number: int) -> Context:
        """What an answer's main row has read of prompt and images."""
        if number not in self.contexts:
            self.contexts[number] = read_prompt(self.requests[number], self.space, self.reading)
        return self.contexts[number]

    def insert(self, painted: Mapping[int, Painted]) -> None:
        """Images that a painter drew join their answers: ids, contexts, and what comes after them."""
        pieces: dict[int, Piece] = {}
        for number, image in painted.items():
            answer, row = self.numbers.index(number), self.main_row(number)
            position, step = int(self.position[answer]), int(self.step_count[answer])
            ids = [*image.body, self.space.specials.eoi]
            self.out[answer, step : step + len(ids)] = self.integers(ids)
            self.log_probs[answer, step : step + len(ids)] = 0
            piece = lay_out(image.image.runs(self.space), position + self.rows[row].offset, position)
            end = piece.slot + len(piece)
            left = self.model.config.trunk.max_length - end
            self.step_count[answer], self.tokens[answer] = step + len(ids), ids[-1]
            self.token_limit[answer] = min(self.requests[number].config.max_new_tokens, step + len(ids) + left)
            if self.requests[number].config.mode != "image":  # an image alone ends its answer
                self.context(number).show(image.image, self.space)
                self.position[answer] = piece.positions[-1]
                self.rows[row].offset = end - 1 - piece.positions[-1]
                pieces[row] = piece.part(0, len(piece) - (not piece.ends_in_media))
        self.prefill.scattered(pieces)
        self.parked -= painted.keys()
        closed = self.integers([self.numbers.index(number) for number in painted])
        self.state = self.machine.close_images(self.state, closed)
        self.state.done = self.state.done | (self.step_count >= self.token_limit)
        self._arrange()

    def use_window(self, window: int) -> None:
        """Check so many drafts in each pass from now on."""
        if window != self.window:
            missing, self.window = window - self.window, window
            self.drafts = torch.nn.functional.pad(self.drafts, (0, missing), value=self.space.specials.pad)
            self.steps.forget()
            self._fit_window()

    def main_row(self, number: int) -> int:
        """The row of the cache that an answer itself has."""
        return next(index for index, row in enumerate(self.rows) if row.answer == number and row.role == 0)

    def sync(self) -> list[RowStatus]:
        """What has happened: one copy from the device."""
        columns = (self.state.done, self.state.in_image, waits(self), self.step_count, self.position, self.tokens)
        table = torch.stack([column.long() for column in columns], dim=1).tolist() if len(self) else []
        statuses = [RowStatus(*map(bool, row[:3]), *row[3:]) for row in table]
        positions = dict(zip(self.numbers, (status.position for status in statuses), strict=True))
        fed = self.rows[: len(self.answer_of)]
        self.reach = max((positions[row.answer] + row.shift + row.offset for row in fed), default=0)
        return statuses

    def prepare_grammars(self) -> None:
        """Work out what each grammar allows next."""
        self.structured.prepare(self.state, may_draw(self) if self.structured.active else self.state.done)

    # -- the decode path: tensors only

    def step(self) -> None:
        """One token for every answer that moves."""
        self.steps.run(self)

    def advance(self) -> None:
        """A step, kernel by kernel."""
        advance(self)

    def history(self) -> tuple[Tensor, Tensor]:
        """Ids (P, L) of prompts and answers, and how many of each are there (P,); before a prompt stands -1."""
        return torch.cat([self._prompts, self.out], 1), self.step_count + self._prompts.shape[1]

    # -- rows of the cache

    def _arrange(self) -> None:
        """Order the rows, and make the index tensors that follow from which there are."""
        self.steps.forget()
        fed = move_last(self.rows, self.parked, self.cache, self.limits.slots)
        self._follow_rows()
        main, null, image = rows_by_role(self.rows, self.numbers)
        self.answer_of = self.integers([self.numbers.index(row.answer) for row in self.rows[:fed]])
        self.shift = self.integers([row.shift for row in self.rows[:fed]])
        offsets = [row.offset for row in self.rows]
        self.offset = self.integers(offsets[:fed]) if any(offsets) else None
        self.main_offset = self.integers([offsets[row] for row in main])
        self.main = self.integers(main)
        self.null, self.image = (self.integers(null), self.integers(image)) if null != main else (None, None)
        configs = [self.requests[number].config for number in self.numbers]
        self.sampling = RowSampling.of([config.sampling for config in configs], self.device)
        self.guidance = RowGuidance.of([config.guidance for config in configs], self.device)
        self._fit_window()
        self.sync()

    def _all_prompts(self) -> Tensor:
        """(P, L): the first part of `history`."""
        prompts = [list(self.requests[number].prompt) for number in self.numbers]
        max_length = max(map(len, prompts), default=0)
        return self.integers([[-1] * (max_length - len(ids)) + ids for ids in prompts]).view(len(prompts), max_length)

    def _fit_window(self) -> None:
        """Settings for each place of a window."""

        def spread(values: Tensor) -> Tensor:
            return values.repeat_interleave(self.window + 1)

        if self.window:  # made here: a recorded pass copies nothing from the host
            self._prompts = self._all_prompts()
        self.window_sampling = self.sampling.map(spread)
        self.window_guidance = RowGuidance(*map(spread, self.guidance))

    def _follow_rows(self) -> None:
        """Bring the answers into the order of their main rows, so that without guidance logits need no sorting."""
        index_of = {number: index for index, number in enumerate(self.numbers)}
        kept = [index_of[row.answer] for row in self.rows if row.role == 0]
        if kept == list(range(len(self.numbers))):
            return
        self.numbers = [self.numbers[index] for index in kept]
        chosen = self.integers(kept)
        self.state = self.state.select(chosen)
        for name in PER_ANSWER:
            setattr(self, name, getattr(self, name)[chosen])
        self.structured.keep(kept)

    def _add_contexts(self, number: int, position: int) -> None:
        compared = guidance_contexts(self.context(number), self.space, self.requests[number].config.guidance)
        for role, context in enumerate(compared, start=1):
            row, piece = len(self.rows), replace(context.piece(), following=self.space.specials.boi)
            self.cache.grow(row + 1)
            if role == 1:
                self.cache.load_row(row, self._null_prefix(row, piece))
            else:
                self.prefill.pieces(row, [piece])
            shift, offset = context.position - position, len(context) - context.position
            self.rows.append(Row(answer=number, shift=shift, offset=offset, role=role))

    def _null_prefix(self, row: int, piece: Piece) -> list[LayerCache]:
        """What every null context leaves in the cache; read into this row the first time."""
        if self._null is None:
            self.prefill.pieces(row, [piece])
            self._null = self.cache.export_row(row, len(piece))
        return self._null

    def integers(self, values: Sequence[Any]) -> Tensor:
        """An int64 tensor on the batch's device."""
        return torch.tensor(values, dtype=torch.int64, device=self.device)
