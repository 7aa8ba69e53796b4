"""Initialises the vectors of image codes from the codebook: similar codes start with similar vectors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from tokenizers_vq.bundle_files import IMAGE_TOKENIZER
from tokenizers_vq.image_tokenizer import ImageTokenizer
from tokenizers_vq.token_space import TokenSpace
from unimodal.model.config import INIT_STD
from unimodal.model.model import UnifiedModel
from unimodal.model.sharded import write_rows

# Shapes: C codes, D width of a code in the image tokenizer, W width of the model.


@dataclass(frozen=True, kw_only=True)
class CodebookInitConfig:
    """The image rows of embedding and head start as random projections of the image tokenizer's codebook.

    Otherwise all codes start unrelated, and a model has to learn from data which of them are neighbours. Measured on
    easy-VQA: docs/log.md, 2026-11-24.
    """

    embedding: bool = True
    head: bool = True


def init_from_codebook(
    model: UnifiedModel, space: TokenSpace, tokenizer: ImageTokenizer, config: CodebookInitConfig
) -> None:
    """Overwrite the image rows, which keep the size (standard deviation) of the usual start."""
    vectors = tokenizer.quantizer.vectors().detach().float()
    for chosen, table in ((config.embedding, model.trunk.embedding.weight), (config.head, model.token_head.weight)):
        if chosen:
            rows = projected(vectors, table.shape[1])
            write_rows(table, rows.to(table.dtype), first=space.image_offset)


def projected(vectors: Tensor, width: int) -> Tensor:
    """(C, D) -> (C, W): whitened channel by channel, then a random projection to entries of size INIT_STD."""
    spread = vectors.std(0).clamp_min(1e-6)
    normal = (vectors - vectors.mean(0)) / spread
    projection = torch.empty(vectors.shape[1], width)
    nn.init.normal_(projection, std=INIT_STD / vectors.shape[1] ** 0.5)
    return normal @ projection


def open_beside(folder: Path | None) -> ImageTokenizer:
    """The image tokenizer of a folder of tokenizers. Raises ValueError where there is none."""
    if folder is None or not (folder / IMAGE_TOKENIZER).is_dir():
        raise ValueError(f"codebook_init needs the image tokenizer, and {folder} holds no {IMAGE_TOKENIZER} folder")
    return ImageTokenizer.open(folder / IMAGE_TOKENIZER)
