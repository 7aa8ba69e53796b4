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
from data_pipelines.outline import Outline, Run, RunMedia, media_run
from tokenizers_vq.media import LATENTS, PATCHES
from tokenizers_vq.token_space import TokenSpace
from unimodal.generation.batch_media import media_of
from unimodal.generation.requests import Request
from unimodal.model.branches.base import MediaTokens, grid_positions
from unimodal.model.cache import KVCache
from unimodal.model.masks import dense_mask
from unimodal.model.model import VELOCITY, UnifiedModel

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

    def __init__(self, model: UnifiedModel, space: TokenSpace, contexts: Sequence[Context], room: int) -> None:
        """room: slots to keep for what follows the longest of them."""
        self.model, self.device = model, model.device
        longest = max(map(len, contexts))
        batch = collate([[Outline((), (tuple(c.runs),)).build()] for c in contexts], longest, space).to(self.device)
        self.cache = KVCache(model.config.trunk, len(contexts), longest + room, model.dtype, device=self.device)
        self.lengths = torch.tensor([len(context) for context in contexts], device=self.device)
        self.positions = torch.tensor([context.position for context in contexts], device=self.device)
        self.logits = self._read(batch)

    def _read(self, batch: PackedBatch) -> Tensor:
        """Logits (B, V) of what comes next."""
        rows, length = batch.tokens.shape
        slots = torch.arange(length, device=self.device).expand(rows, length)
        mask = dense_mask(batch.documents, batch.branches, batch.spans)
        self.cache.reserve(length)
        media = clean_media(batch, self.model)
        features = self.model(batch.tokens, batch.positions, mask, self.cache, media=media, slots=slots)
        last = features[torch.arange(rows, device=self.device), self.lengths - 1]
        return self.model.token_head(last).float()

    def say(self, tokens: Tensor) -> None:
        """One more token for each context: tokens (B,); `logits` are those of the next."""
        self.cache.reserve(int(self.lengths.max()) + 1)
        mask = torch.arange(self.cache.used, device=self.device) <= self.lengths[:, None]
        slots, positions = self.lengths[:, None], self.positions[:, None]
        features = self.model(tokens[:, None], positions, mask[:, None, None], self.cache, slots=slots)
        self.logits = self.model.token_head(features[:, 0]).float()
        self.lengths, self.positions = self.lengths + 1, self.positions + 1

    def velocities(self, latents: Tensor, time: float, space: TokenSpace, size: tuple[int, int]) -> Tensor:
        """Velocities (B, N, C) of noised images (B, N, C), one behind each context, which stays as it is."""
        rows, count, width = latents.shape
        tokens = torch.full((rows, count + 2), space.specials.pad, device=self.device)
        tokens[:, 0], tokens[:, -1] = space.specials.boi, space.specials.eoi
        slots = self.lengths[:, None] + torch.arange(count + 2, device=self.device)
        self.cache.reserve(int(self.lengths.max()) + count + 2)
        mask = torch.arange(self.cache.used, device=self.device) < self.lengths[:, None] + count + 2
        starts = torch.arange(rows, device=self.device)[:, None] * (count + 2) + 1
        index = (starts + torch.arange(count, device=self.device)).flatten()
        flat = latents.reshape(-1, width).to(self.model.dtype)
        times = torch.full((len(flat),), time, device=self.device)
        row_col = grid_positions(*size).to(self.device).repeat(rows, 1)
        media = {LATENTS: MediaTokens(index, flat, row_col, (size,) * rows, times)}
        positions = self.positions[:, None].expand_as(tokens)
        mask = mask[:, None, None].expand(-1, -1, count + 2, -1)
        features = self.model(tokens, positions, mask, self.cache, media=media, slots=slots)
        velocity = self.model.heads[VELOCITY](features.flatten(0, 1)[index])
        return velocity.float().view(rows, count, width)


def clean_media(batch: PackedBatch, model: UnifiedModel) -> dict[str, MediaTokens]:
    """The clean latents and the patches of a batch, for the branches that a model has."""
    return {name: tokens for name, tokens in media_of(batch).items() if name in model.branches}
