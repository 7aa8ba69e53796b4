"""SigLIP's vision model in a folder of transformers -> our ViT, against theirs on the same weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipConfig,
    SiglipModel,
    SiglipTextConfig,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from data_pipelines.images import cut_patches
from unimodal.interop.architectures.siglip import load_siglip, siglip_config
from unimodal.model.branches.vision.siglip import SiglipEncoder

THEIRS: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 12,
    "patch_size": 4,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = SiglipVisionModel(SiglipVisionConfig(**THEIRS)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.4 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path)
    return tmp_path


def opened(folder: Path) -> SiglipEncoder:
    encoder = SiglipEncoder(siglip_config(folder, max_patches=9, max_side=4))
    load_siglip(encoder, folder)
    return encoder.eval()


def pixel_values(picture: np.ndarray) -> Tensor:
    """Patches of 4 pixels in [-1, 1], (N, P)."""
    return torch.from_numpy(cut_patches(picture, 4)).flatten(0, 1).double() / 127.5 - 1


def test_features_are_those_of_transformers(folder: Path) -> None:
    encoder = opened(folder).double()
    theirs = SiglipVisionModel.from_pretrained(folder).double().eval()
    picture = torch.randint(0, 256, (12, 12, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    found = encoder(pixel_values(picture.numpy()), ((3, 3),))
    given = picture.permute(2, 0, 1)[None].double() / 127.5 - 1
    expected = theirs(pixel_values=given).last_hidden_state[0]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_a_whole_siglip_gives_its_vision_half(tmp_path: Path, folder: Path) -> None:
    text = SiglipTextConfig(
        vocab_size=8, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2
    )
    both = SiglipConfig(text_config=text.to_dict(), vision_config=SiglipVisionConfig(**THEIRS).to_dict())
    whole, vision = SiglipModel(both), SiglipVisionModel.from_pretrained(folder)
    inner = getattr(vision, "vision_model", vision)
    whole.vision_model.load_state_dict(inner.state_dict())
    whole.save_pretrained(tmp_path / "whole")
    ours, theirs = opened(tmp_path / "whole").state_dict(), opened(folder).state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_what_is_no_siglip_is_refused_with_the_reason(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ValueError, match="does not hold a SigLIP model"):
        siglip_config(tmp_path / "nowhere", max_patches=9, max_side=4)
    values = json.loads((folder / "config.json").read_text())
    for changed, reason in (
        ({"model_type": "clip_vision_model"}, "does not hold a SigLIP model"),
        ({"hidden_act": "relu"}, "its activation is relu"),
    ):
        (folder / "config.json").write_text(json.dumps({**values, **changed}))
        with pytest.raises(ValueError, match=reason):
            siglip_config(folder, max_patches=9, max_side=4)
    (folder / "config.json").write_text(json.dumps({**values, "intermediate_size": 20}))
    with pytest.raises(ValueError, match="has shape"):
        opened(folder)
    (folder / "config.json").write_text(json.dumps(values))
    tensors = load_file(folder / "model.safetensors")
    missing = next(name for name in tensors if name.endswith("layers.1.mlp.fc1.bias"))
    save_file({name: x for name, x in tensors.items() if name != missing}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"lacks encoder.layers.1.mlp.fc1.bias"):
        opened(folder)


def test_a_config_that_leaves_out_defaults_has_those_of_transformers(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "siglip", "vision_config": {"image_size": 256}}')
    found = siglip_config(tmp_path, max_patches=256, max_side=32)
    theirs = SiglipVisionConfig(image_size=256)
    assert (found.dim, found.hidden_dim, found.num_layers) == (
        theirs.hidden_size,
        theirs.intermediate_size,
        theirs.num_hidden_layers,
    )
    assert (found.num_heads, found.patches.size, found.grid_size) == (theirs.num_attention_heads, theirs.patch_size, 16)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="is no object"):
        siglip_config(tmp_path, max_patches=256, max_side=32)


def test_features_are_those_of_siglip_2_for_pictures_of_any_shape(tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape = {name: value for name, value in THEIRS.items() if name != "image_size"}
    theirs = Siglip2VisionModel(Siglip2VisionConfig(**shape, num_patches=9)).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(0.4 * torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path)
    encoder = opened(tmp_path)
    picture = torch.randint(0, 256, (8, 16, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    found = encoder(pixel_values(picture.numpy()).float(), ((2, 4),))
    by_pixel = picture.reshape(2, 4, 4, 4, 3).permute(0, 2, 1, 3, 4).reshape(1, 8, -1).float() / 127.5 - 1
    seen = torch.ones(1, 8, dtype=torch.int64)
    expected = theirs(by_pixel, seen, torch.tensor([[2, 4]])).last_hidden_state[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
