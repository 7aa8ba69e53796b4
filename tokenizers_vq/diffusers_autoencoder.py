"""An AutoencoderKL that was saved by diffusers, as one of our autoencoders."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from tokenizers_vq.folder import content_hash, one_line
from tokenizers_vq.latents import LatentAutoencoder, Posterior

# Shapes: B images, H height, W width, C latent width, R, K rows and columns of latents.

DIFFUSERS_CLASS = "AutoencoderKL"
"""`_class_name` in its config.json."""


class DiffusersAutoencoder(LatentAutoencoder):
    """diffusers' AutoencoderKL. Its statistics are what diffusers' pipelines use: (latents - shift) * scaling.

    latent_mean is `latents_mean`, else `shift_factor`, else 0; latent_std is `latents_std`, else 1, over
    `scaling_factor`. A `latent_patch` in its config.json, which diffusers does not know, is ours (BAGEL: 2).
    """

    def __init__(self, network: Any, image_size: int) -> None:
        config = network.config
        reduction, patch = 2 ** (len(config.block_out_channels) - 1), config.get("latent_patch", 1)
        super().__init__(image_size, reduction, config.latent_channels, patch)
        if image_size % self.reduction:
            raise ValueError(f"an image of {image_size} pixels cannot be cut into latents of {self.reduction} pixels")
        self.network = network
        mean = config.latents_mean if config.latents_mean is not None else config.shift_factor or 0.0
        std = torch.tensor(config.latents_std if config.latents_std is not None else 1.0) / config.scaling_factor
        self.latent_mean.copy_(torch.tensor(mean))
        self.latent_std.copy_(std)

    def posterior(self, images: Tensor) -> Posterior:
        """images (B, 3, H, W) in [-1, 1] -> Posterior in float32."""
        distribution = self.network.encode(images.to(self.network.dtype)).latent_dist
        return Posterior(distribution.mean.float(), distribution.logvar.float())

    def pixels(self, latents: Tensor) -> Tensor:
        """Latents before normalisation (B, C, R, K) -> images (B, 3, H, W) float32, not clamped."""
        return self.network.decode(latents.to(self.network.dtype)).sample.float()

    @property
    def hash(self) -> str:
        """SHA-256 over config and weights, statistics among them; the version that wrote the config does not count."""
        config = {name: value for name, value in self.network.config.items() if not name.startswith("_")}
        config.pop("sample_size", None)  # the image size stands for it
        return content_hash({**config, "image_size": self.image_size}, self.state_dict())

    def save(self, folder: Path) -> None:
        """Write a folder as diffusers does; its `sample_size` is this image size, so that it opens as it was."""
        self.network.register_to_config(sample_size=self.image_size)
        self.network.save_pretrained(folder, safe_serialization=True)


def open_diffusers(folder: Path, image_size: int | None = None) -> DiffusersAutoencoder:
    """Open a local folder of config.json and diffusion_pytorch_model.safetensors, in evaluation mode.

    image_size: None takes the config's `sample_size`. Raises ValueError with the reason where it cannot be opened.
    """
    try:
        network_class: Any = importlib.import_module("diffusers").AutoencoderKL
    except ImportError as error:
        raise ValueError("an AutoencoderKL needs an extra: pip install 'unimodal[diffusers]'") from error
    try:
        with torch.random.fork_rng(devices=[]):  # the first weights are drawn and thrown away
            network, loading = network_class.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False, output_loading_info=True
            )
        wrong = [name for names in loading.values() for name in names]
        if wrong:
            raise ValueError(f"weights and config do not fit one another at {wrong[0]}")
        autoencoder = DiffusersAutoencoder(network, image_size or network.config.sample_size)
    except (OSError, ValueError, TypeError, SafetensorError, RuntimeError) as error:
        raise ValueError(f"{folder} does not hold an AutoencoderKL: {one_line(error)}") from error
    return autoencoder.eval().requires_grad_(False)
