"""Which prompts a model cannot take, found from their lengths, before a picture is encoded or a token decoded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from tokenizers_vq.media import PatchSpec
from unimodal.generation.engine import Engine
from unimodal.generation.prompts import Prompt, PromptCoder, pictures_of
from unimodal.generation.requests import DecodeConfig, Request


def refused(engine: Engine, coder: PromptCoder, prompts: Sequence[Prompt], config: DecodeConfig) -> dict[int, str]:
    """Number -> reason of every prompt that the engine would refuse under these settings."""
    reasons: dict[int, str] = {}
    for number, prompt in enumerate(prompts):
        try:
            engine.check(_outline(coder, prompt, config, engine.reading.patches))
        except ValueError as error:
            reasons[number] = str(error)
    return reasons


def _outline(coder: PromptCoder, prompt: Prompt, config: DecodeConfig, patches: PatchSpec | None) -> Request:
    """A request as long as that of the prompt, whose pictures are blank."""
    pictures, autoencoder = pictures_of(prompt), coder.autoencoder
    latents = []
    if autoencoder is not None:
        latents = [torch.zeros(autoencoder.grid, autoencoder.grid, autoencoder.latent_dim) for _ in pictures]
    pixels = [] if patches is None else [_blank(picture, patches) for picture in pictures]
    return Request(prompt=coder.outline(prompt), config=config, latents=latents, pixels=pixels)


def _blank(picture: Image.Image, patches: PatchSpec) -> np.ndarray:
    rows, columns = patches.patch_grid(picture.height, picture.width)
    return np.zeros((rows * patches.size, columns * patches.size, 3), dtype=np.uint8)
