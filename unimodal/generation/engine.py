"""The decoding engine: ids in, ids out, many requests at a time; it knows neither strings nor images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from torch import Tensor

from tokenizers_vq.token_space import TokenSpace
from unimodal.generation.context import Reading, read_prompt
from unimodal.generation.drafts.base import PLAIN, Drafting
from unimodal.generation.forward import Forward
from unimodal.generation.painters.base import Painter
from unimodal.generation.requests import Decoded, Request, Update
from unimodal.generation.rows import BatchLimits
from unimodal.generation.scheduler import ROWS, Scheduler
from unimodal.generation.scoring import score
from unimodal.model.model import UnifiedModel

NULL_CONTEXT = 3
"""<bos> <null> <sep>."""


class Engine:
    """Decodes requests with one model.

    `forward` makes the logits of a step (generation/forward.py). `painter` draws images that are not sampled as codes
    (generation/painters), `reading` says how the model reads images, and `drafting` how later tokens are guessed.
    """

    def __init__(
        self,
        model: UnifiedModel,
        space: TokenSpace,
        forward: Forward | None = None,
        painter: Painter | None = None,
        reading: Reading | None = None,
        drafting: Drafting = PLAIN,
    ) -> None:
        self.model, self.space, self.forward, self.drafting = model, space, forward, drafting
        self.painter, self.reading = painter, reading or Reading()

    def decode(
        self,
        requests: Sequence[Request],
        *,
        rows: int = ROWS,
        sync_every: int | None = None,
        progress: Callable[[int], None] = lambda done: None,
    ) -> list[Decoded]:
        """The answers, in the order of the requests; `progress` is called with how many more are done.

        Raises ValueError for a prompt that is empty or too long, and for settings that the model cannot follow.
        """
        answers: dict[int, Decoded] = {}
        for update in self.stream(requests, rows=rows, sync_every=sync_every, pieces=False):
            if update.decoded is not None:
                answers[update.request] = update.decoded
                progress(1)
        return [answers[number] for number in range(len(requests))]

    def stream(
        self, requests: Sequence[Request], *, rows: int = ROWS, sync_every: int | None = None, pieces: bool = True
    ) -> Iterator[Update]:
        """As `decode`, as it happens; with `pieces` an update for the new ids of every answer at every step."""
        for request in requests:
            self.check(request)
        scheduler = self.scheduler(rows=rows, limits=self._limits(requests), sync_every=sync_every)
        for request in requests:
            scheduler.submit(request)
        return _until_idle(scheduler, pieces)

    def scheduler(
        self, *, rows: int = ROWS, limits: BatchLimits | None = None, sync_every: int | None = None
    ) -> Scheduler:
        """A scheduler to which requests are submitted as they come."""
        return Scheduler(
            self.model,
            self.space,
            rows=rows,
            limits=limits,
            forward=self.forward,
            painter=self.painter,
            reading=self.reading,
            sync_every=sync_every,
            drafting=self.drafting,
        )

    def _limits(self, requests: Sequence[Request]) -> BatchLimits:
        """What a closed list of requests takes."""
        context = self.model.config.trunk.max_length
        budgets = [request.budget(context) for request in requests]
        reach = max((len(r.prompt) + budget for r, budget in zip(requests, budgets, strict=True)), default=0)
        slots = reach if self.painter is None and self.reading == Reading() else context
        return BatchLimits(slots + NULL_CONTEXT + 1, max(budgets, default=1))

    def check(self, request: Request) -> None:
        """Raise ValueError for a request that this model cannot answer."""
        context = self.model.config.trunk.max_length
        request.check(self.space, context)
        if self.painter is not None:
            self.painter.check(request)
        if self.reading != Reading():
            length = len(read_prompt(request, self.space, self.reading))
            image = self.painter.slots(request) if self.painter and request.config.mode == "image" else 1
            if length + image > context:
                raise ValueError(
                    f"a prompt of {length} tokens, latents or patches of its images among them, leaves no room for an "
                    f"answer in a context of {context}"
                )

    def tokens_before_image(self, request: Request) -> int:
        """Tokens that may stand between a prompt and an image that is to fit behind them, with its end."""
        context = self.model.config.trunk.max_length
        left = context - len(request.prompt) - min(map(self.space.layout.span_of, self.space.layout.sizes)) - 1
        if self.painter is None:
            return left
        drawn = replace(request, config=replace(request.config, mode="image", until_image=False))
        return min(left, context - len(read_prompt(drawn, self.space, self.reading)) - self.painter.slots(drawn))

    def score(self, requests: Sequence[Request], answers: Sequence[Sequence[int]]) -> list[Tensor]:
        """Logarithms of the probabilities of the tokens of given answers; see generation/scoring.py."""
        return score(self.model, self.space, requests, answers, self.reading)


def _until_idle(scheduler: Scheduler, pieces: bool) -> Iterator[Update]:
    while not scheduler.idle:
        yield from scheduler.step(pieces=pieces)
