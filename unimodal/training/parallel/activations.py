"""Activation checkpointing: what blocks computed is computed again in the backward pass instead of kept."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from unimodal.model.model import UnifiedModel
from unimodal.training.parallel.sharding import Checkpointing

KEPT_NAMES = (
    "aten.mm.default",
    "aten.addmm.default",
    "aten._scaled_dot_product_flash_attention.default",
    "aten._scaled_dot_product_flash_attention_for_cpu.default",
    "aten._scaled_dot_product_efficient_attention.default",
)
"""Costly to compute again; `selective` keeps their results (selective recomputation of arXiv 2205.05198, section 5)."""


def checkpoint_activations(model: UnifiedModel, kind: Checkpointing) -> None:
    """Wrap the `forward` of every block of the trunk; names of parameters stay."""
    if kind == "none":
        return
    settings: dict[str, Any] = {"use_reentrant": False}
    if kind == "selective":
        settings["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    for block in model.blocks:
        block.forward = partial(_checkpointed, block.forward, block, settings)


def _checkpointed(forward: Callable[..., Any], block: nn.Module, settings: dict[str, Any], *given: Any) -> Any:
    """Only in training: decoding and validation keep nothing anyway."""
    return checkpoint(forward, *given, **settings) if block.training and torch.is_grad_enabled() else forward(*given)


def _policy(context: Any, operation: Any, *given: Any, **named: Any) -> CheckpointPolicy:
    del context, given, named
    return CheckpointPolicy.MUST_SAVE if str(operation) in KEPT_NAMES else CheckpointPolicy.PREFER_RECOMPUTE
