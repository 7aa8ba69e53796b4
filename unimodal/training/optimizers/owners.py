"""Work on whole matrices divided among ranks: each matrix goes to one owner, and what it makes of it goes back.

Under FSDP2 a rank holds some rows of every matrix: they are gathered once, to the owner alone, and the update's rows go
back the same way (the distributed Muon of Moonlight, arXiv 2502.16982, section 2.4, with one owner instead of a gather
on every rank). Under DDP every rank holds all gradients, and the updates alone travel.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from unimodal.model.sharded import local_parts, shard_group

# Shapes: N matrices of an owner, A rows, B columns, R ranks. A parameter may be a stack (E, A, B) of matrices, of which
# each is worked on by itself; ranks then share the E.

STACK_NUMBERS = 2**27
"""Numbers that are worked on together: half a GiB in float32, and as much for each product in between."""

OnMatrices = Callable[[Tensor], Tensor]
"""(N, A, B) -> (N, A, B)."""

Share = list[list[int]]
"""For each rank the numbers of the matrices that it owns."""


def owned_updates(
    parameters: Sequence[Tensor], matrices: Callable[[list[int]], list[Tensor]], function: OnMatrices
) -> Iterator[tuple[list[int], list[Tensor]]]:
    """Numbers of parameters of one shape, and the parts that lie here of `function` of the whole of their matrices.

    parameters: (A, B) tensors, sharded or not. matrices: the parts of some of them that lie here, asked for once each.
    Shapes and order are those on all ranks, and so is the number of collectives.
    """
    sharded = shard_group(parameters)
    many = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    group = sharded or (dist.group.WORLD if many else None)
    for share in rounds([parameter.shape for parameter in parameters], dist.get_world_size(group) if group else 1):
        numbers = [number for of_rank in share for number in of_rank]
        parts, shape = matrices(numbers), parameters[numbers[0]].shape
        if group is None:
            yield numbers, list(function(torch.stack(parts)))
        elif sharded is None:
            yield numbers, _replicated(share, parts, function, shape, group)
        else:
            yield numbers, _sharded(share, parts, function, shape, group)


def rounds(shapes: Sequence[torch.Size], ranks: int) -> Iterator[Share]:
    """Shares of matrices of one shape, STACK_NUMBERS or one matrix a rank at a time; every matrix once.

    The most costly matrices are given out first, each to the rank that has the least work so far.
    """
    work, owner = [0.0] * ranks, dict[int, int]()
    for number in sorted(range(len(shapes)), key=lambda n: (-_cost(shapes[n]), n)):
        owner[number] = min(range(ranks), key=lambda rank: (work[rank], rank))
        work[owner[number]] += _cost(shapes[number])
    by_shape: dict[torch.Size, Share] = defaultdict(lambda: [[] for _ in range(ranks)])
    for number, shape in enumerate(shapes):
        by_shape[shape][owner[number]].append(number)
    for shape, share in by_shape.items():
        at_once = max(STACK_NUMBERS // shape.numel(), 1)
        for start in range(0, max(map(len, share)), at_once):
            yield [numbers[start : start + at_once] for numbers in share]


def _cost(shape: torch.Size) -> float:
    """Of Newton-Schulz, up to a factor."""
    return shape[:-2].numel() * min(shape[-2:]) ** 2 * max(shape[-2:])


def _replicated(
    share: Share, matrices: list[Tensor], function: OnMatrices, shape: torch.Size, group: dist.ProcessGroup
) -> list[Tensor]:
    """Every rank has the whole matrices: the updates of each owner go to all."""
    counts, rank = [len(numbers) for numbers in share], dist.get_rank(group)
    first, length = sum(counts[:rank]), max(counts)
    mine = matrices[first : first + counts[rank]]
    made = function(torch.stack(mine or [torch.zeros_like(matrices[0])]))[: counts[rank]]
    padded = torch.cat([made, made.new_zeros(length - len(made), *shape)])
    gathered = padded.new_empty(len(share) * length, *shape)
    dist.all_gather_into_tensor(gathered, padded, group=group)
    return [gathered[r * length + place] for r, count in enumerate(counts) for place in range(count)]


def _sharded(
    share: Share, matrices: list[Tensor], function: OnMatrices, shape: torch.Size, group: dist.ProcessGroup
) -> list[Tensor]:
    """Every rank has some rows of all matrices: rows go to the owner, and rows of its update come back."""
    counts, ranks, rank, columns = (
        [len(numbers) for numbers in share],
        len(share),
        dist.get_rank(group),
        shape[1:].numel(),
    )
    a_rank = -(-shape[0] // ranks)
    rows = [max(min(a_rank, shape[0] - r * a_rank), 0) for r in range(ranks)]
    given = [count * rows[rank] * columns for count in counts]
    taken = [counts[rank] * count * columns for count in rows]
    received = matrices[0].new_empty(sum(taken))
    dist.all_to_all_single(received, torch.cat([part.flatten() for part in matrices]), taken, given, group=group)
    pieces = zip(received.split(taken), rows, strict=True)
    stack = torch.cat([piece.view(counts[rank], count, columns) for piece, count in pieces], dim=1)
    stack = stack.view(-1, *shape)
    made = function(stack if counts[rank] else stack.new_zeros(1, *shape))[: counts[rank]]
    back = made.new_empty(sum(given))
    sent = torch.cat([part.flatten() for part in made.split(rows, dim=1)])
    dist.all_to_all_single(back, sent, given, taken, group=group)
    if not rows[rank]:
        return [part.new_empty(0, *shape[1:]) for part in matrices]
    return [part.view(-1, *shape[1:]) for part in back.split(rows[rank] * columns)]


def parts_with_gradients(parameters: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Parameters that have a gradient; the parts of both that lie here."""
    found = [parameter for parameter in parameters if parameter.grad is not None]
    return found, local_parts(found), local_parts([parameter.grad for parameter in found if parameter.grad is not None])
