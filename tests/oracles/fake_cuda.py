"""CUDA without a GPU: fake tensors, a count of what waits for the device, and a model on it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from unimodal.model.config import FlowConfig, ModelConfig, TransformerConfig
from unimodal.model.model import UnifiedModel

SYNCS = ("_local_scalar_dense", "nonzero", "is_nonzero", "item", "equal")
"""Operations that wait for a device, where their input is on one."""

TRUNK = TransformerConfig(dim=128, num_layers=2, num_heads=2, num_kv_heads=1, hidden_dim=256, max_length=512)


class Launches(TorchDispatchMode):
    """Counts what is done on CUDA, and what waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels, self.waits = Counter[str](), Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        inputs = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        name, on_cuda = func._opname, any(each.device.type == "cuda" for each in inputs)
        copied_back = name in ("_to_copy", "copy_") and on_cuda and isinstance(out, Tensor) and out.device.type == "cpu"
        if on_cuda and (name in SYNCS or copied_back):
            self.waits[name] += 1
        results = [each for each in tree_leaves(out) if isinstance(each, Tensor)]
        if any(each.device.type == "cuda" for each in results) and not func.is_view:
            self.kernels[name] += 1
        return out


def fake_like(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")


def cuda_model(flow: FlowConfig | None = None, **changes: Any) -> UnifiedModel:
    with torch.device("cuda"):
        made = UnifiedModel(ModelConfig(vocab_size=65_536, trunk=replace(TRUNK, **changes), flow=flow))
    for module in made.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            module.register_buffer(name, fake_like(buffer), persistent=False)  # tables are made on the CPU
    return made
