"""Small things to test with: pictures, image tokenizers, a token space, documents of ids and a source from a list."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from data_pipelines.documents import Document, ImageSegment, TextSegment
from data_pipelines.failures import FailureLog
from data_pipelines.shards import TokenDocument, TokenSegment
from tokenizers_vq.backbones import BackboneConfig, PatchBackboneConfig, VQGANBackboneConfig
from tokenizers_vq.image_tokenizer import ImageTokenizer, ImageTokenizerConfig
from tokenizers_vq.quantizers import FSQConfig, LFQConfig, QuantizerConfig, ResidualVQConfig, VQConfig
from tokenizers_vq.token_space import FixedLayout, GridLayout, TokenSpace

SIZE = 16
BACKBONES: dict[str, BackboneConfig] = {
    "patch": PatchBackboneConfig(patch_size=8, width=16, depth=1),
    "vqgan": VQGANBackboneConfig(width=16, multipliers=(1, 1, 1, 1)),
}
QUANTIZERS: dict[str, QuantizerConfig] = {
    "vq": VQConfig(codebook_size=16, dim=4),
    "fsq": FSQConfig(levels=(5, 4, 3)),
    "lfq": LFQConfig(bits=4),
    "residual": ResidualVQConfig(levels=2, level_size=8, dim=4),
}
FINE = FSQConfig(levels=(8, 8, 8, 8))
SPACE = TokenSpace(
    text_size=100, text_hash="t" * 64, codebook_size=16, image_hash="i" * 64, layout=FixedLayout(rows=2, columns=2)
)
GRID_SPACE = dataclasses.replace(SPACE, layout=GridLayout(sizes=((1, 3), (2, 2), (3, 1))))
"""Room for 4 ids of the layout (eol, sides of 1 to 3) before the codes, which begin at 104."""


def random_images(number: int, seed: int = 0) -> Tensor:
    """(number, 3, SIZE, SIZE) in [-1, 1]: plain grounds with a plain square each, easy to learn."""
    generator = torch.Generator().manual_seed(seed)
    colours = torch.rand(number, 2, 3, 1, 1, generator=generator) * 2 - 1
    images = colours[:, 0].expand(-1, -1, SIZE, SIZE).clone()
    corners = torch.randint(0, SIZE // 2, (number, 2), generator=generator).tolist()
    for image, colour, (x, y) in zip(images, colours[:, 1], corners, strict=True):
        image[:, y : y + SIZE // 2, x : x + SIZE // 2] = colour
    return images


def noise(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """A picture of noise in any mode."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def tiny_tokenizer(backbone: str = "patch", quantizer: str = "fsq", size: int = SIZE) -> ImageTokenizer:
    """Untrained, in evaluation mode; a VQ codebook is started from data. 2x2 codes for images of 16 pixels."""
    chosen = FINE if quantizer == "fine" else QUANTIZERS[quantizer]
    config = ImageTokenizerConfig(image_size=size, backbone=BACKBONES[backbone], quantizer=chosen)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        tokenizer = ImageTokenizer(config)
        if quantizer in ("vq", "residual"):
            tokenizer.train()(random_images(32))
    return tokenizer.eval()


def projection(tokenizer: ImageTokenizer) -> nn.Conv2d:
    """What the patch encoder ends with."""
    layer = tokenizer.encoder.project
    assert isinstance(layer, nn.Conv2d)
    return layer


def sharp_tokenizer(size: int = SIZE) -> ImageTokenizer:
    """Untrained as `tiny_tokenizer`, but with many codes, so that small changes of a picture change its codes."""
    tokenizer = tiny_tokenizer("patch", "fine", size)
    projection(tokenizer).weight.data.mul_(10)
    return tokenizer


def text(role: str, *ids: int) -> TokenSegment:
    """A text segment of ids."""
    return TokenSegment(kind="text", role=role, ids=np.asarray(ids, dtype=np.int64))


def image(*codes: int, role: str = "image", space: TokenSpace = SPACE) -> TokenSegment:
    """An image segment of the codes of a fixed layout, or of a square in a grid."""
    ids = [space.image_offset + code for code in codes]
    if isinstance(space.layout, GridLayout):
        ids = space.image_body(ids, (math.isqrt(len(ids)), math.isqrt(len(ids))))
    return TokenSegment(kind="image", role=role, ids=np.asarray(ids, dtype=np.int64))


def caption_document(key: str, length: int = 3, first: int = 10, space: TokenSpace = SPACE) -> TokenDocument:
    """A picture of four codes, which follow from `first`, with a caption of `length` ids."""
    picture = image(*((first + i) % space.codebook_size for i in range(4)), space=space)
    caption = [10 + (first + i) % (space.text_size - 10) for i in range(length)]
    return TokenDocument(key=key, segments=(picture, text("caption", *caption)), meta={"layout": "sample"})


def same_documents(a: Sequence[TokenDocument], b: Sequence[TokenDocument]) -> bool:
    """Equal in keys, metadata, roles, kinds and ids."""

    def plain(document: TokenDocument) -> tuple:
        segments = [(segment.kind, segment.role, segment.ids.tolist()) for segment in document.segments]
        return document.key, dict(document.meta), segments

    return [plain(document) for document in a] == [plain(document) for document in b]


@dataclass
class ListSource:
    """Documents from a list."""

    items: list[Document]
    notes: dict[str, int] = field(default_factory=dict)
    failures: FailureLog = field(default_factory=FailureLog)

    def documents(self) -> Iterator[Document]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def fingerprint(self) -> str:
        return "d" * 64


def captioned(key: str, picture: Image.Image, caption: str = "a picture") -> Document:
    """A picture with a caption and a question."""
    segments = (
        ImageSegment(source=picture),
        TextSegment(text=caption, role="caption"),
        TextSegment(text="what is it?", role="question"),
        TextSegment(text=caption, role="answer"),
    )
    return Document(key=key, segments=segments, meta={"layout": "sample"})
