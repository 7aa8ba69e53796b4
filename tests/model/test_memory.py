"""What a training step keeps for its backward pass has a budget, counted in tensors and not in seconds."""

from __future__ import annotations

from typing import Any

import torch

from tests.oracles.tiny import tiny_model

DIM, HIDDEN, LENGTH = 64, 160, 48


def kept_bytes(num_layers: int, rows: int, **changes: Any) -> int:
    """Of all tensors that autograd keeps, weights left aside."""
    shape = {"dim": DIM, "hidden_dim": HIDDEN, "num_heads": 2, "num_kv_heads": 1, "max_length": LENGTH}
    model = tiny_model(dtype=torch.float32, num_layers=num_layers, **shape, **changes).train()
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(torch.randint(24, (rows, LENGTH))).sum()
        total = sum(kept.values())
    loss.backward()
    return total


def test_a_layer_keeps_no_more_than_its_budget_for_each_token() -> None:
    few, many = (kept_bytes(num_layers, rows=4) for num_layers in (2, 5))
    numbers = (many - few) / 3 / (4 * LENGTH) / 4
    assert numbers <= 13 * DIM + 4 * HIDDEN


def test_what_is_kept_grows_in_proportion_to_the_rows_of_a_batch() -> None:
    one, two, four = (kept_bytes(3, rows) for rows in (1, 2, 4))
    assert four - two == 2 * (two - one)
