"""Images by flow matching: latents follow an ODE from noise, one image behind each context."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from data_pipelines.images import resize_to_patches, to_image
from tokenizers_vq.media import LATENTS
from tokenizers_vq.token_space import TokenSpace
from unimodal.generation.context import Reading, context_image
from unimodal.generation.flow_sampling import FlowSamplingConfig, guided_velocity, integrate, time_grid
from unimodal.generation.guidance import RowGuidance, scale_now
from unimodal.generation.painters.base import CachedContexts, DueContexts, ImageDue, Painted
from unimodal.generation.requests import Request
from unimodal.generation.sampling import exact
from unimodal.generation.stochastic_flow import FlowStep, follow
from unimodal.model.branches.base import MediaTokens, grid_positions
from unimodal.model.model import VELOCITY, UnifiedModel

# Shapes: B contexts, N latents of an image, C numbers of a latent, R rows and K columns of latents.

TOKENS_AT_ONCE = 2048
"""Tokens of noised images that go through the model together; more at a time are no faster."""

Decode = Callable[[Tensor], tuple[Tensor, list[list[int]]]]
"""Latents (B, R, K, C) -> the images (B, 3, H, W), and of each the ids between boi and eoi."""


class FlowPainter:
    """Draws with the flow branch of a model; an image is drawn as a whole, so none comes out malformed."""

    def __init__(
        self, model: UnifiedModel, space: TokenSpace, grid: tuple[int, int], reading: Reading, decode: Decode, seen: int
    ) -> None:
        """grid: rows and columns of latents of an image. seen: tokens of an image as codes or patches, boi and eoi
        among them."""
        self.model, self.space, self.grid, self.reading, self.decode = model, space, grid, reading, decode
        self.count, self.seen = grid[0] * grid[1], seen

    def slots(self, request: Request) -> int:
        """See `Painter`. An image alone ends its answer and is not read again."""
        drawn = {"text": 0, "image": self.count + 2, "mixed": self.count + 2 + self.seen}
        return drawn[request.config.mode]

    def check(self, request: Request) -> None:
        """See `Painter`."""
        if request.config.image_size is not None:
            raise ValueError(f"this model draws {self.grid[0]}x{self.grid[1]} latents and no other size")

    @torch.inference_mode()
    def paint(
        self, due: Sequence[ImageDue], contexts: Callable[[Sequence[ImageDue], int], DueContexts]
    ) -> list[Painted]:
        """See `Painter`. The settings of a solver are those of a batch: images of other settings come after them."""
        painted: dict[int, Painted] = {}
        for config in dict.fromkeys(one.request.config.flow for one in due):
            group = [one for one in due if one.request.config.flow == config]
            latents, steps = self._draw(group, contexts(group, self.count + 2), config)
            for one, drawn, path, pixels, body in zip(group, latents, steps, *self.decode(latents), strict=True):
                painted[one.number] = self._painted(drawn, pixels, body)._replace(steps=tuple(path))
        return [painted[one.number] for one in due]

    def _painted(self, latents: Tensor, pixels: Tensor, body: list[int]) -> Painted:
        patches = self.reading.patches
        shown = resize_to_patches(to_image(pixels), patches) if patches else None
        return Painted(pixels, body, context_image(body, latents.cpu().numpy(), shown, patches))

    def _draw(
        self, due: Sequence[ImageDue], contexts: DueContexts, config: FlowSamplingConfig
    ) -> tuple[Tensor, list[list[FlowStep]]]:
        """(B, R, K, C), each drawn from its own noise, and the noisy steps of each."""
        flow, device = self.model.config.flow, self.model.device
        assert flow

        windows = [one.request.window for one in due]

        def normal(generators: Sequence[torch.Generator]) -> Tensor:
            shape = (self.count, flow.latent_dim)
            drawn = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
            return drawn.to(device, torch.promote_types(self.model.dtype, drawn.dtype))

        first, noises = normal([one.beginning for one in due]), [one.noise for one in due]
        scales = RowGuidance.of([one.request.config.guidance for one in due], device)
        sizes = [len(due), len(contexts.guided), len(contexts.by_image)]
        parts = functools.cache(lambda rows: self._parts(contexts.contexts, rows))

        def velocity(x: Tensor, time: float) -> Tensor:
            if not sizes[1] or not config.guided_at(time):
                return self._in_parts(parts(sizes[0]), x, time)
            all_rows = torch.cat([x, x[contexts.guided], x[contexts.by_image]])
            plain, null, image = self._in_parts(parts(sum(sizes)), all_rows, time).split(sizes)
            nulls = plain.index_copy(0, contexts.guided, null)
            with_images = nulls.index_copy(0, contexts.by_image, image)
            done = torch.full((len(due),), 1 - time, device=device)
            of_text, of_images = (scale_now(scale, scales, done) for scale in (scales.scale, scales.image_scale))
            changed = guided_velocity(plain, with_images, nulls, of_text, of_images, config)
            return plain.index_copy(0, contexts.guided, changed[contexts.guided])

        times = time_grid(config.steps, config.shift)
        if config.noise:
            latents, steps = follow(velocity, first, times, config.noise, lambda: normal(noises), windows)
        else:
            latents, steps = integrate(velocity, first, times, config.solver), [[] for _ in due]
        return latents.float().unflatten(1, self.grid), steps

    def _parts(self, contexts: CachedContexts, rows: int) -> list[tuple[Tensor, CachedContexts]]:
        """The first rows; those of about one length together: none attends over the slots of a much longer one."""
        lengths, device = contexts.lengths.tolist(), contexts.lengths.device
        at_once = max(1, TOKENS_AT_ONCE // (self.count + 2))
        if rows == len(lengths) <= at_once:
            return [(torch.arange(rows, device=device), contexts)]
        order = sorted(range(rows), key=lengths.__getitem__)
        parts = [order[start : start + at_once] for start in range(0, len(order), at_once)]
        return [(torch.tensor(part, device=device), contexts.part(part, self.count + 2)) for part in parts]

    def _in_parts(self, parts: Sequence[tuple[Tensor, CachedContexts]], latents: Tensor, time: float) -> Tensor:
        found = torch.empty_like(latents)
        for rows, contexts in parts:
            found[rows] = self.velocities(contexts, latents[rows], time)
        return found

    def velocities(self, contexts: CachedContexts, latents: Tensor, time: float) -> Tensor:
        """Velocities (B, N, C) of noised images (B, N, C), one behind each context; the contexts stay as they are."""
        rows, count, width = latents.shape
        model, device, length = self.model, latents.device, count + 2
        lengths, positions, cache = contexts.lengths[:, None], contexts.positions[:, None], contexts.cache
        tokens = torch.full((rows, length), self.space.specials.pad, device=device)
        tokens[:, 0], tokens[:, -1] = self.space.specials.boi, self.space.specials.eoi
        cache.reserve(cache.slots)
        mask = torch.arange(cache.used, device=device) < lengths + length
        index = (torch.arange(rows, device=device)[:, None] * length + 1 + torch.arange(count, device=device)).flatten()
        flat = latents.reshape(-1, width).to(model.dtype)
        times = torch.full((len(flat),), time, device=device)
        row_col = grid_positions(*self.grid).to(device).repeat(rows, 1)
        media = {LATENTS: MediaTokens(index, flat, row_col, (self.grid,) * rows, times)}
        mask = mask[:, None, None].expand(-1, -1, length, -1)
        slots = lengths + torch.arange(length, device=device)
        features = model(tokens, positions.expand_as(tokens), mask, cache, media=media, slots=slots)
        return exact(model.heads[VELOCITY](features.flatten(0, 1)[index])).view(rows, count, width)
