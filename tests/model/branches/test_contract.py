"""What every branch keeps: it fills its own weights, stands aside without media, and refuses what is too large."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from tests.oracles.tiny import tiny_flow_pipeline
from tokenizers_vq.media import LATENTS, PATCHES
from unimodal.model.branches.base import Branch, Expert, MediaTokens, grid_positions
from unimodal.model.branches.flow import FlowBranch
from unimodal.model.branches.vision.branch import VisionBranch
from unimodal.model.model import UnifiedModel

NAMES = {LATENTS: FlowBranch, PATCHES: VisionBranch}


@pytest.fixture
def model() -> UnifiedModel:
    return tiny_flow_pipeline(vit=True).model


def branch_of(model: UnifiedModel, name: str) -> Branch:
    branch = model.branches[name]
    assert isinstance(branch, Branch) and isinstance(branch, NAMES[name])
    return branch


def media_of(branch: Branch, rows: int, columns: int) -> MediaTokens:
    width = branch.empty(torch.zeros(1)).values.shape[1]
    count = rows * columns
    return MediaTokens(
        torch.arange(count), torch.randn(count, width), grid_positions(rows, columns), ((rows, columns),), None
    )


def test_every_branch_is_tested_here(model: UnifiedModel) -> None:
    ours = {kind for kind in Branch.__subclasses__() if kind.__module__.startswith("unimodal.")}
    assert ours == set(NAMES.values()) and set(model.branches) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_branch_fills_all_its_weights(name: str, model: UnifiedModel) -> None:
    branch = branch_of(model, name)
    with torch.no_grad():
        for tensor in (*branch.parameters(), *branch.buffers()):
            tensor.fill_(torch.nan)
    torch.manual_seed(0)
    branch.init_weights()
    tensors = {**dict(branch.named_parameters()), **dict(branch.named_buffers())}
    assert [key for key, tensor in tensors.items() if not torch.isfinite(tensor).all()] == []


@pytest.mark.parametrize("name", NAMES)
def test_a_token_of_media_becomes_one_embedding_at_its_index(name: str, model: UnifiedModel) -> None:
    branch = branch_of(model, name)
    assert branch.expert in get_args(Expert)
    inserted = branch(media_of(branch, 2, 2))
    assert inserted.embeddings.shape == (len(inserted.index), model.config.trunk.dim)
    assert len(inserted.index.unique()) == len(inserted.index) and inserted.index.max() < 4
    assert inserted.angles is None or inserted.angles.shape == (4, model.config.trunk.head_dim // 2)


@pytest.mark.parametrize("name", NAMES)
def test_without_media_every_weight_has_a_gradient_of_nothing(name: str, model: UnifiedModel) -> None:
    branch = branch_of(model, name)
    inserted = branch(branch.empty(torch.zeros(1)))
    assert inserted.embeddings.shape == (0, model.config.trunk.dim)
    inserted.embeddings.sum().backward()
    without = [key for key, parameter in branch.named_parameters() if parameter.grad is None]
    assert without == [] and all(
        not parameter.grad.any() for parameter in branch.parameters() if parameter.grad is not None
    )


@pytest.mark.parametrize("name", NAMES)
def test_an_image_that_is_too_large_is_one_line(name: str, model: UnifiedModel) -> None:
    branch = branch_of(model, name)
    with pytest.raises(ValueError, match="does not fit") as error:
        branch(media_of(branch, 1, 99))
    assert "\n" not in str(error.value)
