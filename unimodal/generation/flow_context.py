"""Contexts of the flow branch: what a model has read, as runs of tokens and clean copies of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from data_pipelines.batch import PackedBatch, collate
from data_pipelines.images import cut_patches
from data_pipelines.media_batch import PackedMedia
from data_pipelines.outline import Outline, Run, RunMedia, media_run
from tokenizers_vq.media import LATENTS, PATCHES
from tokenizers_vq.token_space import TokenSpace
from unimodal.generation.requests import Request
from unimodal.model.cache import KVCache
from unimodal.model.flow import LatentTokens, image_places, latent_tokens, places_of
from unimodal.model.masks import dense_mask
from unimodal.model.transformer import Transformer
from unimodal.model.vision import PatchTokens, Seen

# Shapes: B contexts, T tokens of the longest, L length of a context, N latents of an image, C channels.


@dataclass(kw_only=True)
class Context:
    """Runs in order, as templates make them for training."""

    runs: list[Run] = field(default_factory=list)

    def __len__(self) -> int:
        return sum(len(run.ids) for run in self.runs)

    @property
    def position(self) -> int:
        """Where what comes next stands."""
        return sum(run.advance for run in self.runs)

    def say(self, ids: Sequence[int]) -> None:
        """Tokens that follow."""
        if len(ids):
            self.runs.append(Run(np.asarray(ids, dtype=np.int64), 0.0))

    def show(self, body: Sequence[int], shown: Shown, space: TokenSpace) -> None:
        """A picture that follows: its clean copy, and its patches for a ViT or else its codes."""
        if shown.latents is not None:
            self.runs.append(media_run(RunMedia(LATENTS, shown.latents.cpu().numpy(), "clean"), space, 0.0))
        if shown.pixels is not None:
            patches = cut_patches(shown.pixels, shown.patch)
            self.runs.append(media_run(RunMedia(PATCHES, patches, "clean"), space, 0.0))
        else:
            self.say([space.specials.boi, *body, space.specials.eoi])


class Shown(NamedTuple):
    """A picture of a context: latents (R, K, C) where a clean copy is to stand, uint8 (H, W, 3) where a ViT sees it."""

    latents: Tensor | None
    pixels: np.ndarray | None = None
    patch: int = 1


def shown_pictures(request: Request, patch: int | None) -> list[Shown]:
    """The pictures of a request's prompt, as a model sees them whose ViT has patches of this side, or that has none.

    With a ViT an answer in text has no clean copies before it, as questions have none in training.
    Raises ValueError where latents and pixels are not of the same pictures.
    """
    if patch is None:
        return [Shown(latents) for latents in request.latents]
    latents = [None] * len(request.pixels) if request.config.mode == "text" else list(request.latents)
    if len(latents) != len(request.pixels):
        raise ValueError(f"a prompt has latents of {len(latents)} pictures and pixels of {len(request.pixels)}")
    return [Shown(*pair, patch) for pair in zip(latents, request.pixels, strict=True)]


def read_prompt(ids: Sequence[int], pictures: Sequence[Shown], space: TokenSpace) -> Context:
    """The context of a prompt with these pictures, in order. Raises ValueError where it has more or fewer."""
    context, text, left = Context(), [], list(pictures)
    index = found = 0
    while index < len(ids):
        image = space.read_image(ids, index) if ids[index] == space.specials.boi else None
        if image is None:
            text.append(ids[index])
            index += 1
            continue
        found += 1
        if not left:
            break
        context.say(text)
        context.show(ids[index + 1 : image.end - 1], left.pop(0), space)
        text, index = [], image.end
    if left or found != len(pictures):
        raise ValueError(f"a prompt has {found} or more pictures, and {len(pictures)} are given; they go together")
    context.say(text)
    return context


def without_words(context: Context, space: TokenSpace, *, pictures: bool) -> Context:
    """What guidance compares with: `<bos> <null> pictures <sep>`, or without its pictures too."""
    specials = space.specials
    kept: list[Run] = []
    for run in context.runs if pictures else ():
        if run.media or run.ids[0] == specials.boi:
            kept.append(run)
    bos, null, sep = ([Run(np.array([token]), 0.0)] for token in (specials.bos, specials.null, specials.sep))
    return Context(runs=[*bos, *null, *kept, *sep])


class ContextCache:
    """Contexts read by the model, side by side: their keys and values, and where each of them ends."""

    def __init__(self, model: Transformer, space: TokenSpace, contexts: Sequence[Context], room: int) -> None:
        """room: slots to keep for what follows the longest of them."""
        self.model, self.device = model, model.embedding.weight.device
        longest = max(map(len, contexts))
        batch = collate([[Outline((), (tuple(c.runs),)).build()] for c in contexts], longest, space).to(self.device)
        self.cache = KVCache(
            model.config, len(contexts), longest + room, model.embedding.weight.dtype, device=self.device
        )
        self.lengths = torch.tensor([len(context) for context in contexts], device=self.device)
        self.positions = torch.tensor([context.position for context in contexts], device=self.device)
        self.logits = self._read(batch)

    def _read(self, batch: PackedBatch) -> Tensor:
        """Logits (B, V) of what comes next."""
        rows, length = batch.tokens.shape
        slots = torch.arange(length, device=self.device).expand(rows, length)
        mask = dense_mask(batch.documents, batch.branches, batch.spans)
        self.cache.reserve(length)
        media, seen = clean_latents(batch, self.model), seen_pictures(batch, self.model)
        features = self.model.features(
            batch.tokens, batch.positions, mask, self.cache, media=media, seen=seen, slots=slots
        )
        last = features[torch.arange(rows, device=self.device), self.lengths - 1]
        return self.model.head(last).float()

    def say(self, tokens: Tensor) -> None:
        """One more token for each context: tokens (B,); `logits` are those of the next."""
        self.cache.reserve(int(self.lengths.max()) + 1)
        mask = torch.arange(self.cache.used, device=self.device) <= self.lengths[:, None]
        slots, positions = self.lengths[:, None], self.positions[:, None]
        features = self.model.features(tokens[:, None], positions, mask[:, None, None], self.cache, slots=slots)
        self.logits = self.model.head(features[:, 0]).float()
        self.lengths, self.positions = self.lengths + 1, self.positions + 1

    def velocities(self, latents: Tensor, time: float, space: TokenSpace, size: tuple[int, int]) -> Tensor:
        """Velocities (B, N, C) of noised images (B, N, C), one behind each context, which stays as it is."""
        rows, count, width = latents.shape
        assert self.model.flow is not None
        places = image_places(*size, self.model.flow.config.side).to(self.device).repeat(rows)
        tokens = torch.full((rows, count + 2), space.specials.pad, device=self.device)
        tokens[:, 0], tokens[:, -1] = space.specials.boi, space.specials.eoi
        slots = self.lengths[:, None] + torch.arange(count + 2, device=self.device)
        self.cache.reserve(int(self.lengths.max()) + count + 2)
        mask = torch.arange(self.cache.used, device=self.device) < self.lengths[:, None] + count + 2
        standing = torch.zeros_like(tokens, dtype=torch.bool)
        standing[:, 1:-1] = True
        flat = latents.reshape(-1, width).to(self.model.embedding.weight.dtype)
        times = torch.full((len(flat),), time, device=self.device)
        media = latent_tokens(standing, flat, times, places)
        positions = self.positions[:, None].expand_as(tokens)
        mask = mask[:, None, None].expand(-1, -1, count + 2, -1)
        features = self.model.features(tokens, positions, mask, self.cache, media=media, slots=slots)
        return self.model.flow.velocity(features.flatten(0, 1)[media.index]).float().view(rows, count, width)


def seen_pictures(batch: PackedBatch, model: Transformer) -> Seen | None:
    """What the ViT makes of a batch's pictures; None where it has none to see."""
    if PATCHES not in batch.media or model.vision is None:
        return None
    return model.vision(to_patch_tokens(batch.media[PATCHES], model.embedding.weight.dtype))


def to_patch_tokens(packed: PackedMedia, dtype: torch.dtype) -> PatchTokens:
    """Packed patches as the ViT takes them, in [-1, 1]."""
    return PatchTokens(packed.index, packed.values.to(dtype) / 127.5 - 1, packed.row_col, packed.grids)


def clean_latents(batch: PackedBatch, model: Transformer) -> LatentTokens | None:
    """The clean copies of a batch as they enter the model; None where there are none."""
    if LATENTS not in batch.media or model.flow is None:
        return None
    packed = batch.media[LATENTS]
    standing = torch.zeros_like(batch.tokens, dtype=torch.bool).flatten().index_fill(0, packed.index, True)
    standing = standing.view_as(batch.tokens)
    places = places_of(packed.row_col, model.flow.config.side)
    latents = packed.values.to(model.embedding.weight.dtype)
    return latent_tokens(standing, latents, torch.zeros(len(places), device=places.device), places)
