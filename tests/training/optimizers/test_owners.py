"""Work on matrices that ranks share: every matrix once, equal shares of work, and results as if one rank had all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.oracles.ranks import on_ranks
from unimodal.training.optimizers import owners
from unimodal.training.optimizers.owners import rounds

SHAPES = [torch.Size(shape) for shape in ((64, 16), (8, 8), (64, 16), (16, 64), (8, 8), (64, 16), (64, 64), (8, 8))]


@pytest.mark.parametrize("ranks", [1, 2, 3, 16])
def test_every_matrix_has_one_owner_and_a_round_one_shape(ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owners, "STACK_NUMBERS", 2 * 64 * 16)
    shares = list(rounds(SHAPES, ranks))
    assert sorted(number for share in shares for numbers in share for number in numbers) == list(range(len(SHAPES)))
    for share in shares:
        assert len(share) == ranks and len({SHAPES[number] for numbers in share for number in numbers}) == 1
        assert max(map(len, share)) <= max(2 * 64 * 16 // SHAPES[next(n for s in share for n in s)].numel(), 1)


def test_the_most_costly_matrices_do_not_share_an_owner() -> None:
    shapes = [torch.Size((64, 64))] * 2 + [torch.Size((8, 8))] * 6
    [large, small] = rounds(shapes, 2)
    assert [len(numbers) for numbers in large] == [1, 1] and [len(numbers) for numbers in small] == [3, 3]


RANKS = """
import torch, torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from unimodal.model.sharded import local_parts, whole
from unimodal.training.optimizers.owners import owned_updates
dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("shard",))
torch.manual_seed(0)
plain = [torch.randn(shape, dtype=torch.float64) for shape in ((1, 4), (2, 6), (5, 3), (7, 7), (2, 6), (5, 3), (1, 4))]
function = lambda stack: stack @ stack.mT @ stack  # of the whole matrix, as Newton-Schulz is
expected = [function(matrix[None])[0] for matrix in plain]
for sharded in (True, False):
    given = [distribute_tensor(matrix, mesh, [Shard(0)]) if sharded else matrix for matrix in plain]
    parts, found = local_parts(given), {}
    for numbers, updates in owned_updates(given, lambda numbers: [parts[n] for n in numbers], function):
        found |= dict(zip(numbers, updates))
    assert sorted(found) == list(range(len(plain)))
    for number, matrix in enumerate(expected):
        wanted = distribute_tensor(matrix, mesh, [Shard(0)]).to_local() if sharded else matrix
        torch.testing.assert_close(found[number], wanted, rtol=1e-12, atol=1e-12)
print("equal", flush=True)
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_three_ranks_give_what_one_gives_also_where_a_rank_has_no_row(tmp_path: Path) -> None:
    done = on_ranks(RANKS, tmp_path, 3)
    assert done.returncode == 0 and done.stdout.count("equal") == 3, done.stderr[-3000:]
