"""Latents that are not noised enter at time 0, whether that is said or left out."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.oracles.passes import flow_branch, media_at, on_table
from tests.oracles.tiny import tiny_model
from unimodal.model.config import FlowConfig


def test_latents_without_times_are_clean() -> None:
    model = tiny_model(flow=FlowConfig(latent_dim=3, grid_size=2, time_channels=8))
    standing, latents = torch.ones(1, 4, dtype=torch.bool), torch.randn(4, 3, dtype=torch.float64)

    def entering(times: Tensor | None) -> Tensor:
        return flow_branch(model)(media_at(standing, latents, on_table(torch.arange(4), 2), times)).embeddings

    unsaid, clean, noise = entering(None), entering(torch.zeros(4).double()), entering(torch.ones(4).double())
    assert torch.equal(unsaid, clean)
    assert ((noise - clean).abs().amax(-1) > 1e-3).all()
