"""Training with a ViT: its size, or the SigLIP folder that it begins with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tokenizers_vq.media import PATCHES, MediaSpec, PatchSpec
from unimodal.interop.siglip import load_siglip, siglip_config
from unimodal.model.config import VisionConfig
from unimodal.model.mixture import freeze
from unimodal.model.transformer import Transformer
from unimodal.model.vision import VisionTower


@dataclass(frozen=True, kw_only=True)
class VisionTrainingConfig:
    """The ViT of a run.

    Its patches are those that the shards were made for. `begin_with` is a local folder of transformers' SigLIP, which
    then says the sizes; `frozen` leaves its weights as they are and trains the connector.
    """

    width: int = 128
    num_layers: int = 3
    num_heads: int = 2
    hidden_dim: int = 384
    place_period: float = 10_000.0
    begin_with: Path | None = None
    frozen: bool = False

    def __post_init__(self) -> None:
        if self.frozen and self.begin_with is None:
            raise ValueError("a frozen ViT needs begin_with: nothing is to be kept of random weights")

    def shape(self, media: Mapping[str, MediaSpec]) -> VisionConfig:
        """What the model's config says of it. Raises ValueError where the data holds no patches, or of another size."""
        sizing = media[PATCHES].sizing if PATCHES in media else None
        if not isinstance(sizing, PatchSpec):
            raise ValueError("a ViT sees patches, and these shards hold none: tokenize with --patch")
        if self.begin_with is not None:
            found = siglip_config(self.begin_with, most=sizing.max_patches, longest=sizing.max_side)
            if found.patch != sizing.size:
                raise ValueError(
                    f"{self.begin_with} sees patches of {found.patch} pixels, the shards are for {sizing.size}"
                )
            return replace(found, place_period=self.place_period)
        return VisionConfig(
            patch=sizing.size,
            most=sizing.max_patches,
            longest=sizing.max_side,
            side=max(1, int(sizing.max_patches**0.5)),
            width=self.width,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            hidden_dim=self.hidden_dim,
            place_period=self.place_period,
        )


def begin_vision(transformer: Transformer, config: VisionTrainingConfig) -> None:
    """Weights of a SigLIP folder, and all but the connector frozen, where the config says so."""
    tower = transformer.vision
    assert isinstance(tower, VisionTower)
    if config.begin_with is not None:
        load_siglip(tower, config.begin_with)
    if config.frozen:
        freeze(tower, lambda name: not name.startswith("connector"))
