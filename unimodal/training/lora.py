"""Low-rank adapters (LoRA, arXiv 2106.09685) through peft: what a bundle is fine-tuned with where its weights stay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from unimodal.model.checkpoint import assembled
from unimodal.model.model import UnifiedModel

ADAPTER = "default"
"""peft's name of the one adapter that there is."""
LORA_SCALE = "lora_scale"
"""Of a checkpoint with adapters."""
BASE, OURS = ".base_layer.", ".lora_"
"""In names of parameters: the weights that an adapter adds to, and its own."""


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """W x + alpha / rank * B A x for every linear layer whose name matches a pattern of `targets`.

    B starts at 0, so that a run starts from the bundle's answers. A bundle is written with the products added to its
    weights: whatever opens bundles opens it. Needs the extra `lora`.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("trunk.blocks.*_proj",)

    def __post_init__(self) -> None:
        if self.rank < 1 or not self.targets:
            raise ValueError(f"start.lora: a rank of at least 1 and one pattern of targets, got {self}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"start.lora.dropout lies between 0 and 1, got {self.dropout}")

    @property
    def scale(self) -> float:
        """What the products are multiplied with."""
        return self.alpha / self.rank


def lora_targets(model: nn.Module, settings: LoraSettings) -> list[str]:
    """Names of the linear layers that match. Raises ValueError for a pattern that matches none."""
    linear = [name for name, part in model.named_modules() if isinstance(part, nn.Linear)]
    for pattern in settings.targets:
        if not any(fnmatchcase(name, pattern) for name in linear):
            raise ValueError(f"start.lora.targets: no linear layer is called {pattern!r}; there is {linear[0]}, ...")
    return [name for name in linear if any(fnmatchcase(name, pattern) for pattern in settings.targets)]


def add_adapters(model: UnifiedModel, settings: LoraSettings) -> None:
    """Put adapters beside the layers of `settings` in place; they take gradients, the layers themselves no more.

    Raises ValueError where peft is missing.
    """
    targets = lora_targets(model, settings)
    peft: Any = opened_peft()
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    config = peft.LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, lora_dropout=settings.dropout, target_modules=targets
    )
    peft.inject_adapter_in_model(config, model, adapter_name=ADAPTER)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(OURS in name or (BASE not in name and trained[name]))


def opened_peft() -> Any:
    """The package. Raises ValueError, with the command that installs it, where it is missing."""
    try:
        import peft
    except ImportError as error:
        raise ValueError("start.lora needs peft: pip install 'unimodal[lora]'") from error
    return peft


def has_adapters(model: nn.Module) -> bool:
    """Whether `add_adapters` has been called."""
    return any(OURS in name for name, _ in model.named_parameters())


def without_adapters(model: UnifiedModel) -> UnifiedModel:
    """A model of the same answers without adapters: their products are added to copies of the weights."""
    layer: Any = next(part for part in model.modules() if hasattr(part, "lora_A"))
    return assembled(model.config, with_products(model.state_dict(), layer.scaling[ADAPTER]))


@torch.no_grad()
def with_products(state: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """The weights of a model with adapters by the names that it has without them, W + scale * B A where there are
    any."""
    found = {name.replace(BASE, "."): tensor for name, tensor in state.items() if OURS not in name}
    for name in state:
        layer, first, _ = name.partition(f"{OURS}A.")
        if first:
            a, b = state[name], state[name.replace(f"{OURS}A.", f"{OURS}B.")]
            found[f"{layer}.weight"] = found[f"{layer}.weight"] + scale * b @ a
    return found
