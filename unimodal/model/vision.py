"""The understanding encoder: a ViT that sees pictures of any shape, and a connector that makes tokens of them.

    patch ─▶ embedding + position ─▶ [ norm ─▶ attention ─▶ +  norm ─▶ MLP ─▶ + ] x L ─▶ norm ─▶ connector

SigLIP's transformer (arXiv 2303.15343) on packed patches: those of all pictures of a batch lie one behind the other and
nothing is padded (NaViT, arXiv 2307.06304). Its table of positions is resized to each picture's rows and columns, as in
SigLIP 2's NaFlex (arXiv 2502.14786). The connector is BAGEL's (arXiv 2505.14683): two layers, then the place's sines
and cosines.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unimodal.model.config import VisionConfig
from unimodal.model.sinusoids import sincos_places

# Shapes: N patches of all pictures, I pictures, E width of the ViT, H heads, D model width, P = 3 * patch * patch.


class PatchTokens(NamedTuple):
    """Patches of a batch, picture by picture, and where they stand in its rows."""

    index: Tensor
    """(N,) int64 into the flattened (B * T) tokens."""
    patches: Tensor
    """(N, P) in [-1, 1]."""
    cells: Tensor
    """(N, 2) int64: row and column in the picture."""
    sizes: tuple[tuple[int, int], ...]
    """Rows and columns of each picture, in order."""


class Seen(NamedTuple):
    """What takes the place of tokens: (N,) into the flattened (B * T) tokens, and (N, D)."""

    index: Tensor
    features: Tensor


def no_patches(config: VisionConfig, like: Tensor) -> PatchTokens:
    """Of a batch without pictures, in like's type: every weight then gets a gradient of 0, which all ranks need."""
    index, cells = torch.zeros(0, dtype=torch.int64, device=like.device), torch.zeros(0, 2, dtype=torch.int64)
    return PatchTokens(index, like.new_zeros(0, 3 * config.patch**2), cells.to(like.device), ())


def patch_tokens(values: Tensor, cells: Tensor, dtype: torch.dtype) -> PatchTokens:
    """values uint8 (B, T, P) and cells (B, T, 2), -1 where no patch stands -> PatchTokens.

    A picture's patches stand row by row, so each begins at cell (0, 0).
    """
    standing = cells[..., 0] >= 0
    found, own = values[standing], cells[standing]
    starts = (own == 0).all(1).nonzero().squeeze(1).tolist()
    ends = [*starts[1:], len(own)] if starts else []
    sizes = tuple((int(own[end - 1, 0]) + 1, int(own[end - 1, 1]) + 1) for end in ends)
    if any(rows * columns != end - start for (rows, columns), start, end in zip(sizes, starts, ends, strict=True)):
        raise ValueError("the patches of a picture do not stand together: a copy of a picture is never cut")
    return PatchTokens(standing.flatten().nonzero().squeeze(1), found.to(dtype) / 127.5 - 1, own, sizes)


class VisionBlock(nn.Module):
    """Pre-norm attention within each picture, then an MLP."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.attention_norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.q_proj = nn.Linear(config.width, config.width)
        self.k_proj = nn.Linear(config.width, config.width)
        self.v_proj = nn.Linear(config.width, config.width)
        self.o_proj = nn.Linear(config.width, config.width)
        self.mlp_norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.up_proj = nn.Linear(config.width, config.hidden_dim)
        self.down_proj = nn.Linear(config.hidden_dim, config.width)

    def forward(self, x: Tensor, alike: list[Tensor]) -> Tensor:
        """x (N, E), and for each number of patches that a picture has, the (pictures, patches) of such -> (N, E)."""
        x = x + self.o_proj(self._look(self.attention_norm(x), alike))
        return x + self.down_proj(F.gelu(self.up_proj(self.mlp_norm(x)), approximate="tanh"))

    def _look(self, x: Tensor, alike: list[Tensor]) -> Tensor:
        heads = [project(x).unflatten(-1, (self.num_heads, -1)) for project in (self.q_proj, self.k_proj, self.v_proj)]
        if not alike:  # without a picture there is nothing, but with gradients
            return (heads[0] + heads[1] + heads[2]).flatten(1)
        seen = torch.zeros_like(heads[0])
        for pictures in alike:
            queries, keys, values = (each[pictures].transpose(1, 2) for each in heads)
            mixed = F.scaled_dot_product_attention(queries, keys, values).transpose(1, 2)
            seen = seen.index_copy(0, pictures.flatten(), mixed.flatten(0, 1).to(seen.dtype))
        return seen.flatten(1)


class VisionTower(nn.Module):
    """Patches of pictures -> tokens for the trunk."""

    places: Tensor

    def __init__(self, config: VisionConfig, dim: int) -> None:
        super().__init__()
        self.config = config
        self.patch_embedding = nn.Linear(3 * config.patch**2, config.width)
        self.position_embedding = nn.Parameter(torch.empty(config.side**2, config.width))
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.connector_in = nn.Linear(config.width, dim)
        self.connector_out = nn.Linear(dim, dim)
        self.register_buffer("places", sincos_places(config.longest, dim, config.place_period), persistent=False)

    def reset_biases(self) -> None:
        """To zero, as everywhere else in the trunk."""
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.zeros_(layer.bias)

    def forward(self, given: PatchTokens) -> Seen:
        """-> Seen. Raises ValueError for a picture that is longer than the table of places."""
        if max(map(max, given.sizes), default=0) > self.config.longest:
            raise ValueError(
                f"a picture of more than {self.config.longest} patches along a side does not fit this model"
            )
        x = self.connector_out(F.gelu(self.connector_in(self.features(given)), approximate="tanh"))
        place = given.cells[:, 0] * self.config.longest + given.cells[:, 1]
        return Seen(given.index, x + self.places[place].to(x.dtype))

    def features(self, given: PatchTokens) -> Tensor:
        """What the ViT gives before the connector, (N, E): SigLIP's `last_hidden_state`."""
        x = self.patch_embedding(given.patches) + self._positions(given.sizes)
        alike = _alike(given.sizes, given.patches.device)
        for block in self.blocks:
            x = block(x, alike)
        return self.norm(x)

    def _positions(self, sizes: tuple[tuple[int, int], ...]) -> Tensor:
        """(N, E), the table resized to each picture."""
        table = self.position_embedding.unflatten(0, (self.config.side, self.config.side))
        resized = {size: _resized(table, size) for size in dict.fromkeys(sizes)}
        return torch.cat([self.position_embedding[:0], *(resized[size] for size in sizes)])


def _resized(table: Tensor, size: tuple[int, int]) -> Tensor:
    """(S, S, E) -> (R * K, E), bilinear with antialiasing."""
    if table.shape[:2] == size:
        return table.flatten(0, 1)
    precise = table.to(torch.promote_types(table.dtype, torch.float32)).permute(2, 0, 1)[None]
    smooth = F.interpolate(precise, size, mode="bilinear", align_corners=False, antialias=True)
    return smooth[0].permute(1, 2, 0).flatten(0, 1).to(table.dtype)


def _alike(sizes: tuple[tuple[int, int], ...], device: torch.device) -> list[Tensor]:
    """For each number of patches, (pictures, patches): where those of such pictures lie."""
    starts: dict[int, list[int]] = {}
    start = 0
    for rows, columns in sizes:
        starts.setdefault(rows * columns, []).append(start)
        start += rows * columns
    return [
        torch.tensor(begin, device=device)[:, None] + torch.arange(length, device=device)
        for length, begin in starts.items()
    ]
