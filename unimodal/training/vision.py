"""Training with a ViT: its size, or the SigLIP folder that it begins with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from tokenizers_vq.media import PatchSpec
from unimodal.interop.siglip import load_siglip, siglip_config
from unimodal.model.branches.vision.branch import VisionBranch
from unimodal.model.config import VisionConfig
from unimodal.model.mixture import freeze
from unimodal.model.model import PATCHES, UnifiedModel


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

    def shape(self, patches: dict[str, int] | None) -> VisionConfig:
        """What the model's config says of it. Raises ValueError where the data holds no pixels, or of other patches."""
        if patches is None:
            raise ValueError("a ViT sees pixels, and these shards hold none: tokenize with --patch")
        spec = PatchSpec(size=patches["patch"], max_patches=patches["most"], max_side=patches["longest"])
        if self.begin_with is not None:
            found = siglip_config(self.begin_with, max_patches=spec.max_patches, max_side=spec.max_side)
            if found.patches != spec:
                raise ValueError(
                    f"{self.begin_with} sees patches of {found.patches.size} pixels, the shards are for {spec.size}"
                )
            return replace(found, pos_embed_period=self.place_period)
        return VisionConfig(
            patches=spec,
            grid_size=max(1, int(spec.max_patches**0.5)),
            dim=self.width,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            hidden_dim=self.hidden_dim,
            pos_embed_period=self.place_period,
        )


def begin_vision(model: UnifiedModel, config: VisionTrainingConfig) -> None:
    """Weights of a SigLIP folder, and all but the connector frozen, where the config says so."""
    branch = model.branches[PATCHES]
    assert isinstance(branch, VisionBranch)
    if config.begin_with is not None:
        load_siglip(branch.encoder, config.begin_with)
    if config.frozen:
        freeze(branch.encoder, lambda name: True)
