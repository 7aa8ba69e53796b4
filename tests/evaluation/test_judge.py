"""The judge: trained a few steps on a few pictures only, as its full training is measured and not tested."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from data_pipelines.sources.easy_vqa import COLOURS, SHAPES
from unimodal.evaluation import judge as judge_module
from unimodal.evaluation.degrade import degrade, quantise_blocks
from unimodal.evaluation.judge import (
    Judge,
    JudgeNetwork,
    JudgeShape,
    cached_judge,
    settled_pictures,
    to_unit,
    train_judge,
)


@pytest.fixture
def few_pictures(monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """Plain pictures, one colour for each class, instead of the data set."""
    labels = torch.tensor([(index % 8, index % 3) for index in range(24)])
    paint = torch.randint(0, 256, (8, 3, 1, 1), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    images = paint[labels[:, 0]].expand(24, 3, 64, 64).clone()
    monkeypatch.setattr(judge_module, "settled_pictures", lambda split: (images, labels, "fingerprint"))
    return images


def parameters(judge: Judge) -> torch.Tensor:
    return torch.cat([value.detach().flatten() for value in judge.network.parameters()])


@pytest.mark.slow
def test_training_learns_colours_in_a_few_steps(few_pictures: torch.Tensor) -> None:
    done: list[int] = []
    judge = train_judge(0, done.append, steps=30)
    verdicts = judge.predict(to_unit(few_pictures))
    right = sum(verdict[0] == COLOURS[index % 8] for index, verdict in enumerate(verdicts))
    assert sum(done) == 30
    assert right >= 18


def test_the_same_seed_gives_the_same_judge_and_leaves_random_state_alone(few_pictures: torch.Tensor) -> None:
    state = torch.get_rng_state()
    first = train_judge(3, steps=2)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    assert torch.equal(parameters(first), parameters(train_judge(3, steps=2)))
    assert not torch.equal(parameters(first), parameters(train_judge(4, steps=2)))


def test_every_parameter_gets_a_gradient() -> None:
    network = JudgeNetwork()
    colours, shapes = network(torch.rand(4, 3, 64, 64))
    assert colours.shape == (4, len(COLOURS)) and shapes.shape == (4, len(SHAPES))
    (colours.square().sum() + shapes.square().sum()).backward()
    assert all(value.grad is not None and value.grad.abs().sum() > 0 for value in network.parameters())


def test_saved_and_loaded_judges_say_the_same(few_pictures: torch.Tensor, tmp_path: Path) -> None:
    judge = train_judge(1, steps=3)
    judge.save(tmp_path)
    loaded = Judge.load(tmp_path)
    noise = torch.rand(16, 3, 64, 64) * 2 - 1
    assert loaded.predict(noise) == judge.predict(noise)
    assert (loaded.seed, loaded.data_sha256) == (1, "fingerprint")


def test_a_cached_judge_is_trained_once_for_each_seed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    trained: list[int] = []

    class Source:
        def fingerprint(self) -> str:
            return "real"

    def train(seed: int, progress: object, *, shape: JudgeShape) -> Judge:
        trained.append(seed)
        return Judge(network=JudgeNetwork(shape), seed=seed, data_sha256="real", shape=shape)

    monkeypatch.setattr(judge_module, "train_judge", train)
    monkeypatch.setattr(judge_module, "open_source", lambda *args, **options: Source())
    for seed in (0, 0, 1, 1):
        assert cached_judge(tmp_path, seed).seed == seed
    (tmp_path / judge_module.JUDGE_FILE).write_bytes(b"broken")
    cached_judge(tmp_path, 1)
    assert trained == [0, 1, 1]


def test_pictures_of_another_size_are_refused() -> None:
    judge = Judge(network=JudgeNetwork(), seed=0, data_sha256="")
    with pytest.raises(ValueError, match="64, 64"):
        judge.predict(torch.zeros(1, 3, 32, 32))


def test_official_test_pictures_are_read_with_settled_labels() -> None:
    images, labels, fingerprint = settled_pictures("test")
    assert images.shape[1:] == (3, 64, 64) and images.dtype == torch.uint8
    assert len(images) == len(labels) > 700
    assert set(labels[:, 0].tolist()) == set(range(8)) and set(labels[:, 1].tolist()) == set(range(3))
    assert len(fingerprint) == 64


def test_degrading_changes_most_pictures_and_keeps_shape_and_input() -> None:
    images = torch.rand(32, 3, 64, 64) * 2 - 1
    kept = images.clone()
    changed = degrade(images, torch.Generator().manual_seed(0))
    differs = (changed - images).abs().amax(dim=(1, 2, 3)) > 1e-6
    assert changed.shape == images.shape and torch.equal(images, kept)
    assert 16 < differs.sum() <= 32


def test_fine_quantisation_of_blocks_gives_the_picture_back() -> None:
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    torch.testing.assert_close(quantise_blocks(images, torch.full((2, 1, 1, 1), 1e-5)), images, atol=1e-3, rtol=0)
    coarse = quantise_blocks(images, torch.full((2, 1, 1, 1), 1.0))
    assert (coarse - images).abs().mean() > 0.05


def test_a_judge_of_another_shape_is_kept_apart_and_says_how_sure_it_is(tmp_path: Path) -> None:
    shape = JudgeShape(width=4, layers=6)
    judge = train_judge(1, steps=2, shape=shape)
    judge.save(tmp_path)
    assert Judge.load(tmp_path).shape == shape
    assert sum(isinstance(each, torch.nn.Conv2d) for each in judge.network.modules()) == 6
    colours, shapes = judge.probabilities([Image.new("RGB", (48, 48), "red"), Image.new("RGB", (64, 64), "blue")])
    assert colours.shape == (2, 8) and shapes.shape == (2, 3)
    torch.testing.assert_close(colours.sum(1), torch.ones(2))
    with pytest.raises(ValueError, match="at least five convolutions"):
        JudgeShape(layers=4)
