"""The decoding engine: ids in, ids out, many rows at a time; it knows neither strings nor pixels.

Rows of one batch may be in text, in an image or finished. A queue keeps the batch full: the place of an answer that has
ended goes to the next request. Each prompt runs through the model once, whatever its answer switches to later; what
neighbouring prompts begin with in common runs through it once for all of them.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from tokenizers_vq.token_space import TokenSpace
from unimodal.generation.batch import Batch, NewAnswer, Seen
from unimodal.generation.forward import Forward
from unimodal.generation.guidance import null_context
from unimodal.generation.prefixes import plan
from unimodal.generation.requests import Decoded, Finish, Request, Update
from unimodal.generation.scoring import score
from unimodal.generation.settings import check_number
from unimodal.model.model import UnifiedModel

ROWS = 64
"""Answers decoded side by side."""

REFILL = 8
"""The queue refills the batch once one row in REFILL is free: a prompt alone costs about as much as several."""

CHECK_EVERY = {"cpu": 1}
CHECK_EVERY_ELSEWHERE = 8
"""Tokens between two looks of the host; on a CPU looking is free."""


class Engine:
    """Decodes requests with one transformer; `forward` makes the logits of a step (generation/forward.py)."""

    def __init__(self, model: UnifiedModel, space: TokenSpace, forward: Forward | None = None) -> None:
        self.model, self.space, self.forward = model, space, forward

    def decode(
        self,
        requests: Sequence[Request],
        *,
        rows: int = ROWS,
        check_every: int | None = None,
        progress: Callable[[int], None] = lambda done: None,
    ) -> list[Decoded]:
        """The answers, in the order of the requests; `progress` is told how many more are done.

        Raises ValueError for a prompt that is empty or too long, and for settings that the model cannot follow.
        """
        answers: dict[int, Decoded] = {}
        for update in self.stream(requests, rows=rows, check_every=check_every, pieces=False):
            if update.decoded is not None:
                answers[update.request] = update.decoded
                progress(1)
        return [answers[number] for number in range(len(requests))]

    def stream(
        self, requests: Sequence[Request], *, rows: int = ROWS, check_every: int | None = None, pieces: bool = True
    ) -> Iterator[Update]:
        """As `decode`, as it happens; with `pieces` an update for the new ids of every answer at every look."""
        for request in requests:
            self.check(request)
        return _Run(self, requests, rows, check_every, pieces).updates()

    def check(self, request: Request) -> None:
        """Raise ValueError for a request that this model cannot answer."""
        request.check(self.space, self.model.config.trunk.max_length)

    def room_before_picture(self, request: Request) -> int:
        """Tokens that may stand between a prompt and a picture that is to fit behind them, with its end."""
        least = min(map(self.space.layout.span_of, self.space.layout.sizes)) + 1
        return self.model.config.trunk.max_length - len(request.prompt) - least

    def score(self, requests: Sequence[Request], answers: Sequence[Sequence[int]]) -> list[Tensor]:
        """Logarithms of the probabilities of the tokens of given answers; see generation/scoring.py."""
        return score(self.model, self.space, requests, answers)


class _Run:
    """One call: the queue and the batch."""

    def __init__(
        self, engine: Engine, requests: Sequence[Request], rows: int, check_every: int | None, pieces: bool
    ) -> None:
        check_number("the batch size", rows, 1, 2**20, whole=True)
        check_number("check_every", 1 if check_every is None else check_every, 1, 2**20, whole=True)
        self.space, self.requests, self.max_rows, self.pieces = engine.space, requests, rows, pieces
        self.queue = deque(plan([request.prompt for request in requests]))
        self.waiting_for = Counter(item.group for item in self.queue)
        rooms = [request.room(engine.model.config.trunk.max_length) for request in requests]
        furthest = max((len(r.prompt) + room for r, room in zip(requests, rooms, strict=True)), default=0)
        slots = furthest + len(null_context(engine.space)) + 1
        with torch.inference_mode():
            self.batch = Batch(engine.model, engine.space, slots, max(rooms, default=1), engine.forward)
        self.check_every = check_every or CHECK_EVERY.get(self.batch.device.type, CHECK_EVERY_ELSEWHERE)
        self.told: dict[int, int] = {}

    @torch.inference_mode()
    def updates(self) -> Iterator[Update]:
        """Decode until every request has its answer."""
        while self.queue or len(self.batch):
            self._admit()
            for _ in range(1 if self.batch.structured.active else self.check_every):
                self.batch.structured.prepare(self.batch)
                self.batch.step()
            seen = self.batch.look()
            self.batch.structured.follow(seen)
            yield from self._news(seen)
            self._settle(seen)

    def _admit(self) -> None:
        free = self.max_rows - len(self.batch)
        if not self.queue or free < min(len(self.queue), -(-self.max_rows // REFILL)):
            return
        new = [self.queue.popleft() for _ in range(min(free, len(self.queue)))]
        self.waiting_for.subtract(item.group for item in new)
        answers = [NewAnswer(item.request, self.requests[item.request], item.shared, item.group) for item in new]
        self.batch.add(answers, keep={group for group, count in self.waiting_for.items() if count > 0})

    def _news(self, seen: Sequence[Seen]) -> Iterator[Update]:
        for index, (number, one) in enumerate(zip(self.batch.numbers, seen, strict=True)):
            if not (one.done or self.pieces):
                continue
            told = self.told.get(number, 0)
            ids = self.batch.out[index, told : one.step].tolist()
            if one.done or ids:
                self.told[number] = one.step
                yield Update(request=number, ids=ids, decoded=self._decoded(index, one) if one.done else None)

    def _settle(self, seen: Sequence[Seen]) -> None:
        going = {number: one for number, one in zip(self.batch.numbers, seen, strict=True) if not one.done}
        gone = set(self.batch.numbers) - set(going)
        if gone:
            self.batch.remove(gone)
        self.batch.compare(going)

    def _decoded(self, index: int, one: Seen) -> Decoded:
        ids = self.batch.out[index, : one.step].tolist()
        log_probs = self.batch.log_probs[index, : one.step].tolist()
        return Decoded(ids=ids, log_probs=log_probs, finish=self._finish(index, ids))

    def _finish(self, index: int, ids: list[int]) -> Finish:
        config, specials = self.batch.requests[index].config, self.space.specials
        drew_nothing = config.mode == "image" and config.constrained and specials.boi not in ids
        if drew_nothing or self.batch.structured.stuck(index):
            return "no room for an image"
        ended = ids[-1] == specials.eos or (config.mode == "image" and config.constrained and ids[-1] == specials.eoi)
        ended |= config.until_image and ids[-1] == specials.boi
        return "end" if ended else "length"
