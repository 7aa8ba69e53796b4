"""Checkpoints as the version with one flat module wrote them, made from today's."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

OLD_NAMES = (
    (r"^model\.trunk\.(embedding|blocks|norm)\.", r"transformer.\1."),
    (r"^model\.heads\.tokens\.", "transformer.head."),
    (r"^model\.heads\.velocity\.", "transformer.flow.velocity_out."),
    (r"^model\.branches\.latents\.", "transformer.flow."),
    (r"^model\.branches\.patches\.encoder\.", "transformer.vision."),
    (r"^model\.branches\.patches\.connector\.in_proj\.", "transformer.vision.connector_in."),
    (r"^model\.branches\.patches\.connector\.out_proj\.", "transformer.vision.connector_out."),
    (r"\.attention\.qkv\.", ".attention."),
)
"""Today's name of a parameter -> the old one."""
OLD_ORDER = ("embedding.", "blocks.", "norm.", "head.", "flow.latent", "flow.time", "flow.velocity", "vision.")
"""Of the parts of the old module."""
OLD_ATTENTION = ("q_proj.", "k_proj.", "v_proj.", "o_proj.", "q_norm.", "k_norm.")


def old_name(name: str) -> str:
    """Of a parameter in today's checkpoint."""
    for pattern, old in OLD_NAMES:
        name = re.sub(pattern, old, name)
    return name


def old_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights by their old names, in the order of the old module."""

    def order(name: str) -> tuple[int, int, str, int]:
        part = next(i for i, prefix in enumerate(OLD_ORDER) if name.startswith(f"transformer.{prefix}"))
        before, attention, after = name.partition(".attention.")
        within = next((i for i, each in enumerate(OLD_ATTENTION) if attention and after.startswith(each)), -1)
        return part, first[before], before, within

    renamed = {old_name(name): tensor for name, tensor in state.items()}
    first: dict[str, int] = {}
    for number, name in enumerate(renamed):
        first.setdefault(name.partition(".attention.")[0], number)
    return {name: renamed[name] for name in sorted(renamed, key=order)}


def old_groups(names: list[str], state: dict[str, Tensor]) -> tuple[list[str], list[str], list[str]]:
    """Matrices, tables and vectors by the old rule, which read names."""
    matrices, tables, vectors = [], [], []
    for name in (each.removeprefix("transformer.") for each in names):
        if "norm" in name or state[f"transformer.{name}"].ndim < 2:
            vectors.append(name)
        elif "embedding" in name or name.startswith(("head", "flow.", "vision.connector")):
            tables.append(name)
        else:
            matrices.append(name)
    return matrices, tables, vectors


def as_old(checkpoint: dict[str, Any], today: list[str], autoencoder: dict[str, Any] | None) -> dict[str, Any]:
    """A whole checkpoint; `today` are the parameters in the order in which today's optimizer numbers them."""
    state = old_state(checkpoint["state_dict"])
    matrices, tables, vectors = old_groups(list(state), state)
    old = {**checkpoint, "state_dict": state, "autoencoder": autoencoder}
    if "current_model_state" in old:
        old["current_model_state"] = old_state(old["current_model_state"])
    del old["media"]
    (optimizer,) = checkpoint["optimizer_states"]
    with_muon = any(group["muon"] for group in optimizer["param_groups"])
    sizes = [len(matrices), len(tables), len(vectors)] if with_muon else [len(matrices + tables), len(vectors)]
    numbers = {f"transformer.{name}": number for number, name in enumerate([*matrices, *tables, *vectors])}
    groups, begin = [], 0
    for group, size in zip(optimizer["param_groups"], sizes, strict=True):
        groups.append({**group, "params": list(range(begin, begin + size))})
        begin += size
    values = {numbers[old_name(f"model.{today[number]}")]: value for number, value in optimizer["state"].items()}
    return {**old, "optimizer_states": [{"state": values, "param_groups": groups}]}
