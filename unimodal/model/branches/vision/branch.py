"""The vision branch: patches of images, seen through an encoder, into the sequence."""

from __future__ import annotations

from torch import Tensor

from unimodal.model.branches.base import Branch, Inserted, MediaTokens, no_tokens
from unimodal.model.branches.vision.connectors import MLPConnector
from unimodal.model.branches.vision.siglip import SiglipEncoder
from unimodal.model.config import VisionConfig

# Shapes: N patches of all images, P = 3 * size * size numbers of a patch, D model width.


class VisionBranch(Branch):
    """Encoder and connector (BAGEL, arXiv 2505.14683, section 2)."""

    expert = "understanding"

    def __init__(self, config: VisionConfig, dim: int) -> None:
        super().__init__()
        self.config = config
        self.encoder = SiglipEncoder(config)
        self.connector = MLPConnector(config, dim)

    def init_weights(self) -> None:
        """All parameters of encoder and connector."""
        self.encoder.init_weights()
        self.connector.init_weights()

    def forward(self, media: MediaTokens) -> Inserted:
        """media.values are bytes 0 to 255 (N, P). Raises ValueError for an image longer than the position table."""
        patches = media.values.to(self.encoder.patch_embedding.weight.dtype) / 127.5 - 1
        return Inserted(media.index, self.connector(self.encoder(patches, media.grids), media))

    def empty(self, like: Tensor) -> MediaTokens:
        """See `Branch`."""
        return no_tokens(3 * self.config.patches.size**2, like)
