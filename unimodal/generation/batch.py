"""The rows that are decoded together: one cache, one forward pass a token, whatever each row is doing.

An answer has a main row, and while its image is drawn with guidance one or two rows more, which hold the contexts it is
compared with and are fed the same codes. `step` is tensors only; `look` is the one place where the host learns
what has happened, and between looks a row that has ended, or that waits for its contexts, stands still.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tokenizers_vq.token_space import TokenSpace
from unimodal.generation.forward import EagerForward, Forward
from unimodal.generation.grammar import ModalityGrammar, ModalityState, keep_where
from unimodal.generation.guidance import RowGuidance, contexts, guide, null_context
from unimodal.generation.requests import Request
from unimodal.generation.sampling import RowSampling, pick, row_uniforms
from unimodal.generation.structured import Structured
from unimodal.model.cache import KVCache, LayerCache
from unimodal.model.model import UnifiedModel

# Shapes: P answers, R rows of the cache, V vocabulary, N most new tokens.

PREFILL_AT_ONCE = 16384
"""Prompt tokens, padding included, that go through the model together."""


@dataclass(kw_only=True)
class Row:
    """A row of the cache: the number of the answer that feeds it; the position in the row is the answer's plus `shift`.

    `role` is 0 for the answer's main row, 1 for its null context, 2 for its pictures' context.
    """

    answer: int
    shift: int = 0
    role: int = 0


class Seen(NamedTuple):
    """What the host learns about one answer."""

    done: bool
    in_image: bool
    waits: bool
    step: int
    position: int
    token: int


class NewAnswer(NamedTuple):
    """A request that joins the batch, the number it goes by, and the beginning that it shares, if it is known."""

    number: int
    request: Request
    shared: int
    group: int


class Batch:
    """Answers in the making. Empty at first; `add` and `remove` change it between steps."""

    def __init__(
        self, model: UnifiedModel, space: TokenSpace, slots: int, steps: int, forward: Forward | None = None
    ) -> None:
        self.model, self.space, self.slots = model, space, slots
        self.forward = forward or EagerForward(model)
        self.device, self.dtype = model.device, model.dtype
        self.grammar = ModalityGrammar(space, self.device)
        self.cache = KVCache(model.config.trunk, 0, slots, self.dtype, self.device)
        self.rows: list[Row] = []
        self.numbers: list[int] = []
        self.requests: list[Request] = []
        self.structured = Structured(space)
        self.state = self.grammar.start([], [])
        self.room, self.step_count, self.position, self.tokens = (self._integers([]) for _ in range(4))
        self.compared = self._integers([]).bool()
        self.uniforms = torch.zeros(0, steps, device=self.device)
        self.out = torch.zeros(0, steps, dtype=torch.int64, device=self.device)
        self.log_probs = torch.zeros(0, steps, device=self.device)
        self.beginnings: dict[int, list[LayerCache]] = {}
        self._null: list[LayerCache] | None = None
        self._furthest = 0
        self._arrange()

    def __len__(self) -> int:
        return len(self.numbers)

    # -- what changes between steps

    def add(self, new: Sequence[NewAnswer], *, keep: Set[int] = frozenset()) -> None:
        """Answers join: their prompts but for the last id go through the model, what is shared only once.

        `keep` names the groups whose shared beginning later answers will need.
        """
        first = len(self.rows)
        self.cache.grow(first + len(new))
        self._prefill(new, first)
        self.beginnings = {group: beginning for group, beginning in self.beginnings.items() if group in keep}
        self.rows += [Row(answer=item.number) for item in new]
        self.numbers += [item.number for item in new]
        requests = [item.request for item in new]
        self.requests += requests
        configs = [request.config for request in requests]
        begun = self.grammar.start([config.outside for config in configs], [config.image_size for config in configs])
        self.state = ModalityState.cat([self.state, begun])
        context, steps = self.model.config.trunk.max_length, self.out.shape[1]
        self.room = torch.cat([self.room, self._integers([request.room(context) for request in requests])])
        self.step_count = torch.cat([self.step_count, self._integers([0] * len(new))])
        self.position = torch.cat([self.position, self._integers([len(r.prompt) - 1 for r in requests])])
        self.tokens = torch.cat([self.tokens, self._integers([r.prompt[-1] for r in requests])])
        self.compared = torch.cat([self.compared, self._integers([0] * len(new)).bool()])
        uniforms = row_uniforms([request.seed for request in requests], steps)
        self.uniforms = torch.cat([self.uniforms, uniforms.to(self.device)])
        self.out = torch.cat([self.out, self.out.new_zeros(len(new), steps)])
        self.log_probs = torch.cat([self.log_probs, self.log_probs.new_zeros(len(new), steps)])
        self.structured.add([config.grammar for config in configs])
        self._arrange()

    def remove(self, gone: set[int]) -> None:
        """Answers leave, with all their rows."""
        self._keep_rows([index for index, row in enumerate(self.rows) if row.answer not in gone])
        self._follow_rows()
        self._arrange()

    def compare(self, seen: Mapping[int, Seen]) -> None:
        """Give rows to answers that wait for the contexts of their image, and take them from those outside images."""
        idle = {number for number, one in seen.items() if one.waits or not one.in_image}
        kept = [index for index, row in enumerate(self.rows) if row.role == 0 or row.answer not in idle]
        waiting = [index for index, number in enumerate(self.numbers) if seen[number].waits]
        if len(kept) == len(self.rows) and not waiting:
            return
        self._keep_rows(kept)
        for index in waiting:
            number = self.numbers[index]
            self._begin_contexts(number, self.requests[index], seen[number].position)
        if waiting:
            self.compared[self._integers(waiting)] = True
        self._follow_rows()
        self._arrange()

    def look(self) -> list[Seen]:
        """What has happened: one copy from the device."""
        waits = self._waits()
        columns = (self.state.done, self.state.in_image, waits, self.step_count, self.position, self.tokens)
        table = torch.stack([column.long() for column in columns], dim=1).tolist() if len(self) else []
        seen = [Seen(bool(a), bool(b), bool(c), d, e, f) for a, b, c, d, e, f in table]
        positions = dict(zip(self.numbers, (one.position for one in seen), strict=True))
        self._furthest = max((positions[row.answer] + row.shift for row in self.rows), default=0)
        return seen

    # -- the decode path: tensors only

    def step(self) -> None:
        """One token for every answer that moves."""
        self._furthest += 1
        logits = self._logits()
        probable = logits + self.grammar.bias(self.state, self.room - self.step_count)
        if (rules := self.structured.bias) is not None:
            probable[:, : self.space.text_size] += rules
        place = self.step_count.clamp_max(self.out.shape[1] - 1)[:, None]
        tokens, log_probs = pick(probable, self.uniforms.gather(1, place)[:, 0], self.sampling)
        moving = ~(self.state.done | self._waits())
        _write_where(moving, self.out, place, tokens)
        _write_where(moving, self.log_probs, place, log_probs)
        self.state = keep_where(moving, self.grammar.advance(self.state, tokens), self.state)
        self.tokens = torch.where(moving, tokens, self.tokens)
        self.step_count, self.position = self.step_count + moving, self.position + moving
        self.state.done = self.state.done | (self.step_count >= self.room)
        self.compared = self.compared & self.state.in_image

    def _logits(self) -> Tensor:
        """(P, V) for the next token, guided where an answer is in an image and has its contexts."""
        positions = self.position[self.answer_of] + self.shift
        logits = self.forward(self.tokens[self.answer_of], positions, self.cache, self._furthest)
        if self.null is None or self.image is None:
            return logits  # all rows are main rows, in the order of the answers
        full = logits[self.main]
        mixed = guide(full, logits[self.image], logits[self.null], self.guidance, self.state.progress)
        return torch.where((self.compared & self.state.in_image)[:, None], mixed, full)

    def _waits(self) -> Tensor:
        return self.state.in_image & self.guidance.active & ~self.compared & ~self.state.done

    # -- rows of the cache

    def _arrange(self) -> None:
        """Index tensors that follow from which rows there are."""
        place = {number: index for index, number in enumerate(self.numbers)}
        by_role = [{row.answer: index for index, row in enumerate(self.rows) if row.role == role} for role in range(3)]
        main = [by_role[0][number] for number in self.numbers]
        assert by_role[1] or main == list(range(len(main)))
        null = [by_role[1].get(number, row) for number, row in zip(self.numbers, main, strict=True)]
        image = [by_role[2].get(number, row) for number, row in zip(self.numbers, null, strict=True)]
        self.answer_of = self._integers([place[row.answer] for row in self.rows])
        self.shift = self._integers([row.shift for row in self.rows])
        self.main = self._integers(main)
        guided = bool(by_role[1])
        self.null, self.image = (self._integers(null), self._integers(image)) if guided else (None, None)
        self.sampling = RowSampling.of([request.config.sampling for request in self.requests], self.device)
        self.guidance = RowGuidance.of([request.config.guidance for request in self.requests], self.device)
        self.look()

    def _keep_rows(self, kept: Sequence[int]) -> None:
        """Close the gaps: rows at the end move into them, so that no more is copied than has to be."""
        gaps = sorted(set(range(len(kept))).difference(kept))
        for gap, source in zip(gaps, (row for row in kept if row >= len(kept)), strict=True):
            self.cache.copy_row(source, gap, self.slots)
            self.rows[gap] = self.rows[source]
        del self.rows[len(kept) :]

    def _follow_rows(self) -> None:
        """Bring the answers into the order of their main rows, so that without guidance logits need no sorting."""
        place = {number: index for index, number in enumerate(self.numbers)}
        kept = [place[row.answer] for row in self.rows if row.role == 0]
        if kept == list(range(len(self.numbers))):
            return
        self.numbers = [self.numbers[index] for index in kept]
        self.requests = [self.requests[index] for index in kept]
        chosen = self._integers(kept)
        self.state = self.state.select(chosen)
        for name in ("room", "step_count", "position", "tokens", "compared", "uniforms", "out", "log_probs"):
            setattr(self, name, getattr(self, name)[chosen])
        self.structured.keep(kept)

    def _begin_contexts(self, number: int, request: Request, position: int) -> None:
        for role, context in enumerate(contexts(self.space, request.prompt, request.config.guidance), start=1):
            row = len(self.rows)
            self.cache.grow(row + 1)
            if role == 1:
                self.cache.load_row(row, self._null_beginning(row))
            else:
                self._run(row, [context], [0])
            self.rows.append(Row(answer=number, shift=len(context) - position, role=role))

    def _null_beginning(self, row: int) -> list[LayerCache]:
        if self._null is None:
            context = null_context(self.space)
            self._run(row, [context], [0])
            self._null = self.cache.export_row(row, len(context))
        return self._null

    # -- prompts

    def _prefill(self, new: Sequence[NewAnswer], first: int) -> None:
        rows = {item.number: first + index for index, item in enumerate(new)}
        unknown: dict[int, NewAnswer] = {}
        for item in new:
            if item.shared and item.group not in self.beginnings:
                unknown.setdefault(item.group, item)
        for group, item in unknown.items():
            self._run(rows[item.number], [item.request.prompt[: item.shared]], [0])
            self.beginnings[group] = self.cache.export_row(rows[item.number], item.shared)
        for item in new:
            if item.shared:
                self.cache.load_row(rows[item.number], self.beginnings[item.group])
        rest = [item.request.prompt[item.shared : -1] for item in new]
        self._run(first, rest, [item.shared for item in new])

    def _run(self, first: int, pieces: Sequence[Sequence[int]], starts: Sequence[int]) -> None:
        """Pieces of prompts, padded on the right, into rows `first`, `first + 1`, ... from positions `starts` on."""
        longest = max(map(len, pieces), default=0)
        if longest == 0:
            return
        at_once = max(1, PREFILL_AT_ONCE // longest)
        for begin in range(0, len(pieces), at_once):
            part = pieces[begin : begin + at_once]
            width = max(1, max(map(len, part)))
            tokens = self._integers([[*piece, *[self.space.specials.pad] * (width - len(piece))] for piece in part])
            positions = self._integers(starts[begin : begin + at_once])[:, None] + torch.arange(
                width, device=self.device
            )
            view = self.cache.view(first + begin, first + begin + len(part))
            view.reserve(min(int(max(starts[begin : begin + at_once])) + width, self.slots))
            self.model(tokens, positions.clamp_max(self.slots - 1), cache=view)

    def _integers(self, values: Sequence[int] | Sequence[Sequence[int]]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self.device)


def _write_where(moving: Tensor, target: Tensor, place: Tensor, values: Tensor) -> None:
    """Write values (P,) at place (P, 1) of target (P, N), for the answers that move."""
    target.scatter_(1, place, torch.where(moving[:, None], values[:, None], target.gather(1, place)))
