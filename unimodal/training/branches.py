"""Branches of a run: what a config says of them, and what the data adds to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tokenizers_vq.media import LATENTS, PATCHES, MediaSpec, PatchSpec
from unimodal.interop.architectures.vision import vit_config
from unimodal.model.config import ConnectorKind, EncoderKind, FlowConfig, ModelConfig, VisionConfig


@dataclass(frozen=True, kw_only=True)
class FlowBranchConfig:
    """The flow branch: images are drawn as latents. See FlowConfig; width, grid and autoencoder are the data's.

    `mixture` gives latents weights of their own in every layer (mixture-of-transformers).
    """

    mixture: bool = True
    time_channels: int = 256
    pos_embed_period: float = 10_000.0
    axial_rope_max: float = 0.0

    def to_model_config(self, media: Mapping[str, MediaSpec]) -> FlowConfig:
        """Raises ValueError where the data holds no latents."""
        if LATENTS not in media:
            raise ValueError(
                "model.flow trains on latents, and the data gives none: set data.templates.drawn to latents, and "
                "tokenize with --autoencoder"
            )
        return FlowConfig(
            latent_dim=media[LATENTS].width,
            grid_size=media[LATENTS].max_side,
            time_channels=self.time_channels,
            pos_embed_period=self.pos_embed_period,
            axial_rope_max=self.axial_rope_max,
            autoencoder=media[LATENTS].source,
        )


@dataclass(frozen=True, kw_only=True)
class VisionBranchConfig:
    """The vision branch: images are seen through a ViT. See VisionConfig; the patches are those of the data.

    Where a run starts from a folder of SigLIP or MoonViT (`start.vision`), that folder says encoder and sizes.
    """

    dim: int = 128
    num_layers: int = 3
    num_heads: int = 2
    hidden_dim: int = 384
    pos_embed_period: float = 10_000.0
    encoder: EncoderKind = "siglip"
    merge: int = 1
    connector: ConnectorKind = "mlp"

    def to_model_config(self, media: Mapping[str, MediaSpec], siglip: Path | None = None) -> VisionConfig:
        """Raises ValueError where the data holds no patches, or of another size than a SigLIP folder's."""
        spec = media[PATCHES].sizing if PATCHES in media else None
        if not isinstance(spec, PatchSpec):
            raise ValueError(
                "model.vision takes patches, and the data gives none: set data.templates.seen to patches, and tokenize "
                "with --patch"
            )
        if siglip is not None:
            found = vit_config(siglip, spec, self.merge, self.connector)
            return replace(found, pos_embed_period=self.pos_embed_period)
        return VisionConfig(
            patches=spec,
            grid_size=max(1, int(spec.max_patches**0.5)) * self.merge,
            dim=self.dim,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            hidden_dim=self.hidden_dim,
            pos_embed_period=self.pos_embed_period,
            encoder=self.encoder,
            merge=self.merge,
            connector=self.connector,
        )


def check_branches(config: ModelConfig, media: Mapping[str, MediaSpec]) -> None:
    """Raises ValueError where the data gives other media than the branches of a model take."""
    wanted = {name for name, branch in ((LATENTS, config.flow), (PATCHES, config.vision)) if branch}
    if wanted != set(media):
        raise ValueError(
            f"the model has branches for {' and '.join(sorted(wanted)) or 'no media'}, the data's templates give "
            f"{' and '.join(sorted(media)) or 'none'}: model.flow goes with data.templates.drawn latents, and "
            "model.vision with data.templates.seen patches"
        )
    flow, vision = config.flow, config.vision
    if flow and (flow.latent_dim != media[LATENTS].width or flow.autoencoder not in ("", media[LATENTS].source)):
        raise ValueError("the bundle draws latents of another autoencoder than the data's: tokenize with the bundle's")
    if vision and vision.patches.width != media[PATCHES].width:
        raise ValueError(f"the bundle takes patches of {vision.patches.size} pixels, the data has others")
    sizing = media[PATCHES].sizing if vision else None
    if vision and isinstance(sizing, PatchSpec) and vision.patches.tokens != sizing.tokens:
        raise ValueError(
            f"the model takes {vision.patches.tokens} tokens for each image (0: one for each patch), and "
            f"data.templates.resampled_tokens says {sizing.tokens}: they must be the same"
        )
