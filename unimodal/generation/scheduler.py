"""The scheduler: requests join when they are submitted, rows are freed when answers end.

    submit ─▶ waiting ─▶ prefill ─▶ rows of a batch ─▶ one token for every row that moves ─▶ updates
                                       ▲                        │
                                       └── painter ◀── image due┘

Rows of one batch may be in text, in an image, waiting for a painter or finished. A queue keeps the batch full: the row
of an answer that has ended goes to the next request. Each prompt runs through the model once; what neighbouring prompts
begin with in common runs through it once for all of them.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Sequence

import torch

from tokenizers_vq.token_space import TokenSpace
from unimodal.generation.batch import Batch
from unimodal.generation.checks import check_number
from unimodal.generation.context import Piece, Reading, read_prompt
from unimodal.generation.drafts.base import PLAIN, Drafting
from unimodal.generation.forward import Forward
from unimodal.generation.painters.base import Painter
from unimodal.generation.painters.due import PAINT_AT_ONCE, DueImages
from unimodal.generation.prefill import NewAnswer
from unimodal.generation.prefixes import Planned, plan
from unimodal.generation.requests import Decoded, Finish, Request, Update
from unimodal.generation.rows import BatchLimits, RowStatus
from unimodal.model.cache import rows_that_fit
from unimodal.model.model import UnifiedModel

ROWS = 64
"""Answers decoded side by side. Fewer more than that, and fewer than PAINT_AT_ONCE, wait for a painter."""

REFILL = 8
"""The queue refills the batch once one row in REFILL is free: a prompt alone costs about as much as several."""

SYNC_EVERY = {"cpu": 1}
SYNC_EVERY_ELSEWHERE = 8
"""Tokens between two synchronisations with the host, which are free on a CPU."""


JOINED = RowStatus(done=False, in_image=False, waits=False, step=0, position=0, token=0)
"""What is known of an answer before its first pass."""


class Scheduler:
    """Answers requests with one model. An answer depends on its request alone, whatever shares the batch."""

    def __init__(
        self,
        model: UnifiedModel,
        space: TokenSpace,
        *,
        rows: int = ROWS,
        limits: BatchLimits | None = None,
        forward: Forward | None = None,
        painter: Painter | None = None,
        reading: Reading | None = None,
        sync_every: int | None = None,
        drafting: Drafting = PLAIN,
    ) -> None:
        """limits: cache slots and new tokens that requests may take; by default the model's context."""
        check_number("the batch size", rows, 1, 2**20, whole=True)
        check_number("sync_every", 1 if sync_every is None else sync_every, 1, 2**20, whole=True)
        context = model.config.trunk.max_length
        self.model, self.space, self.max_rows, self.reading = model, space, rows, reading or Reading()
        limits = limits or BatchLimits(2 * context, context)
        with torch.inference_mode():
            self.batch = Batch(model, space, limits, forward, painter, self.reading, drafting)
        self.cache_rows = rows_that_fit(
            model.config.trunk, limits.slots, model.dtype, self.batch.device, len(self.batch.cache.layers)
        )
        self.images = DueImages(self.batch, min(rows, PAINT_AT_ONCE))
        self.sync_every = sync_every or SYNC_EVERY.get(self.batch.device.type, SYNC_EVERY_ELSEWHERE)
        self._submitted = self._groups = 0
        self._full = False
        self._waiting: dict[int, tuple[Request, Piece]] = {}
        self._planned: deque[Planned] | None = None
        self._reported: dict[int, int] = {}
        self._statuses: dict[int, RowStatus] = {}

    # -- what users call

    def submit(self, request: Request) -> int:
        """Queue a request; its number. Raises ValueError for one that can never be answered."""
        piece = read_prompt(request, self.space, self.reading).piece()
        number = self._submitted
        self._submitted += 1
        self._waiting[number] = (request, piece)
        self._planned = None
        return number

    @torch.inference_mode()
    def cancel(self, number: int) -> None:
        """Forget a request; its row is free at once. Raises ValueError for one that is unknown or answered."""
        if number in self._waiting:
            del self._waiting[number]
            self._planned = None
        elif number in self.batch.numbers:
            self._remove({number})
        else:
            raise ValueError(f"request {number} is not being answered: it has ended, or was never submitted")

    @property
    def idle(self) -> bool:
        """Whether every request has its answer."""
        return not (self._waiting or len(self.batch))

    @torch.inference_mode()
    def step(self, *, pieces: bool = True) -> list[Update]:
        """Decode until the next synchronisation; with `pieces` the new ids of every answer, else ended ones alone."""
        self._admit()
        if not len(self.batch):
            return []
        statuses = self._passes()
        self.batch.structured.follow(statuses)
        if self.images.paint(statuses, more=bool(self._waiting) and not self._full):
            statuses = self.batch.sync()
            self.batch.structured.follow(statuses)
        updates = self._news(statuses, pieces)
        self._settle(statuses)
        return updates

    def _passes(self) -> list[RowStatus]:
        """Passes until the next synchronisation, with as many drafts as pay."""
        batch, pace = self.batch, self.batch.drafting.pace
        before = [self._statuses.get(number, JOINED) for number in batch.numbers]
        moving = [status for status in before if not (status.done or status.waits)]
        drawing = 2 * sum(status.in_image for status in moving) > len(moving)
        if pace:
            batch.use_window(pace.window(len(moving), drawing))
        start, count = time.perf_counter(), 1 if batch.structured.active else self.sync_every
        for _ in range(count):
            batch.prepare_grammars()
            batch.step()
        statuses = batch.sync()
        if pace:
            tokens = sum(status.step for status in statuses) - sum(status.step for status in before)
            pace.note(batch.window, len(moving), drawing, tokens, time.perf_counter() - start)
            self._statuses = dict(zip(batch.numbers, statuses, strict=True))
        return statuses

    # -- the queue

    def _admit(self) -> None:
        free = self.max_rows + len(self.batch.parked) - len(self.batch)
        if not self._waiting or free < min(len(self._waiting), -(-self.max_rows // REFILL)):
            return
        if self._planned is None:
            self._planned = self._plan()
        self._full = False
        held = sum(_rows_of(request) for request in self.batch.requests.values())
        new: list[NewAnswer] = []
        for _ in range(min(free, len(self._planned))):
            held += _rows_of(self._waiting[self._planned[0].request][0])
            if self.cache_rows is not None and held > self.cache_rows and (new or len(self.batch)):
                self._full = True  # it joins when memory is free; one answer is tried in any case
                break
            new.append(self._new_answer(self._planned.popleft()))
        if not new:
            return
        later = Counter(item.group for item in self._planned)
        self.batch.add(new, keep=set(later))

    def _plan(self) -> deque[Planned]:
        """The order in which waiting requests are answered; groups have numbers of their own each time."""
        numbers = list(self._waiting)
        keys = [self._waiting[number][1].keys() for number in numbers]
        planned = plan(keys)
        first, self._groups = self._groups, self._groups + len(planned)
        return deque(Planned(numbers[item.request], first + item.group, item.shared) for item in planned)

    def _new_answer(self, item: Planned) -> NewAnswer:
        request, piece = self._waiting.pop(item.request)
        return NewAnswer(item.request, request, piece, piece.whole_images(item.shared), item.group)

    # -- what comes out

    def _news(self, statuses: Sequence[RowStatus], pieces: bool) -> list[Update]:
        updates: list[Update] = []
        for index, (number, status) in enumerate(zip(self.batch.numbers, statuses, strict=True)):
            if not (status.done or pieces):
                continue
            first = self._reported.get(number, 0)
            ids = self.batch.out[index, first : status.step].tolist()
            if status.done or ids:
                self._reported[number] = status.step
                decoded = self._decoded(index, status) if status.done else None
                updates.append(Update(request=number, ids=ids, pictures=self.images.drawn(number), decoded=decoded))
        return updates

    def _settle(self, statuses: Sequence[RowStatus]) -> None:
        active = {n: status for n, status in zip(self.batch.numbers, statuses, strict=True) if not status.done}
        if gone := set(self.batch.numbers) - set(active):
            self._remove(gone)
        self.batch.assign_contexts(active)

    def _remove(self, gone: set[int]) -> None:
        self.batch.remove(gone)
        self.images.forget(gone)
        for number in gone:
            self._reported.pop(number, None)

    def _decoded(self, index: int, status: RowStatus) -> Decoded:
        number = self.batch.numbers[index]
        ids = self.batch.out[index, : status.step].tolist()
        log_probs = self.batch.log_probs[index, : status.step].tolist()
        pictures, steps = self.images.drawn(number), self.images.steps(number)
        finish = self._finish(index, ids)
        return Decoded(ids=ids, log_probs=log_probs, finish=finish, pictures=pictures, steps=steps)

    def _finish(self, index: int, ids: list[int]) -> Finish:
        config, specials = self.batch.requests[self.batch.numbers[index]].config, self.space.specials
        rules = config.constrained or self.batch.painter is not None
        drew_nothing = config.mode == "image" and rules and specials.boi not in ids
        if drew_nothing or self.batch.structured.stuck(index):
            return "no room for an image"
        ended = ids[-1] in self.space.ends or (config.mode == "image" and rules and ids[-1] == specials.eoi)
        ended |= config.until_image and ids[-1] == specials.boi
        return "end" if ended else "length"


def _rows_of(request: Request) -> int:
    """Rows of the cache that an answer takes at most: one for each context that its images are compared with."""
    guidance = request.config.guidance
    if request.config.mode == "text" or not guidance.active:
        return 1
    return 2 if guidance.image_scale is None else 3
