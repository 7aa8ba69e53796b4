"""Random numbers of training: each rank's own, continued by a resumed run whatever was drawn in between."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def get_random_state(device: torch.device) -> Tensor:
    """The state of the generator that dropout on this device draws from."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def set_random_state(state: Tensor, device: torch.device) -> None:
    """The inverse of `get_random_state`."""
    if device.type == "cuda":
        torch.cuda.set_rng_state(state.cpu(), device)
    else:
        torch.set_rng_state(state.cpu())


def part_from_other_ranks(rank: int) -> None:
    """Ranks are seeded alike, for equal first weights; from here on each draws numbers of its own."""
    if rank:
        torch.manual_seed(torch.initial_seed() + rank)


def states_of_ranks(state: Tensor | None) -> list[Tensor]:
    """Every rank's state, by rank; none before the first step. All ranks call it."""
    if state is None:
        return []
    if not (dist.is_available() and dist.is_initialized()):
        return [state]
    found: list[Tensor | None] = [None] * dist.get_world_size()
    dist.all_gather_object(found, state.cpu())
    return [each for each in found if each is not None]
