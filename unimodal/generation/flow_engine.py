"""Decoding with the flow branch: text token by token, and a whole picture by an ODE wherever one is due.

To whoever asks, answers look as those of the discrete engine do: an image is boi, codes and eoi, the codes being those
of the picture that was drawn. What is drawn is read again, as latents and as codes, before the answer goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tokenizers_vq.token_space import TokenSpace
from unimodal.generation.engine import ROWS, Engine
from unimodal.generation.flow_context import Context, ContextCache, read_prompt, without_words
from unimodal.generation.flow_sampling import guide, integrate, time_grid
from unimodal.generation.requests import Decoded, Finish, Request, Update
from unimodal.generation.sampling import RowSampling, pick, row_uniforms
from unimodal.generation.settings import check_number
from unimodal.model.transformer import Transformer

# Shapes: B rows, N latents of an image, C channels, H and W sides of a picture.

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
    ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    pictures: list[Tensor] = field(default_factory=list)
    said: int = 0
    told: int = 0
    due: bool = False
    finish: Finish | None = None


class FlowEngine(Engine):
    """Decodes requests with one transformer that has a flow branch; answers in text alone go to `text`.

    A picture is drawn as a whole, so none comes out malformed, whether rules are on (`constrained`) or off.
    """

    def __init__(self, transformer: Transformer, space: TokenSpace, text: Engine, grid: tuple[int, int], read: Read):
        """grid: rows and columns of latents of a picture."""
        super().__init__(transformer, space)
        self.text, self.grid, self.read = text, grid, read

    def stream(
        self, requests: Sequence[Request], *, rows: int = ROWS, check_every: int | None = None, pieces: bool = True
    ) -> Iterator[Update]:
        """As `Engine.stream`; the ids of a picture come all at once, with the picture."""
        check_number("the batch size", rows, 1, 2**20, whole=True)
        for request in requests:
            self._check(request)
        in_text = [number for number, request in enumerate(requests) if request.config.mode == "text"]
        talks = [requests[number] for number in in_text]
        for update in self.text.stream(talks, rows=rows, check_every=check_every, pieces=pieces):
            yield Update(request=in_text[update.request], ids=update.ids, decoded=update.decoded)
        others = [number for number in range(len(requests)) if requests[number].config.mode != "text"]
        for start in range(0, len(others), rows):
            yield from self._group([self._row(n, requests[n]) for n in others[start : start + rows]])

    def _check(self, request: Request) -> None:
        request.check(self.space, self.transformer.config.max_length)
        config = request.config
        if config.mode != "text" and config.grammar is not None:
            raise ValueError("with the flow branch a grammar goes with mode 'text' alone")
        if config.image_size is not None:
            raise ValueError(f"this model draws {self.grid[0]}x{self.grid[1]} latents and no other size")

    def _row(self, number: int, request: Request) -> _Row:
        context = self.transformer.config.max_length
        return _Row(
            number=number,
            request=request,
            context=read_prompt(request.prompt, request.latents, self.space),
            room=request.room(context),
            uniforms=row_uniforms([request.seed], request.config.max_new_tokens + 1)[0],
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
        cache = ContextCache(self.transformer, self.space, [row.context for row in rows], room)
        sampling = RowSampling.of([row.request.config.sampling for row in rows], cache.device)
        allowed = self._allowed(cache.logits.shape[1]).to(cache.device)
        begun = [len(row.ids) for row in rows]
        while True:
            uniform = torch.stack([row.uniforms[row.said] for row in rows]).to(cache.device)
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
        if token == specials.boi:
            row.due = True
            return
        row.ids.append(token)
        row.log_probs.append(log_prob)
        if token == specials.eos:
            row.finish = "end"
        elif len(row.ids) >= row.room:
            row.finish = "length"

    def _draw(self, rows: Sequence[_Row]) -> None:
        """A picture for each row whose room holds one."""
        fitting = [row for row in rows if self._fits(row)]
        for row in rows:
            if row not in fitting:
                row.finish = "no room for an image"
        # the settings of a batch's solver are one; rows of others are drawn after them
        for config in dict.fromkeys(row.request.config.flow for row in fitting):
            alike = [row for row in fitting if row.request.config.flow == config]
            latents = self._latents(alike)
            pictures, bodies = self.read(latents)
            for row, own, pixels, body in zip(alike, latents, pictures, bodies, strict=True):
                self._drawn(row, own, pixels, body)

    def _fits(self, row: _Row) -> bool:
        """Whether the answer has room for its codes, and the context for the copy that is drawn."""
        codes = self.space.layout.span
        latents = self.grid[0] * self.grid[1] + 2
        return len(row.ids) + codes <= row.room and len(row.context) + latents <= self.transformer.config.max_length

    def _drawn(self, row: _Row, latents: Tensor, pixels: Tensor, body: list[int]) -> None:
        specials = self.space.specials
        ids = [specials.boi, *body, specials.eoi]
        row.due = False
        row.ids += ids
        row.log_probs += [0.0] * len(ids)
        row.pictures.append(pixels)
        row.context.show(body, latents, self.space)
        if row.request.config.mode == "image":
            row.finish = "end"
        elif len(row.ids) >= row.room or len(row.context) >= self.transformer.config.max_length:
            row.finish = "length"

    def _latents(self, rows: Sequence[_Row]) -> Tensor:
        """(B, R, K, C), drawn from each row's own noise."""
        flow = self.transformer.flow
        assert flow is not None
        count, config = self.grid[0] * self.grid[1], rows[0].request.config.flow
        contexts = [row.context for row in rows]
        guided = [index for index, row in enumerate(rows) if row.request.config.guidance.active]
        by_image = [index for index in guided if rows[index].request.config.guidance.image_scale is not None]
        contexts += [without_words(rows[index].context, self.space, pictures=False) for index in guided]
        contexts += [without_words(rows[index].context, self.space, pictures=True) for index in by_image]
        cache = ContextCache(self.transformer, self.space, contexts, count + 2)
        scales = [row.request.config.guidance for row in rows]
        scale = torch.tensor([one.scale for one in scales], device=cache.device)
        images = [one.scale if one.image_scale is None else one.image_scale for one in scales]
        image_scale = torch.tensor(images, device=cache.device)
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
            changed = guide(plain, with_pictures, nulls, scale, image_scale, config)
            return plain.index_copy(0, null_of, changed[null_of])

        shape = (count, flow.config.latent_dim)
        noise = torch.stack([torch.randn(shape, generator=row.noise) for row in rows]).to(cache.device)
        drawn = integrate(velocity, noise, time_grid(config.steps, config.shift), config.solver)
        return drawn.unflatten(1, self.grid)

    def _allowed(self, vocabulary: int) -> Tensor:
        """(V,) bool: text, eos and the beginning of a picture."""
        specials = self.space.specials
        allowed = torch.zeros(vocabulary, dtype=torch.bool)
        allowed[: self.space.text_size] = True
        forbidden = (specials.pad, specials.bos, specials.eoi, specials.sep, specials.null)
        allowed[list(forbidden)] = False
        return allowed

    def _news(self, row: _Row) -> Update:
        ids, row.told = row.ids[row.told :], len(row.ids)
        decoded = None
        if row.finish is not None:
            decoded = Decoded(ids=row.ids, log_probs=row.log_probs, finish=row.finish, pictures=tuple(row.pictures))
        return Update(request=row.number, ids=ids, pictures=tuple(row.pictures), decoded=decoded)
