"""Image autoencoder: pictures -> continuous latents -> pictures, and the folder it is kept in."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tokenizers_vq.backbones import BackboneConfig, build_backbone
from tokenizers_vq.diffusers_autoencoder import DIFFUSERS_CLASS, open_diffusers
from tokenizers_vq.field_types import from_plain
from tokenizers_vq.folder import (
    CONFIG_FILE,
    check_kind,
    content_hash,
    one_line,
    open_module,
    part_from_dict,
    part_to_dict,
    save_module,
)
from tokenizers_vq.latent_patches import check_latent_patch
from tokenizers_vq.latents import LatentAutoencoder, Posterior

__all__ = ["AutoencoderOutput", "ImageAutoencoder", "ImageAutoencoderConfig", "LatentAutoencoder", "open_autoencoder"]

# Shapes: B images, H height, W width, C latent width, R, K rows and columns of latents.

AUTOENCODER_KIND = "kl"
LOG_VARIANCE_RANGE = (-30.0, 20.0)
"""As in latent diffusion (arXiv 2112.10752)."""


@dataclass(frozen=True, kw_only=True)
class ImageAutoencoderConfig:
    """A backbone and the channels of its latents, trained on square images of `image_size` pixels.

    Squares of `latent_patch` x `latent_patch` latents are given out as one, of latent_dim * latent_patch^2 numbers.
    """

    image_size: int
    backbone: BackboneConfig
    latent_dim: int
    latent_patch: int = 1

    def __post_init__(self) -> None:
        if self.latent_dim < 1:
            raise ValueError(f"a latent has at least one channel, got {self.latent_dim}")
        check_latent_patch(self.latent_patch)
        pixels = self.backbone.reduction * self.latent_patch
        if self.image_size % pixels:
            raise ValueError(f"an image of {self.image_size} pixels cannot be cut into latents of {pixels} pixels")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        values = {"kind": AUTOENCODER_KIND, "image_size": self.image_size, "backbone": part_to_dict(self.backbone)}
        patch = {} if self.latent_patch == 1 else {"latent_patch": self.latent_patch}
        return {**values, "latent_dim": self.latent_dim, **patch}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ImageAutoencoderConfig:
        """The inverse of `to_dict`. Raises ValueError for anything else."""
        check_kind(values, AUTOENCODER_KIND)
        try:
            fields = {name: value for name, value in values.items() if name != "kind"}
            return from_plain(cls, {**fields, "backbone": part_from_dict(values["backbone"])})
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not an image autoencoder config: {error}") from error


class AutoencoderOutput(NamedTuple):
    """reconstruction (B, 3, H, W) of a sample; kl, a scalar: the mean over all elements, in nats; the posterior."""

    reconstruction: Tensor
    kl: Tensor
    posterior: Posterior


class ImageAutoencoder(LatentAutoencoder):
    """The KL autoencoder of latent diffusion (arXiv 2112.10752, section 3.1) on this project's backbones.

    It differs in that its latents are normalised channel by channel, not by one factor.
    """

    def __init__(self, config: ImageAutoencoderConfig) -> None:
        super().__init__(config.image_size, config.backbone.reduction, config.latent_dim, config.latent_patch)
        self.config = config
        encoder, decoder = build_backbone(config.backbone, config.latent_dim, encoder_dim=2 * config.latent_dim)
        self.encoder = encoder.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.decoder = decoder.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> AutoencoderOutput:
        """images (B, 3, H, W) in [-1, 1] -> AutoencoderOutput, for training. The generator draws the sample."""
        posterior = self.posterior(images)
        return AutoencoderOutput(self.pixels(posterior.sample(generator)), posterior.kl.mean(), posterior)

    def posterior(self, images: Tensor) -> Posterior:
        """images (B, 3, H, W) in [-1, 1] -> Posterior in float32."""
        moments = self.encoder(images.contiguous(memory_format=torch.channels_last)).float()
        mean, log_variance = moments.chunk(2, dim=1)
        return Posterior(mean, log_variance.clamp(*LOG_VARIANCE_RANGE))

    def pixels(self, latents: Tensor) -> Tensor:
        """Latents before normalisation (B, C, R, K) -> images (B, 3, H, W) float32, not clamped."""
        return self.decoder(latents.contiguous(memory_format=torch.channels_last)).float()

    @property
    def hash(self) -> str:
        """SHA-256 over config and weights, statistics among them."""
        return content_hash(self.config.to_dict(), self.state_dict())

    def save(self, folder: Path) -> None:
        """Write config.json and model.safetensors."""
        save_module(folder, self.config.to_dict(), self)

    @classmethod
    def open(cls, folder: Path) -> ImageAutoencoder:
        """Open a folder written by `save`, in evaluation mode. Raises ValueError with the reason where it cannot."""
        return open_module(
            folder, lambda values: cls(ImageAutoencoderConfig.from_dict(values)), holds="an image autoencoder"
        )


def open_autoencoder(folder: Path, image_size: int | None = None) -> LatentAutoencoder:
    """Open our folder, or diffusers' folder of an AutoencoderKL, which needs the `diffusers` extra.

    image_size: what such an AutoencoderKL is used at; None takes the `sample_size` of its config. Ours knows its own.
    Raises ValueError where the folder cannot be opened, or is ours and has another image size.
    """
    try:
        values = json.loads((folder / CONFIG_FILE).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} does not hold an image autoencoder: {one_line(error)}") from error
    if isinstance(values, dict) and values.get("_class_name") == DIFFUSERS_CLASS:
        return open_diffusers(folder, image_size)
    autoencoder = ImageAutoencoder.open(folder)
    if image_size not in (None, autoencoder.image_size):
        raise ValueError(f"{folder} is of images of {autoencoder.image_size} pixels, not {image_size}")
    return autoencoder
