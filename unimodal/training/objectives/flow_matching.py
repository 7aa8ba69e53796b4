"""Flow matching: noised latents go in, and the squared error of their velocity comes out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from data_pipelines.batch import PackedBatch
from data_pipelines.media_batch import PackedMedia
from tokenizers_vq.media import LATENTS
from unimodal.model.branches.base import MediaBatch, MediaTokens
from unimodal.model.branches.flow import add_noise, logit_normal_times
from unimodal.model.model import VELOCITY, UnifiedModel
from unimodal.training.objectives.base import Objective, Prepared, Term, Terms

# Shapes: B rows, T tokens, D model width, C numbers of a latent, M latent tokens of a batch.

SEED_STRIDE = 0x9E3779B1
"""Of 32 bits, which is all that a generator on a CPU takes of its seed: numbers of batches under neighbouring seeds lie
far apart."""


class NoisedLatents(NamedTuple):
    """Latents of a batch as they enter the model, and what is asked of them."""

    media: MediaTokens
    target: Tensor
    """noise - x_0 (M, C)."""
    weights: Tensor
    """(M,), 0 for clean latents."""


@dataclass(frozen=True, kw_only=True)
class FlowMatching(Objective):
    """Term `flow`: the squared error of a velocity, a mean over channels (BAGEL, arXiv 2505.14683, section 2.2).

    `weight` is that of the term beside cross-entropy, both means over a step's tokens (BAGEL: CE to MSE 0.25 to 1).
    Times are the sigmoid of a standard normal, moved towards noise by `shift` (1 is not at all), one for each noised
    image. `seed` is that of times and noise, which are functions of it and of the batch's number.
    """

    weight: float = 1.0
    shift: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.weight < 0 or self.shift <= 0:
            raise ValueError(f"the weight of a flow is at least 0 and its shift above 0, got {self}")
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"the seed of a flow lies in [0, 2^31), got {self.seed}")

    @property
    def branch(self) -> str:
        """See `Objective`."""
        return LATENTS

    def prepare(self, model: UnifiedModel, batch: PackedBatch, media: MediaBatch, number: int) -> Prepared:
        """Noise those latents that are to be drawn."""
        del model
        generator = torch.Generator().manual_seed((self.seed * SEED_STRIDE + number) % 2**32)
        noised = noise_latents(batch.media.get(LATENTS), media[LATENTS], batch.tokens.shape, self.shift, generator)
        return Prepared({**media, LATENTS: noised.media}, noised)

    def terms(self, model: UnifiedModel, features: Tensor, batch: PackedBatch, state: NoisedLatents) -> Terms:
        """See `Objective`."""
        del batch
        velocity = model.heads[VELOCITY](features.flatten(0, 1)[state.media.index])
        errors = (velocity.float() - state.target).square().mean(-1)
        return {"flow": Term(self.weight * (errors * state.weights).sum(), self.weight * state.weights.sum())}


def noise_latents(
    packed: PackedMedia | None, clean: MediaTokens, shape: torch.Size, shift: float, generator: torch.Generator
) -> NoisedLatents:
    """Draw a time for each noised image of a batch of shape (B, T) and noise for each of its latents.

    `packed` says which latents are noised; without it `clean` is empty.
    """
    if not packed:
        return NoisedLatents(clean, clean.values, clean.values.new_zeros(0))
    device, rows = clean.values.device, clean.index // shape[1]
    count = packed.spans_per_row
    times = logit_normal_times(shape[0] * count, shift, generator).to(device, non_blocking=True)
    is_noised = packed.spans < 0
    token_times = torch.where(is_noised, times[rows * count + packed.spans.abs()], 0.0)
    noise = torch.randn(clean.values.shape, generator=generator).to(device, non_blocking=True)
    entering = torch.where(is_noised[:, None], add_noise(clean.values, noise, token_times), clean.values)
    return NoisedLatents(clean._replace(values=entering, times=token_times), noise - clean.values, packed.weights)
