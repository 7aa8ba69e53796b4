"""Image tokenizer: pictures -> codes -> pictures, and the folder it is kept in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tokenizers_vq.backbones import BackboneConfig, build_backbone, check_sides
from tokenizers_vq.field_types import from_plain
from tokenizers_vq.folder import check_kind, content_hash, open_module, part_from_dict, part_to_dict, save_module
from tokenizers_vq.layout import FixedLayout, Size
from tokenizers_vq.quantizers import QuantizerConfig, build_quantizer

# Shapes: B images, H height, W width, N codes of one image, D code width.

TOKENIZER_KIND = "vq"


@dataclass(frozen=True, kw_only=True)
class ImageTokenizerConfig:
    """A backbone and a quantizer, trained on square images of `image_size` pixels."""

    image_size: int
    backbone: BackboneConfig
    quantizer: QuantizerConfig

    def __post_init__(self) -> None:
        if self.image_size % self.backbone.reduction:
            raise ValueError(
                f"an image of {self.image_size} pixels cannot be cut into codes of {self.backbone.reduction} pixels"
            )

    @property
    def grid(self) -> int:
        """Codes along one side."""
        return self.image_size // self.backbone.reduction

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        parts = {"backbone": part_to_dict(self.backbone), "quantizer": part_to_dict(self.quantizer)}
        return {"image_size": self.image_size, **parts}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ImageTokenizerConfig:
        """The inverse of `to_dict`. Raises ValueError for anything else."""
        check_kind(values, TOKENIZER_KIND)
        try:
            parts = {name: part_from_dict(values[name]) for name in ("backbone", "quantizer")}
            return from_plain(cls, {"image_size": values["image_size"], **parts})
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not an image tokenizer config: {error}") from error


class Reconstruction(NamedTuple):
    """images (B, 3, H, W), indices (B, N), and the quantizer's named losses."""

    images: Tensor
    indices: Tensor
    losses: dict[str, Tensor]


class ImageTokenizer(nn.Module):
    """Images in [-1, 1] <-> codes in [0, codebook_size).

    It is trained on squares of `image_size` pixels; being convolutional, it takes images of other sizes as well.
    """

    def __init__(self, config: ImageTokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.quantizer = build_quantizer(config.quantizer)
        encoder, decoder = build_backbone(config.backbone, config.quantizer.dim)
        self.encoder = encoder.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.decoder = decoder.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    @property
    def image_size(self) -> int:
        """Side of the square images in pixels."""
        return self.config.image_size

    @property
    def reduction(self) -> int:
        """Pixels along one side of a code."""
        return self.config.backbone.reduction

    @property
    def device(self) -> torch.device:
        """Where its weights are; `encode` takes images there."""
        return next(self.encoder.parameters()).device

    @property
    def codebook_size(self) -> int:
        """Number of different codes."""
        return self.config.quantizer.codebook_size

    @property
    def layout(self) -> FixedLayout:
        """How the codes of a square image lie in a sequence."""
        rows, columns = self.size_of(self.image_size, self.image_size)
        return FixedLayout(rows=rows, columns=columns)

    def size_of(self, height: int, width: int) -> Size:
        """Rows and columns of the codes of an image of so many pixels; codes of one place are columns of their own."""
        rows, columns = height // self.reduction, width // self.reduction
        return rows, columns * self.config.quantizer.codes_of_a_place

    def forward(self, images: Tensor) -> Reconstruction:
        """images (B, 3, H, W) in [-1, 1] -> Reconstruction, for training."""
        vectors = self.encoder(images.contiguous(memory_format=torch.channels_last))
        with torch.autocast(images.device.type, enabled=False):
            quantized = self.quantizer(vectors.float().flatten(2).transpose(1, 2))
        pixels = self._pixels(quantized.codes, (vectors.shape[2], vectors.shape[3]))
        return Reconstruction(pixels, quantized.indices, quantized.losses)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """images (B, 3, H, W) in [-1, 1] -> codes (B, N) int64 in reading order.

        Raises ValueError for sides that are no multiples of `reduction`.
        """
        check_sides(images, self.reduction)
        images = images.to(self.device)
        vectors = self.encoder(images.contiguous(memory_format=torch.channels_last))
        return self.quantizer.encode(vectors.float().flatten(2).transpose(1, 2))

    @torch.no_grad()
    def decode(self, codes: Tensor, size: Size | None = None) -> Tensor:
        """codes (B, N) int64 -> images (B, 3, H, W) in [-1, 1], of `size` rows and columns of codes or else square.

        Raises ValueError for another number of codes, and for a code that does not exist.
        """
        rows, columns = self.layout.sizes[0] if size is None else size
        width, rest = divmod(columns, self.config.quantizer.codes_of_a_place)
        if codes.ndim != 2 or min(rows, width) < 1 or rest or codes.shape[1] != rows * columns:
            shape = tuple(codes.shape)
            raise ValueError(f"an image of {rows} x {columns} has {rows * columns} codes, got a batch of shape {shape}")
        if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >= self.codebook_size):
            raise ValueError(
                f"codes lie in 0 to {self.codebook_size - 1}, got {int(codes.min())} to {int(codes.max())}"
            )
        return self._pixels(self.quantizer.lookup(codes.to(self.device)), (rows, width)).clamp(-1, 1)

    def _pixels(self, vectors: Tensor, size: Size) -> Tensor:
        grid = vectors.transpose(1, 2).unflatten(2, size)
        return self.decoder(grid.contiguous(memory_format=torch.channels_last)).float()

    @property
    def hash(self) -> str:
        """SHA-256 over config and weights."""
        return content_hash(self.config.to_dict(), self.state_dict())

    def save(self, folder: Path) -> None:
        """Write config.json and model.safetensors."""
        save_module(folder, self.config.to_dict(), self)

    @classmethod
    def open(cls, folder: Path) -> ImageTokenizer:
        """Open a folder written by `save`, in evaluation mode. Raises ValueError with the reason where it cannot."""
        return open_module(
            folder, lambda values: cls(ImageTokenizerConfig.from_dict(values)), holds="an image tokenizer"
        )
