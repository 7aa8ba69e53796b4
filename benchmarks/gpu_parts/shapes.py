"""Models and packed mixed-modal batches of real sizes."""

from __future__ import annotations

from random import Random

import numpy as np

from data_pipelines.batch import PackedBatch, collate
from data_pipelines.outline import Rendered
from tokenizers_vq.token_space import FixedLayout, TokenSpace
from unimodal.model.config import ModelConfig, TransformerConfig

LAYOUT = FixedLayout(rows=32, columns=32)
SPACE = TokenSpace(text_size=57_344, text_hash="", codebook_size=8_192, image_hash="", layout=LAYOUT)
"""Chameleon's 65,536 ids and 1,024 codes an image."""

LENGTH = 4096


def _trunk(dim: int, layers: int, hidden: int) -> TransformerConfig:
    heads = dim // 128
    return TransformerConfig(
        dim=dim, num_layers=layers, num_heads=heads, num_kv_heads=heads, hidden_dim=hidden, max_length=LENGTH
    )


TRUNKS = {
    "0.3B": _trunk(1024, 20, 2816),
    "1B": _trunk(2048, 18, 5632),
    "2B": _trunk(2560, 24, 6912),
    "7B": _trunk(4096, 32, 11_008),
}


def shape(size: str) -> ModelConfig:
    """The model of a size."""
    return ModelConfig(vocab_size=SPACE.vocab_size, trunk=TRUNKS[size])


def packed_batch(rows: int, seed: int = 0, length: int = LENGTH) -> PackedBatch:
    """Rows of documents in turn: a picture of 1,024 codes with its caption, or a text of 50 to 1,500 ids."""
    random, packed = Random(seed), []
    for _ in range(rows):
        row, left = list[Rendered](), length
        while left >= 64:
            caption = random.randint(16, 60)
            picture = not row or random.random() < 0.6
            size = 1026 + caption if picture else random.randint(50, 1500)
            row.append(_document(random, min(size, left), picture=picture and size <= left))
            left -= len(row[-1])
        packed.append(row)
    return collate(packed, length, SPACE)


def _document(random: Random, size: int, *, picture: bool) -> Rendered:
    numbers = np.random.default_rng(random.randrange(2**32))
    ids = numbers.integers(8, SPACE.text_size, size)
    if picture:
        ids[-1025:-1] = SPACE.image_offset + numbers.integers(0, SPACE.codebook_size, 1024)
    index = np.arange(size)
    return Rendered(ids=ids, weights=np.ones(size, np.float32), branches=np.zeros_like(index), positions=index)
