"""The ViT through which images of any shape are seen: SigLIP's transformer on packed patches.

    patch ─▶ embedding + position ─▶ [ norm ─▶ attention ─▶ +  norm ─▶ MLP ─▶ + ] x L ─▶ norm

Patches of all images of a batch stand one after the other and nothing is padded (SigLIP, arXiv 2303.15343; NaViT, arXiv
2307.06304). The table of positions is resized to each image's rows and columns, as in SigLIP 2's NaFlex (arXiv
2502.14786).
"""

from __future__ import annotations

import itertools
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unimodal.model.branches.vision.merging import Grids
from unimodal.model.config import INIT_STD, VisionConfig
from unimodal.model.kernels import has_flash, packed_attention
from unimodal.model.linear import BoundaryLinear, init_linear
from unimodal.model.masks import DocumentEnds
from unimodal.model.transformer import compute_dtype

# Shapes: N patches of all images, I images, E width of the ViT, H heads, S side of the table, P = 3 * size * size.

Resizing = Literal["bilinear", "bicubic"]
Images = DocumentEnds | list[Tensor]
"""Where the images of packed patches stand: their ends, or the groups of `images_by_length`."""


PairRotation = tuple[Tensor, Tensor]
"""Cosines and sines (N, 1, W / 2) of pairs of neighbouring channels of a head."""


def rotate_pairs(heads: Tensor, rotation: PairRotation) -> Tensor:
    """(N, H, W): channels 2 j and 2 j + 1 turn together."""
    cos, sin = rotation
    even, odd = heads[..., ::2], heads[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


class VisionBlock(nn.Module):
    """Pre-norm attention within each image, then an MLP."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.num_heads, self.residual_std = config.num_heads, config.residual_std
        self.attention_norm = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.q_proj = nn.Linear(config.dim, config.dim)
        self.k_proj = nn.Linear(config.dim, config.dim)
        self.v_proj = nn.Linear(config.dim, config.dim)
        self.o_proj = nn.Linear(config.dim, config.dim)
        self.mlp_norm = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.up_proj = nn.Linear(config.dim, config.hidden_dim)
        self.down_proj = nn.Linear(config.hidden_dim, config.dim)

    def init_weights(self) -> None:
        """Projections back into the residual stream start smaller the deeper the ViT is."""
        self.attention_norm.reset_parameters()
        self.mlp_norm.reset_parameters()
        for linear in (self.q_proj, self.k_proj, self.v_proj, self.up_proj):
            init_linear(linear, INIT_STD)
        for linear in (self.o_proj, self.down_proj):
            init_linear(linear, self.residual_std)

    def forward(self, x: Tensor, images: Images, rotation: PairRotation | None = None) -> Tensor:
        """x (N, E), where its images stand, and how queries and keys turn -> (N, E)."""
        x = x + self.o_proj(self._attend(self.attention_norm(x), images, rotation))
        return x + self.down_proj(F.gelu(self.up_proj(self.mlp_norm(x)), approximate="tanh"))

    def _attend(self, x: Tensor, images: Images, rotation: PairRotation | None) -> Tensor:
        heads = [project(x).unflatten(-1, (self.num_heads, -1)) for project in (self.q_proj, self.k_proj, self.v_proj)]
        if rotation is not None:
            heads[:2] = [rotate_pairs(each, rotation) for each in heads[:2]]
        if isinstance(images, DocumentEnds):
            return packed_attention(heads[0], heads[1], heads[2], images, causal=False).flatten(1)
        if not images:  # without an image there is nothing, but with gradients
            return (heads[0] + heads[1] + heads[2]).flatten(1)
        mixed = torch.zeros_like(heads[0])
        for group in images:
            queries, keys, values = (each[group].transpose(1, 2) for each in heads)
            within = F.scaled_dot_product_attention(queries, keys, values).transpose(1, 2)
            mixed = mixed.index_copy(0, group.flatten(), within.flatten(0, 1).to(mixed.dtype))
        return mixed.flatten(1)


class SiglipEncoder(nn.Module):
    """Patches of images -> one feature vector a patch."""

    resizing: Resizing = "bilinear"

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embedding = BoundaryLinear(3 * config.patch_size**2, config.dim)
        self.position_embedding = nn.Parameter(torch.empty(config.grid_size**2, config.dim))
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.dim, eps=config.norm_eps)

    def init_weights(self) -> None:
        """All parameters."""
        nn.init.normal_(self.position_embedding, std=INIT_STD)
        init_linear(self.patch_embedding, INIT_STD)
        for block in self.blocks:
            block.init_weights()  # pyright: ignore[reportCallIssue]
        self.norm.reset_parameters()

    def forward(self, patches: Tensor, grids: Grids) -> Tensor:
        """patches (N, P) in [-1, 1], image after image, -> (N, E): SigLIP's `last_hidden_state`."""
        x = self.patch_embedding(patches) + self._positions(grids)
        images = where_images_stand(grids, x, self.config.dim // self.config.num_heads)
        rotation = self.rotation(grids, x)
        for block in self.blocks:
            x = block(x, images, rotation)
        return self.norm(x)

    def rotation(self, grids: Grids, like: Tensor) -> PairRotation | None:
        """How queries and keys turn; SigLIP's do not."""
        del grids, like
        return None

    def _positions(self, grids: Grids) -> Tensor:
        """(N, E): the table resized to each image."""
        table = self.position_embedding.unflatten(0, (self.config.grid_size, self.config.grid_size))
        resized = {grid: _resized(table, grid, self.resizing) for grid in dict.fromkeys(grids)}
        return torch.cat([self.position_embedding[:0], *(resized[grid] for grid in grids)])


def _resized(table: Tensor, grid: tuple[int, int], how: Resizing) -> Tensor:
    """(S, S, E) -> (rows * columns, E); bilinear with antialiasing, or bicubic without (Kimi-VL's public code)."""
    if table.shape[:2] == grid:
        return table.flatten(0, 1)
    precise = table.to(torch.promote_types(table.dtype, torch.float32)).permute(2, 0, 1)[None]
    smooth = F.interpolate(precise, grid, mode=how, align_corners=False, antialias=how == "bilinear")
    return smooth[0].permute(1, 2, 0).flatten(0, 1).to(table.dtype)


def where_images_stand(grids: Grids, x: Tensor, head_dim: int) -> Images:
    """Ends of the images where FlashAttention takes all shapes in one call, else groups of images of one length."""
    if not grids or not has_flash(x.device, compute_dtype(x), head_dim):
        return images_by_length(grids, x.device)
    lengths = [rows * columns for rows, columns in grids]
    ends = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=x.device)
    return DocumentEnds(ends, max(lengths))


def images_by_length(grids: Grids, device: torch.device) -> list[Tensor]:
    """For each number of patches, (images, patches): where the patches of such images stand."""
    starts: dict[int, list[int]] = {}
    start = 0
    for rows, columns in grids:
        starts.setdefault(rows * columns, []).append(start)
        start += rows * columns
    return [
        torch.tensor(firsts, device=device)[:, None] + torch.arange(length, device=device)
        for length, firsts in starts.items()
    ]
