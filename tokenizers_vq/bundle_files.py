"""The folders that tokenizers and autoencoder have in a model bundle, and beside a folder of shards."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tokenizers_vq.autoencoder import open_autoencoder
from tokenizers_vq.image_tokenizer import ImageTokenizer
from tokenizers_vq.latents import LatentAutoencoder
from tokenizers_vq.text import TextTokenizer
from tokenizers_vq.token_space import TokenSpace

TEXT_TOKENIZER, IMAGE_TOKENIZER, AUTOENCODER = "text_tokenizer", "image_tokenizer", "autoencoder"


@dataclass(frozen=True)
class Tokenizers:
    """What turns text and pictures into ids and back; `autoencoder` turns pictures into latents of a flow branch."""

    text: TextTokenizer
    image: ImageTokenizer | None = None
    autoencoder: LatentAutoencoder | None = None

    @classmethod
    def open(cls, folder: Path, space: TokenSpace, *, latents: bool = True) -> Tokenizers:
        """What a folder holds, checked against the token space. Without `latents` no autoencoder is opened.

        Raises ValueError, with the folder, for a text tokenizer that is missing, for a folder that cannot be opened and
        for a tokenizer of other ids.
        """
        return cls(
            open_text_tokenizer(folder, space),
            open_image_tokenizer(folder, space) if (folder / IMAGE_TOKENIZER).is_dir() else None,
            open_autoencoder(folder / AUTOENCODER) if latents and (folder / AUTOENCODER).is_dir() else None,
        )

    def save(self, folder: Path) -> None:
        """Write each into its folder."""
        self.text.save(folder / TEXT_TOKENIZER)
        if self.image is not None:
            self.image.save(folder / IMAGE_TOKENIZER)
        if self.autoencoder is not None:
            self.autoencoder.save(folder / AUTOENCODER)


def open_text_tokenizer(folder: Path, space: TokenSpace) -> TextTokenizer:
    """The text tokenizer of a bundle. Raises ValueError where it cannot be opened or is not the token space's."""
    text = TextTokenizer.open(folder / TEXT_TOKENIZER)
    _check_hash("text", text.hash, space.text_hash, folder)
    return text


def open_image_tokenizer(folder: Path, space: TokenSpace) -> ImageTokenizer:
    """As `open_text_tokenizer`."""
    image = ImageTokenizer.open(folder / IMAGE_TOKENIZER)
    _check_hash("image", image.hash, space.image_hash, folder)
    return image


def _check_hash(kind: str, found: str, expected: str, folder: Path) -> None:
    if found != expected:
        raise ValueError(
            f"{folder}: the {kind} tokenizer is not the one of its token space ({found[:12]} and {expected[:12]})"
        )
