"""The vision branch: patches of images, seen through an encoder, into the sequence."""

from __future__ import annotations

from torch import Tensor, nn

from tokenizers_vq.folded_patches import unfold_patches
from unimodal.model.branches.base import Branch, Inserted, MediaTokens, no_tokens
from unimodal.model.branches.vision.connectors import MLPConnector, PixelShuffleConnector
from unimodal.model.branches.vision.merging import in_raster_order, patch_grids, patch_slots, split_tokens
from unimodal.model.branches.vision.moonvit import MoonViTEncoder
from unimodal.model.branches.vision.resampler import Resampler
from unimodal.model.branches.vision.siglip import SiglipEncoder
from unimodal.model.config import VisionConfig

# Shapes: M tokens of all images, P = 3 * size * size numbers of a token, D model width.

ENCODERS: dict[str, type[SiglipEncoder]] = {"siglip": SiglipEncoder, "moonvit": MoonViTEncoder}
CONNECTORS: dict[str, type[nn.Module]] = {
    "mlp": MLPConnector,
    "pixel_shuffle": PixelShuffleConnector,
    "resampler": Resampler,
}


class VisionBranch(Branch):
    """Encoder and connector (BAGEL, arXiv 2505.14683, section 2; Kimi-VL, arXiv 2504.07491; Qwen-VL, 2308.12966)."""

    expert = "understanding"

    def __init__(self, config: VisionConfig, dim: int) -> None:
        super().__init__()
        self.config = config
        self.encoder = ENCODERS[config.encoder](config)
        self.connector = CONNECTORS[config.connector](config, dim)

    def init_weights(self) -> None:
        """All parameters of encoder and connector."""
        self.encoder.init_weights()
        self.connector.init_weights()  # pyright: ignore[reportCallIssue]

    def forward(self, media: MediaTokens) -> Inserted:
        """media.values are bytes 0 to 255 (M, P). Raises ValueError for an image longer than the position table."""
        if self.config.patches.tokens:
            return Inserted(media.index, self._resampled(media))
        merge, pixels = self.config.merge, self._scaled(media.values)
        if merge == 1:
            return Inserted(media.index, self.connector(self.encoder(pixels, media.grids), media))
        slots = patch_slots(media, merge)
        raster = in_raster_order(split_tokens(pixels, merge), slots)
        features = self.encoder(raster, patch_grids(media.grids, merge))
        return Inserted(media.index, self.connector(features[slots].unflatten(0, (-1, merge**2)).flatten(1), media))

    def _resampled(self, media: MediaTokens) -> Tensor:
        """Every image as the same number of tokens; its rows and columns stand in the numbers of its tokens."""
        values, grids = unfold_patches(media.values, self.config.patches.tokens, self.config.patches.width)
        return self.connector(self.encoder(self._scaled(values), grids), grids)

    def _scaled(self, values: Tensor) -> Tensor:
        return values.to(self.encoder.patch_embedding.weight.dtype) / 127.5 - 1

    def empty(self, like: Tensor) -> MediaTokens:
        """See `Branch`."""
        return no_tokens(self.config.patches.width, like)
