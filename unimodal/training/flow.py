"""Training the flow branch: noised copies of pictures go in, and the squared error of their velocity comes out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from data_pipelines.media_batch import PackedMedia
from tokenizers_vq.media import LATENTS, MediaSpec
from unimodal.model.checkpoint import open_transformer
from unimodal.model.config import FlowConfig, TransformerConfig
from unimodal.model.flow import LatentTokens, latent_tokens, logit_normal_times, noised, places_of
from unimodal.model.mixture import freeze, from_dense, is_understanding
from unimodal.model.transformer import Transformer
from unimodal.training.losses import FlowSums

# Shapes: B rows, T tokens, C channels, M latent tokens of a batch.


@dataclass(frozen=True, kw_only=True)
class FlowTrainingConfig:
    """The flow branch of a run.

    `weight` is that of the squared error beside cross-entropy, both means over a step's tokens (BAGEL: CE to MSE 0.25
    to 1). Times are the sigmoid of a standard normal, moved towards noise by `shift` (1 is not at all), one for each
    noised picture. `mixture` gives latents weights of their own in every layer; `time_channels`,
    `place_period` and `axial_turn` are FlowConfig's. `begin_with` is the bundle of a dense model whose weights both
    sides begin with; `freeze_understanding` trains the side of the latents alone.
    """

    weight: float = 1.0
    shift: float = 1.0
    mixture: bool = True
    time_channels: int = 256
    place_period: float = 10_000.0
    axial_turn: float = 0.0
    begin_with: Path | None = None
    freeze_understanding: bool = False
    seed: int = 0
    """Of the times and the noise."""

    def __post_init__(self) -> None:
        if self.weight < 0 or self.shift <= 0:
            raise ValueError(f"the weight of a flow is at least 0 and its shift above 0, got {self}")
        if self.freeze_understanding and not self.mixture:
            raise ValueError("freeze_understanding needs a mixture: otherwise latents have no weights of their own")
        if self.freeze_understanding and self.begin_with is None:
            raise ValueError("freeze_understanding needs begin_with: nothing is to be kept of random weights")
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"the seed of a flow lies in [0, 2^31), got {self.seed}")

    def shape(self, media: Mapping[str, MediaSpec]) -> dict[str, Any]:
        """What it adds to the config of a transformer. Raises ValueError where the data holds no latents."""
        if LATENTS not in media:
            raise ValueError("a flow trains on latents, and these shards hold none: tokenize with --autoencoder")
        flow = FlowConfig(
            latent_dim=media[LATENTS].width,
            side=media[LATENTS].max_side,
            time_channels=self.time_channels,
            place_period=self.place_period,
            axial_turn=self.axial_turn,
            autoencoder=media[LATENTS].source,
        )
        return {"mixture": self.mixture, "flow": flow}


def begin(transformer: Transformer, config: FlowTrainingConfig, fingerprint: str) -> None:
    """Weights of a dense bundle on both sides, and the understanding side frozen, where the config says so."""
    if config.begin_with is not None:
        dense, space = open_transformer(config.begin_with)
        if space.fingerprint != fingerprint:
            raise ValueError(f"{config.begin_with} has another token space than the data: it cannot be begun with")
        state = dense.state_dict()
        _check_same_shape(dense.config, transformer.config, config.begin_with)
        transformer.load_state_dict(from_dense(state) if config.mixture else state, strict=False)
    if config.freeze_understanding:
        freeze(transformer, is_understanding)


FREE = ("mixture", "flow", "vision", "dropout", "max_length")
"""What may differ between a dense model and one that begins with its weights."""


def _check_same_shape(dense: TransformerConfig, own: TransformerConfig, folder: Path) -> None:
    if dense.mixture or dense.flow is not None:
        raise ValueError(f"{folder} has a flow branch already: begin with a dense bundle, or go on from its checkpoint")
    for name, value in own.to_dict().items():
        found = dense.to_dict()[name]
        if name not in FREE and found != value:
            raise ValueError(f"{folder} cannot be begun with: its {name} is {found}, this model's {value}")


class Noised(NamedTuple):
    """Latents of a batch as they enter, and what is to be said of them."""

    media: LatentTokens
    target: Tensor
    """noise - x_0 (M, C)."""
    weights: Tensor
    """(M,), 0 for clean copies."""


def noise(
    packed: PackedMedia | None,
    config: FlowConfig,
    shift: float,
    like: Tensor,
    generator: torch.Generator | None = None,
) -> Noised:
    """Draw a time for each noised picture and noise for each of its latents.

    like, the tokens (B, T), are the batch's. Raises ValueError for a picture larger than the model's table of places.
    """
    device = like.device
    if packed is None:
        nothing, no_latents = torch.zeros(0, device=device), torch.zeros(0, config.latent_dim, device=device)
        standing = torch.zeros_like(like, dtype=torch.bool)
        return Noised(latent_tokens(standing, no_latents, nothing, nothing.long()), no_latents, nothing)
    latents, spans = packed.values, packed.spans
    standing = torch.zeros_like(like, dtype=torch.bool).flatten().index_fill(0, packed.index, True).view_as(like)
    rows = packed.index // like.shape[1]
    most = int(spans.abs().max()) + 1
    times = logit_normal_times(len(like) * most, shift, generator).to(device)
    own = torch.where(spans < 0, times[rows * most + spans.abs()], 0.0)
    drawn = torch.randn(latents.shape, generator=generator).to(device)
    entering = torch.where((spans < 0)[:, None], noised(latents, drawn, own), latents)
    media = latent_tokens(standing, entering, own, places_of(packed.row_col, config.side))
    return Noised(media, drawn - latents, packed.weights)


def flow_sums(velocity: Tensor, given: Noised) -> FlowSums:
    """Squared error of a velocity (M, C), a mean over channels."""
    errors = (velocity.float() - given.target).square().mean(-1)
    drawn = given.weights > 0
    return FlowSums((errors * given.weights).sum(), (errors * drawn).sum().detach(), drawn.sum())
