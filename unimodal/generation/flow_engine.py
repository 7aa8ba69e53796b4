"""Decoding with the flow branch: text token by token, and a whole picture by an ODE wherever one is due.

To whoever asks, answers look as those of the discrete engine do: an image is boi, codes and eoi, the codes being those
of the picture that was drawn. What is drawn is read again, as latents and as codes, before the answer goes on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from data_pipelines.images import resize_to_patches, to_image
from tokenizers_vq.media import PatchSpec
from tokenizers_vq.token_space import TokenSpace
from unimodal.generation.engine import ROWS, Engine
from unimodal.generation.flow_context import (
    Context,
    ContextCache,
    Shown,
    read_prompt,
    shown_pictures,
    without_words,
)
from unimodal.generation.flow_sampling import guide, integrate, time_grid
from unimodal.generation.guidance import RowGuidance, scale_now
from unimodal.generation.requests import Decoded, Finish, Request, Update
from unimodal.generation.sampling import RowSampling, pick, row_uniforms
from unimodal.generation.settings import check_number
from unimodal.model.model import PATCHES, UnifiedModel

# Shapes: B rows, N latents of an image, C channels, H and W sides of a picture.


def patch_spec(model: UnifiedModel) -> PatchSpec | None:
    """How the ViT of a model takes images; None where it has none."""
    return model.config.vision and model.config.vision.patches


Read = Callable[[Tensor], tuple[Tensor, list[list[int]]]]
"""Latents (B, R, K, C) -> the pictures (B, 3, H, W), and of each the ids between boi and eoi."""


@dataclass(kw_only=True)
class _Row:
    """One answer on its way."""

    number: int
    request: Request
    context: Context
    room: int
    uniforms: Tensor
    noise: torch.Generator
    used: int
    """Tokens of its context, those said since it was read among them."""
    ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    pictures: list[Tensor] = field(default_factory=list)
    said: int = 0
    told: int = 0
    due: bool = False
    finish: Finish | None = None


class FlowEngine(Engine):
    """Decodes requests with one transformer that has a flow branch; answers in text alone go to `text`, unless pictures
    are seen through a ViT, of which that engine knows nothing.

    A picture is drawn as a whole, so none comes out malformed, whether rules are on (`constrained`) or off.
    """

    def __init__(
        self,
        model: UnifiedModel,
        space: TokenSpace,
        text: Engine,
        grid: tuple[int, int],
        image_size: int,
        read: Read,
    ) -> None:
        """grid: rows and columns of latents of a picture, whose sides have `image_size` pixels."""
        super().__init__(model, space)
        self.text, self.grid, self.read = text, grid, read
        spec = patch_spec(model)
        self.seen = space.layout.span if spec is None else math.prod(spec.grid(image_size, image_size)) + 2
        """Tokens of a drawn picture as it is understood, in codes or in patches."""

    def stream(
        self, requests: Sequence[Request], *, rows: int = ROWS, check_every: int | None = None, pieces: bool = True
    ) -> Iterator[Update]:
        """As `Engine.stream`; ids of answers that may draw come when a picture is due or the answer ends."""
        check_number("the batch size", rows, 1, 2**20, whole=True)
        contexts = {number: self._checked(request) for number, request in enumerate(requests)}
        in_text = [number for number, context in contexts.items() if context is None]
        text = self.text.stream([requests[n] for n in in_text], rows=rows, check_every=check_every, pieces=pieces)
        drawing = [self._row(n, requests[n], context) for n, context in contexts.items() if context is not None]
        return self._updates(text, in_text, [drawing[start : start + rows] for start in range(0, len(drawing), rows)])

    def check(self, request: Request) -> None:
        """As `Engine.check`."""
        self._checked(request)

    def score(self, requests: Sequence[Request], answers: Sequence[Sequence[int]]) -> list[Tensor]:
        """As `Engine.score`, for text. Raises ValueError for a model that sees pictures through a ViT."""
        if PATCHES in self.model.branches and any(request.pixels for request in requests):
            raise ValueError("answers about a picture that a ViT sees cannot be scored: scoring reads ids alone")
        return super().score(requests, answers)

    def _updates(self, text: Iterator[Update], numbers: list[int], groups: list[list[_Row]]) -> Iterator[Update]:
        for update in text:
            yield replace(update, request=numbers[update.request])
        for group in groups:
            yield from self._group(group)

    def _checked(self, request: Request) -> Context | None:
        """What a request that is answered here begins with. Raises ValueError for one that cannot be answered."""
        most, config = self.model.config.trunk.max_length, request.config
        request.check(self.space, most)
        if config.image_size is not None:
            raise ValueError(f"this model draws {self.grid[0]}x{self.grid[1]} latents and no other size")
        if config.mode == "text" and PATCHES not in self.model.branches:
            return None
        if config.grammar is not None:
            known = "codes, not a ViT" if config.mode == "text" else "mode 'text' alone"
            raise ValueError(f"with the flow branch a grammar goes with {known}")
        context = self._context(request)
        least = self._copy if config.mode == "image" else 1
        if len(context) + least > most:
            raise ValueError(
                f"a prompt of {len(context)} tokens, latents of its pictures among them, leaves no room for an answer "
                f"in a context of {most}"
            )
        return context

    def _context(self, request: Request) -> Context:
        spec = patch_spec(self.model)
        shown = shown_pictures(request, spec and spec.size)
        return read_prompt(request.prompt, shown, self.space)

    def room_before_picture(self, request: Request) -> int:
        """As `Engine.room_before_picture`; a picture is drawn as a copy in latents, and told as codes."""
        config = replace(request.config, mode="image", until_image=False)
        most, told = self.model.config.trunk.max_length, replace(request, config=config)
        by_ids = super().room_before_picture(request)
        return min(by_ids, most - len(self._context(told)) - self._copy)

    @property
    def _copy(self) -> int:
        """Tokens of a picture in latents."""
        return self.grid[0] * self.grid[1] + 2

    def _row(self, number: int, request: Request, context: Context) -> _Row:
        room = request.room(self.model.config.trunk.max_length)
        return _Row(
            number=number,
            request=request,
            context=context,
            room=room,
            used=len(context),
            uniforms=row_uniforms([request.seed], room + 1)[0],
            noise=torch.Generator().manual_seed(request.seed),
            due=request.config.mode == "image",
        )

    @torch.inference_mode()
    def _group(self, rows: list[_Row]) -> Iterator[Update]:
        while going := [row for row in rows if row.finish is None]:
            talking = [row for row in going if not row.due]
            if talking:
                self._talk(talking)
            drawing = [row for row in going if row.due]
            if drawing:
                self._draw(drawing)
            for row in going:
                yield self._news(row)

    def _talk(self, rows: Sequence[_Row]) -> None:
        """Text until every row has ended or has a picture due."""
        room = max(row.room for row in rows) + 1
        cache = ContextCache(self.model, self.space, [row.context for row in rows], room)
        sampling = RowSampling.of([row.request.config.sampling for row in rows], cache.device)
        text = self._text(cache.logits.shape[1]).to(cache.device)
        begun = [len(row.ids) for row in rows]
        while True:
            uniform = torch.stack([row.uniforms[row.said] for row in rows]).to(cache.device)
            allowed = text.repeat(len(rows), 1)
            allowed[:, self.space.specials.boi] = torch.tensor([self._fits(row) for row in rows], device=cache.device)
            tokens, log_probs = pick(cache.logits.masked_fill(~allowed, float("-inf")), uniform, sampling)
            for row, token, log_prob in zip(rows, tokens.tolist(), log_probs.tolist(), strict=True):
                if row.finish is None and not row.due:
                    self._say(row, token, log_prob)
            if all(row.finish is not None or row.due for row in rows):
                break
            cache.say(tokens)
        for row, start in zip(rows, begun, strict=True):
            row.context.say(row.ids[start:])

    def _say(self, row: _Row, token: int, log_prob: float) -> None:
        specials = self.space.specials
        row.said += 1
        plans = row.request.config.until_image
        if token == specials.boi and not plans:
            row.due = True
            return
        row.ids.append(token)
        row.log_probs.append(log_prob)
        row.used += 1
        if token in (specials.eos, specials.boi):
            row.finish = "end"
        elif self._full(row):
            row.finish = "length"

    def _full(self, row: _Row) -> bool:
        return len(row.ids) >= row.room or row.used >= self.model.config.trunk.max_length

    def _fits(self, row: _Row) -> bool:
        """Whether it may draw, has room for a picture's codes, and the context for what is seen and its clean copy.

        An answer that ends before its picture needs no room for it.
        """
        if row.request.config.mode == "text":
            return row.request.config.until_image
        seen = row.used + self._copy + self.seen
        return len(row.ids) + self.space.layout.span <= row.room and seen <= self.model.config.trunk.max_length

    def _draw(self, rows: Sequence[_Row]) -> None:
        """A picture for each row. The settings of a solver are those of a batch: rows of others come after them."""
        for config in dict.fromkeys(row.request.config.flow for row in rows):
            alike = [row for row in rows if row.request.config.flow == config]
            latents = self._latents(alike)
            pictures, bodies = self.read(latents)
            for row, own, pixels, body in zip(alike, latents, pictures, bodies, strict=True):
                self._drawn(row, own, pixels, body)

    def _drawn(self, row: _Row, latents: Tensor, pixels: Tensor, body: list[int]) -> None:
        specials = self.space.specials
        ids = [specials.boi, *body, specials.eoi]
        row.due = False
        row.ids += ids
        row.log_probs += [0.0] * len(ids)
        row.pictures.append(pixels)
        row.context.show(body, self._shown(latents, pixels), self.space)
        row.used = len(row.context)
        if row.request.config.mode == "image":
            row.finish = "end"
        elif self._full(row):
            row.finish = "length"

    def _shown(self, latents: Tensor, pixels: Tensor) -> Shown:
        """What stands in the context of a picture (R, K, C) and (3, H, W) that was drawn."""
        spec = patch_spec(self.model)
        return Shown(latents) if spec is None else Shown(latents, resize_to_patches(to_image(pixels), spec), spec.size)

    def _latents(self, rows: Sequence[_Row]) -> Tensor:
        """(B, R, K, C), drawn from each row's own noise."""
        flow = self.model.config.flow
        assert flow is not None
        count, config = self.grid[0] * self.grid[1], rows[0].request.config.flow
        contexts = [row.context for row in rows]
        guided = [index for index, row in enumerate(rows) if row.request.config.guidance.active]
        by_image = [index for index in guided if rows[index].request.config.guidance.image_scale is not None]
        contexts += [without_words(rows[index].context, self.space, pictures=False) for index in guided]
        contexts += [without_words(rows[index].context, self.space, pictures=True) for index in by_image]
        cache = ContextCache(self.model, self.space, contexts, count + 2)
        scales = RowGuidance.of([row.request.config.guidance for row in rows], cache.device)
        null_of = torch.tensor(guided, dtype=torch.int64, device=cache.device)
        image_of = torch.tensor(by_image, dtype=torch.int64, device=cache.device)

        def velocity(x: Tensor, time: float) -> Tensor:
            all_rows = torch.cat([x, x[null_of], x[image_of]])
            plain, null, image = cache.velocities(all_rows, time, self.space, self.grid).split(
                [len(rows), len(guided), len(by_image)]
            )
            if not guided or not config.guided_at(time):
                return plain
            nulls = plain.index_copy(0, null_of, null)
            with_pictures = nulls.index_copy(0, image_of, image)
            done = torch.full((len(rows),), 1 - time, device=cache.device)
            of_text, of_images = (scale_now(scale, scales, done) for scale in (scales.scale, scales.image_scale))
            changed = guide(plain, with_pictures, nulls, of_text, of_images, config)
            return plain.index_copy(0, null_of, changed[null_of])

        shape = (count, flow.latent_dim)
        noise = torch.stack([torch.randn(shape, generator=row.noise) for row in rows]).to(cache.device)
        drawn = integrate(velocity, noise, time_grid(config.steps, config.shift), config.solver)
        return drawn.unflatten(1, self.grid)

    def _text(self, vocabulary: int) -> Tensor:
        """(V,) bool: text and eos."""
        specials = self.space.specials
        allowed = torch.zeros(vocabulary, dtype=torch.bool)
        allowed[: self.space.text_size] = True
        forbidden = (specials.pad, specials.bos, specials.boi, specials.eoi, specials.sep, specials.null)
        allowed[list(forbidden)] = False
        return allowed

    def _news(self, row: _Row) -> Update:
        ids, row.told = row.ids[row.told :], len(row.ids)
        decoded = None
        if row.finish is not None:
            decoded = Decoded(ids=row.ids, log_probs=row.log_probs, finish=row.finish, pictures=tuple(row.pictures))
        return Update(request=row.number, ids=ids, pictures=tuple(row.pictures), decoded=decoded)
