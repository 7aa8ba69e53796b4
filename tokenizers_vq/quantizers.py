"""Quantizers: vector-quantize-pytorch behind one contract, imported where it is needed: it takes a second."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

# Shapes: B images, P places of an image, Q codes of a place, N = P * Q codes of an image, D code width.


class Quantized(NamedTuple):
    """codes (B, P, D) for the decoder, with a straight-through gradient; indices (B, N) int64; named losses."""

    codes: Tensor
    indices: Tensor
    losses: dict[str, Tensor]


class QuantizerConfig:
    """The choice of a quantizer; a config names one of its subclasses."""

    codebook_size: int
    dim: int

    @property
    def codes_of_a_place(self) -> int:
        """How many codes, one after another, a place of the grid has."""
        return 1


@dataclass(frozen=True, kw_only=True)
class VQConfig(QuantizerConfig):
    """Vector quantisation (arXiv 1711.00937): k-means start, EMA codebook, dead codes revived from the batch."""

    codebook_size: int = 1024
    dim: int = 8
    decay: float = 0.99
    commitment: float = 1.0
    revive_below: float = 1.0
    """A code whose EMA count falls below this is replaced by a vector of the batch."""
    cosine: bool = False
    kmeans_iters: int = 10


@dataclass(frozen=True, kw_only=True)
class FSQConfig(QuantizerConfig):
    """Finite scalar quantisation (arXiv 2309.15505): every channel is rounded to one of a few levels."""

    levels: tuple[int, ...] = (8, 5, 5, 5)

    @property
    def codebook_size(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Product of the levels."""
        return prod(self.levels)

    @property
    def dim(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """One channel for each entry of `levels`."""
        return len(self.levels)


@dataclass(frozen=True, kw_only=True)
class LFQConfig(QuantizerConfig):
    """Look-up-free quantisation (arXiv 2310.05737): the signs of the channels are the code."""

    bits: int = 10
    entropy_weight: float = 0.1
    diversity_gamma: float = 1.0
    commitment: float = 0.25

    @property
    def codebook_size(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """2 to the number of bits."""
        return 2**self.bits

    @property
    def dim(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """One channel a bit."""
        return self.bits


@dataclass(frozen=True, kw_only=True)
class ResidualVQConfig(QuantizerConfig):
    """Residual quantisation (arXiv 2107.03312): each of `levels` codebooks of `level_size` codes quantises what those
    before it leave. A place has a code of each level, one after another, whose ids differ from level to level."""

    levels: int = 2
    level_size: int = 512
    dim: int = 8
    decay: float = 0.99
    commitment: float = 1.0
    revive_below: float = 1.0
    kmeans_iters: int = 10

    def __post_init__(self) -> None:
        if self.levels < 2 or self.level_size < 2:
            raise ValueError(f"residual quantisation has two levels at least, of two codes at least, got {self}")

    @property
    def codebook_size(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Codes of all levels."""
        return self.levels * self.level_size

    @property
    def codes_of_a_place(self) -> int:
        """One of each level."""
        return self.levels


DISTANCES_AT_ONCE = 2**24
"""Distances between vectors and codes that exist at a time while pictures are encoded."""


class Quantizer(nn.Module):
    """What every quantizer gives: `forward` for training, `lookup` for decoding."""

    codebook_size: int
    dim: int

    def forward(self, x: Tensor) -> Quantized:
        """x (B, P, D) -> Quantized."""
        raise NotImplementedError

    def encode(self, x: Tensor) -> Tensor:
        """x (B, P, D) -> indices (B, N) int64, without what training needs."""
        return self(x).indices

    def lookup(self, indices: Tensor) -> Tensor:
        """indices (B, N) -> codes (B, P, D)."""
        raise NotImplementedError

    def vectors(self) -> Tensor:
        """(codebook_size, D): what each code stands for."""
        return self.lookup(torch.arange(self.codebook_size)[None])[0]

    def join_ranks(self) -> None:
        """From now on learn with all ranks of the process group, which was made after the quantizer."""


class VQ(Quantizer):
    """VectorQuantize."""

    def __init__(self, config: VQConfig) -> None:
        from vector_quantize_pytorch import VectorQuantize

        super().__init__()
        self.codebook_size, self.dim = config.codebook_size, config.dim
        self._layer = partial(
            VectorQuantize,
            dim=config.dim,
            codebook_size=config.codebook_size,
            decay=config.decay,
            commitment_weight=config.commitment,
            kmeans_init=True,
            kmeans_iters=config.kmeans_iters,
            threshold_ema_dead_code=config.revive_below,  # pyright: ignore[reportArgumentType]
            use_cosine_sim=config.cosine,
        )
        self.layer = self._layer(sync_codebook=False)

    def join_ranks(self) -> None:
        """One codebook for all ranks: without it each would learn its own for the encoder that they share."""
        joined = self._layer(sync_codebook=True)
        joined.load_state_dict(self.layer.state_dict())
        self.layer = joined

    def forward(self, x: Tensor) -> Quantized:
        codes, indices, loss = self.layer(x)
        return Quantized(codes, indices, {"commitment": loss.sum()})

    def encode(self, x: Tensor) -> Tensor:
        """The nearest codes, some vectors at a time: VectorQuantize makes a row as long as the codebook for each."""
        if self.training or self.layer.use_cosine_sim:
            return super().encode(x)
        codebook = self.layer.codebook
        lengths, rows = codebook.square().sum(-1), max(1, DISTANCES_AT_ONCE // len(codebook))
        found = []
        for part in x.flatten(0, 1).split(rows):
            distances = part.square().sum(-1, keepdim=True) + lengths - 2 * part @ codebook.T
            found.append(distances.clamp_min(1e-8).sqrt().argmin(-1))  # VectorQuantize's distance, ties and all
        return torch.cat(found).view(x.shape[:-1])

    def lookup(self, indices: Tensor) -> Tensor:
        return self.layer.get_output_from_indices(indices)


class ResidualVQ(Quantizer):
    """ResidualVQ: the codes of a place lie beside one another, in the order of their levels."""

    def __init__(self, config: ResidualVQConfig) -> None:
        from vector_quantize_pytorch import ResidualVQ as Layer

        super().__init__()
        self.codebook_size, self.dim = config.codebook_size, config.dim
        self.levels, self.level_size = config.levels, config.level_size
        self._layer = partial(
            Layer,
            dim=config.dim,
            num_quantizers=config.levels,
            codebook_size=config.level_size,
            decay=config.decay,
            commitment_weight=config.commitment,
            kmeans_init=True,
            kmeans_iters=config.kmeans_iters,
            threshold_ema_dead_code=config.revive_below,
        )
        self.layer = self._layer(sync_codebook=False)

    def join_ranks(self) -> None:
        """As VQ."""
        joined = self._layer(sync_codebook=True)
        joined.load_state_dict(self.layer.state_dict())
        self.layer = joined

    def forward(self, x: Tensor) -> Quantized:
        codes, indices, losses = self.layer(x)
        first = torch.arange(self.levels, device=indices.device) * self.level_size
        return Quantized(codes, (indices + first).flatten(1), {"commitment": losses.sum()})

    def lookup(self, indices: Tensor) -> Tensor:
        """A code of another level than its place in the order counts as that of the same number of the right one."""
        return self.layer.get_output_from_indices(indices.unflatten(1, (-1, self.levels)) % self.level_size)

    def vectors(self) -> Tensor:
        codebooks: Any = self.layer.codebooks
        return codebooks.flatten(0, 1)


class FiniteScalar(Quantizer):
    """FSQ."""

    def __init__(self, config: FSQConfig) -> None:
        from vector_quantize_pytorch import FSQ

        super().__init__()
        self.codebook_size, self.dim = config.codebook_size, config.dim
        self.layer = FSQ(levels=list(config.levels))

    def forward(self, x: Tensor) -> Quantized:
        codes, indices = self.layer(x)
        return Quantized(codes, indices.long(), {})

    def lookup(self, indices: Tensor) -> Tensor:
        return self.layer.indices_to_codes(indices)


class LookupFree(Quantizer):
    """LFQ."""

    def __init__(self, config: LFQConfig) -> None:
        from vector_quantize_pytorch import LFQ

        super().__init__()
        self.codebook_size, self.dim = config.codebook_size, config.dim
        self.layer = LFQ(
            dim=config.bits,
            codebook_size=config.codebook_size,
            entropy_loss_weight=config.entropy_weight,
            diversity_gamma=config.diversity_gamma,
            commitment_loss_weight=config.commitment,
        )

    def forward(self, x: Tensor) -> Quantized:
        codes, indices, loss = self.layer(x)
        return Quantized(codes, indices, {"entropy": torch.as_tensor(loss).sum()})

    def lookup(self, indices: Tensor) -> Tensor:
        return self.layer.indices_to_codes(indices)


def build_quantizer(config: QuantizerConfig) -> Quantizer:
    """The quantizer a config asks for."""
    match config:
        case VQConfig():
            return VQ(config)
        case ResidualVQConfig():
            return ResidualVQ(config)
        case FSQConfig():
            return FiniteScalar(config)
        case LFQConfig():
            return LookupFree(config)
        case _:
            raise ValueError(f"unknown quantizer {type(config).__name__}")
