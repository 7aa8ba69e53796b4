"""Images <-> continuous latents: what every autoencoder gives, whoever trained it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tokenizers_vq.backbones import check_sides
from tokenizers_vq.latent_patches import check_latent_patch, latents_to_patches, patches_to_latents
from tokenizers_vq.media import LATENTS, LatentSpec, MediaSpec

# Shapes: B images, H height, W width, S side of a square image, C latent width, G grid side; R, K rows and columns.


class Posterior(NamedTuple):
    """A normal distribution of every latent: mean and log-variance, (B, C, R, K) each, before normalisation."""

    mean: Tensor
    log_variance: Tensor

    @property
    def std(self) -> Tensor:
        """Standard deviation, (B, C, R, K)."""
        return torch.exp(0.5 * self.log_variance)

    @property
    def kl(self) -> Tensor:
        """KL divergence from the standard normal in nats of each latent, (B, C, R, K) (arXiv 1312.6114, appendix B)."""
        return 0.5 * (self.mean.square() + self.log_variance.exp() - 1 - self.log_variance)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """One draw, (B, C, R, K); the noise is made where the generator lives. None takes torch's own generator."""
        device = self.mean.device if generator is None else generator.device
        noise = torch.randn(self.mean.shape, generator=generator, device=device, dtype=self.mean.dtype)
        return self.mean + self.std * noise.to(self.mean.device)


class LatentAutoencoder(nn.Module):
    """Images in [-1, 1] <-> latents of mean 0 and standard deviation 1 in every channel.

    Subclasses give `posterior` and `pixels`, both in latents as the network has them. What is seen from outside is
    (latents - latent_mean) / latent_std, with statistics of shape (channels,); with a `patch` above 1, squares of
    patch x patch of them as one of channels x patch^2 numbers, fewer for a transformer to draw (BAGEL: 2). Being
    convolutional, an autoencoder takes images of other sizes than `image_size` as well.
    """

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, image_size: int, reduction: int, channels: int, patch: int = 1) -> None:
        """reduction: pixels along one side of a latent as the network has it. Raises ValueError for a patch below 1."""
        super().__init__()
        check_latent_patch(patch)
        self.image_size, self.channels, self.patch = image_size, channels, patch
        self.reduction, self.latent_dim = reduction * patch, channels * patch**2
        self.register_buffer("latent_mean", torch.zeros(channels))
        self.register_buffer("latent_std", torch.ones(channels))

    def posterior(self, images: Tensor) -> Posterior:
        """images (B, 3, H, W) in [-1, 1] -> Posterior in float32."""
        raise NotImplementedError

    def pixels(self, latents: Tensor) -> Tensor:
        """Latents as the network has them (B, C, R, K) -> images (B, 3, H, W) float32, not clamped."""
        raise NotImplementedError

    @property
    def hash(self) -> str:
        """SHA-256 over config and weights, statistics among them."""
        raise NotImplementedError

    def save(self, folder: Path) -> None:
        """Write a folder that `open_autoencoder` opens."""
        raise NotImplementedError

    @property
    def grid(self) -> int:
        """Latents along one side of a square image of `image_size`."""
        return self.image_size // self.reduction

    @property
    def media(self) -> MediaSpec:
        """Its latents as media of a sequence."""
        sizing = LatentSpec(reduction=self.reduction, image_size=self.image_size)
        return MediaSpec(name=LATENTS, width=self.latent_dim, sizing=sizing, source=self.hash)

    @property
    def device(self) -> torch.device:
        """Where its weights are; `encode` and `decode` take tensors there."""
        return self.latent_mean.device

    @torch.no_grad()
    def encode(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """images (B, 3, H, W) in [-1, 1] -> normalised latents (B, C, R, K) float32.

        The posterior's mean, or a sample of it with a generator. Raises ValueError for sides that are no multiples of
        `reduction`.
        """
        check_sides(images, self.reduction)
        posterior = self.posterior(images.to(self.device))
        latents = posterior.mean if generator is None else posterior.sample(generator)
        normalised = (latents - self._each(self.latent_mean)) / self._each(self.latent_std)
        rows, columns = (side // self.patch for side in normalised.shape[2:])
        return latents_to_patches(normalised, self.patch).mT.unflatten(-1, (rows, columns)).contiguous()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents (B, C, R, K) -> images (B, 3, H, W) in [-1, 1]. Raises ValueError for other shapes."""
        shape = tuple(latents.shape)
        if len(shape) != 4 or shape[1] != self.latent_dim or min(shape[2:]) < 1:
            raise ValueError(f"this autoencoder takes latents of shape (B, {self.latent_dim}, R, K), got {shape}")
        patches = latents.to(self.device).float().flatten(2).mT
        latents = patches_to_latents(patches, *shape[2:], self.patch).contiguous()
        return self.pixels(latents * self._each(self.latent_std) + self._each(self.latent_mean)).clamp(-1, 1)

    @torch.no_grad()
    def measure(self, images: Iterable[Tensor]) -> None:
        """Set the statistics to those of the posterior's means over batches (B, 3, H, W) of images in [-1, 1].

        Samples of the posterior are therefore a little wider than 1. A channel that never varies keeps 1 as its
        standard deviation. Raises ValueError where there is no image, or a latent is not finite.
        """
        count, total, squares = 0, torch.zeros(self.channels).double(), torch.zeros(self.channels).double()
        for batch in images:
            means = self.posterior(batch.to(self.device)).mean.double().cpu()
            count += means.numel() // self.channels
            total += means.sum(dim=(0, 2, 3))
            squares += means.square().sum(dim=(0, 2, 3))
        if not count or not squares.isfinite().all():
            raise ValueError(f"latents cannot be measured: {'some are not finite' if count else 'there is no image'}")
        mean = total / count
        std = (squares / count - mean.square()).clamp_min(0).sqrt()
        self.latent_mean.copy_(mean)
        self.latent_std.copy_(torch.where(std > 1e-6 * (1 + mean.abs()), std, 1.0))

    def _each(self, statistics: Tensor) -> Tensor:
        return statistics.view(1, -1, 1, 1)
