"""Token documents written by hand, and through shards and back."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from data_pipelines.shards.format import TokenDocument, TokenSegment
from data_pipelines.shards.reader import open_manifest, read_shard
from data_pipelines.shards.writer import ShardWriter
from tests.oracles.tiny import tiny_space
from tokenizers_vq.media import LATENTS, LatentSpec, MediaSpec, PatchSpec

SPACE = tiny_space()
LATENT_MEDIA = MediaSpec(name=LATENTS, width=5, sizing=LatentSpec(reduction=8, image_size=24), source="a")
PATCH_MEDIA = MediaSpec.of_patches(PatchSpec(size=2, max_patches=9, max_side=4))
MEDIA = {spec.name: spec for spec in (LATENT_MEDIA, PATCH_MEDIA)}
BOS, EOS, BOI, EOI, SEP, NULL, PAD = (
    getattr(SPACE.specials, name) for name in ("bos", "eos", "boi", "eoi", "sep", "null", "pad")
)
CODES = [16, 17, 18, 19]


def image(role: str, **media: np.ndarray) -> TokenSegment:
    return TokenSegment(kind="image", role=role, ids=np.array(CODES), media=media)


def text(role: str, *ids: int) -> TokenSegment:
    return TokenSegment(kind="text", role=role, ids=np.array(ids))


def document(*segments: TokenSegment, **meta: str) -> TokenDocument:
    return TokenDocument(key="d", segments=segments, meta=meta)


def write(folder: Path, *documents: TokenDocument) -> Path:
    with ShardWriter(folder, SPACE, image_policy={}, source={}, media=MEDIA) as writer:
        for number, one in enumerate(documents):
            writer.write(dataclasses.replace(one, key=f"d{number}"))
    return folder


def read(folder: Path) -> list[TokenDocument]:
    manifest = open_manifest(folder)
    return [one for entry in manifest.shards for one in read_shard(folder, entry, manifest)]
