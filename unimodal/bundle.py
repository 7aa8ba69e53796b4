"""Bundle: a model, its token space and its tokenizers, and the folder that everything after training opens."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import torch

from tokenizers_vq.autoencoder import open_autoencoder
from tokenizers_vq.bundle_files import (
    AUTOENCODER,
    IMAGE_TOKENIZER,
    Tokenizers,
    open_image_tokenizer,
    open_text_tokenizer,
)
from tokenizers_vq.latents import LatentAutoencoder
from tokenizers_vq.token_space import TokenSpace
from unimodal.model.checkpoint import WEIGHTS_FILE, open_model, read_config, save_model
from unimodal.model.config import FlowConfig, ModelConfig
from unimodal.model.model import UnifiedModel

Opened = TypeVar("Opened")


@dataclass(frozen=True)
class Bundle:
    """A model with its token space and tokenizers; `path` is the folder it was opened from.

    Only a model with a flow branch has an autoencoder.
    """

    model: UnifiedModel
    space: TokenSpace
    tokenizers: Tokenizers
    path: Path | None = None

    @classmethod
    def open(cls, folder: Path, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> Bundle:
        """Open what `save` or an earlier version wrote, in evaluation mode; `dtype` is for the model's weights.

        Image tokenizer and autoencoder are on the model's device. Raises ValueError, with the file and the reason,
        where it cannot.
        """
        _check_folder(folder)
        model, space = open_model(folder)
        opened = cls.beside(model.to(device, dtype), space, folder)
        return cls(opened.model, space, opened.tokenizers, folder)

    @classmethod
    def beside(cls, model: UnifiedModel, space: TokenSpace, folder: Path) -> Bundle:
        """A model, in training say, with the tokenizers of a folder. Raises ValueError as `open` does."""
        tokenizers = Tokenizers.open(folder, space, latents=False)
        autoencoder = _flow_autoencoder(folder, model.config)
        autoencoder = None if autoencoder is None else autoencoder.to(model.device)
        image = None if tokenizers.image is None else tokenizers.image.to(model.device)
        return cls(model, space, Tokenizers(tokenizers.text, image, autoencoder))

    def save(self, folder: Path) -> None:
        """Write everything that is needed after training."""
        save_model(self.model, self.space, folder)
        self.tokenizers.save(folder)

    @staticmethod
    def verify(folder: Path) -> list[str]:
        """What is wrong with a bundle on disk, in a readable line each; nothing where it opens."""
        problems: list[str] = []

        def attempt(part: Callable[[], Opened]) -> Opened | None:
            try:
                return part()
            except ValueError as error:
                problems.append(" ".join(str(error).split()))
                return None

        if attempt(lambda: _check_folder(folder)) is None:
            return problems
        opened = attempt(lambda: open_model(folder))
        space = opened[1] if opened else _quietly(lambda: TokenSpace.open(folder))
        config = opened[0].config if opened else _quietly(lambda: read_config(folder))
        if space is not None:
            attempt(lambda: open_text_tokenizer(folder, space))
            if (folder / IMAGE_TOKENIZER).is_dir():
                attempt(lambda: open_image_tokenizer(folder, space))
        if config is not None:
            attempt(lambda: _flow_autoencoder(folder, config))
        return problems

    @cached_property
    def sha256(self) -> str:
        """Hash of the weights file; empty for a model that was never saved."""
        if self.path is None:
            return ""
        return hashlib.sha256((self.path / WEIGHTS_FILE).read_bytes()).hexdigest()


def _check_folder(folder: Path) -> bool:
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: give a model bundle, as training leaves it")
    return True


def _flow_autoencoder(folder: Path, config: ModelConfig) -> LatentAutoencoder | None:
    """What a model with a flow branch draws with. Raises ValueError where that is not there or another one."""
    if not config.flow:
        return None
    if not (folder / AUTOENCODER).is_dir():
        raise ValueError(f"{folder} holds a model with a flow branch, but no {AUTOENCODER} folder to draw with")
    found = open_autoencoder(folder / AUTOENCODER)
    _check_autoencoder(found, config.flow, folder / AUTOENCODER)
    return found


def _check_autoencoder(found: LatentAutoencoder, config: FlowConfig, where: Path) -> None:
    if (found.latent_dim, found.grid) != (config.latent_dim, config.grid_size):
        raise ValueError(
            f"{where} gives {found.grid}x{found.grid} latents of {found.latent_dim} channels, the model was trained on "
            f"{config.grid_size}x{config.grid_size} of {config.latent_dim}: it is another autoencoder"
        )
    if config.autoencoder not in ("", found.hash):
        raise ValueError(
            f"{where} is not the autoencoder that the model was trained with "
            f"({found.hash[:12]} and {config.autoencoder[:12]})"
        )


def _quietly(part: Callable[[], Opened]) -> Opened | None:
    """None for what cannot be opened, which is reported elsewhere."""
    try:
        return part()
    except ValueError:
        return None
