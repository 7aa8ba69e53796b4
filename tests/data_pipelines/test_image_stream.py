"""Batches of pictures: the order is a pure function of seed, step and rank, and resuming is exact."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from torch import Tensor
from torchdata.stateful_dataloader import StatefulDataLoader

from data_pipelines.image_stream import ImageStream

IMAGES = torch.arange(20, dtype=torch.uint8)[:, None, None, None] * 10 + torch.arange(4, dtype=torch.uint8)
IMAGES = IMAGES.expand(20, 3, 4, 4).contiguous()


def take(stream: ImageStream, number: int) -> Tensor:
    return torch.stack(list(islice(iter(stream), number)))


@pytest.mark.parametrize(("flip", "place"), [(True, False), (False, False), (True, True)])
@pytest.mark.parametrize("stop", [1, 4])
def test_a_resumed_loader_gives_bit_equal_batches(flip: bool, place: bool, stop: int) -> None:
    def loader() -> StatefulDataLoader[Tensor]:
        return StatefulDataLoader(ImageStream(IMAGES, 3, flip, seed=5, place=place), batch_size=None)

    unbroken = iter(before := loader())
    list(islice(unbroken, stop))
    state = before.state_dict()
    expected = torch.stack(list(islice(unbroken, 4)))
    resumed = loader()
    resumed.load_state_dict(state)
    assert torch.equal(torch.stack(list(islice(iter(resumed), 4))), expected)


def test_seeds_steps_and_ranks_draw_different_pictures() -> None:
    streams = [
        ImageStream(IMAGES, 8, False, seed=0),
        ImageStream(IMAGES, 8, False, seed=1),
        ImageStream(IMAGES, 8, False, seed=0, rank=0, world_size=2),
        ImageStream(IMAGES, 8, False, seed=0, rank=1, world_size=2),
    ]
    one, other, first, second = (take(stream, 3) for stream in streams)
    assert not torch.equal(one, other) and not torch.equal(first, second)
    assert not torch.equal(one[0], one[1])
    assert torch.equal(one, take(ImageStream(IMAGES, 8, False, seed=0), 3))


def test_pictures_lie_between_minus_one_and_one_and_all_are_drawn() -> None:
    batches = take(ImageStream(IMAGES, 16, False, seed=0), 20)
    assert batches.shape == (20, 16, 3, 4, 4) and batches.dtype == torch.float32
    assert batches.min() >= -1 and batches.max() <= 1
    back = ((batches + 1) * 127.5).round().to(torch.uint8).flatten(0, 1)
    assert torch.equal(back.unique(dim=0), IMAGES)


def test_about_half_of_the_pictures_are_mirrored_when_asked() -> None:
    batches = take(ImageStream(IMAGES, 32, True, seed=0), 8).flatten(0, 1)
    rising = batches[:, 0, 0, 0] < batches[:, 0, 0, -1]
    assert 0.35 < rising.float().mean() < 0.65
    unflipped = take(ImageStream(IMAGES, 32, False, seed=0), 8).flatten(0, 1)
    assert (unflipped[:, 0, 0, 0] < unflipped[:, 0, 0, -1]).all()


def test_a_placed_picture_is_another_each_time_and_lies_on_its_own_ground() -> None:
    object_on_ground = torch.full((1, 3, 16, 16), 200, dtype=torch.uint8)
    object_on_ground[:, :, 6:10, 6:10] = 0
    plain = take(ImageStream(object_on_ground, 32, False, seed=0), 1)[0]
    placed = take(ImageStream(object_on_ground, 32, False, seed=0, place=True), 2)
    assert placed.shape == (2, 32, 3, 16, 16) and torch.equal(plain, plain[:1].expand_as(plain))
    assert len(placed.flatten(0, 1).unique(dim=0)) > 25
    assert (placed[..., 0, 0] == plain[0, 0, 0, 0]).all() and (placed[..., -1, -1] == plain[0, 0, 0, 0]).all()
    dark = (placed < 0).flatten(2).sum(2)
    assert dark.max() <= (plain[0] < 0).sum() and dark.min() > 0
