"""Quantizers: one contract for VQ, FSQ, LFQ and residual VQ, and a VQ codebook that lives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.oracles.pictures import QUANTIZERS
from tokenizers_vq import quantizers
from tokenizers_vq.quantizers import VQ, LFQConfig, QuantizerConfig, ResidualVQConfig, VQConfig, build_quantizer

KINDS = sorted(QUANTIZERS)


def vectors(kind: str, images: int = 6, codes: int = 9) -> Tensor:
    return torch.randn(images, codes, QUANTIZERS[kind].dim)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [True, False])
def test_shapes_types_and_ranges_are_the_same_for_every_quantizer(kind: str, training: bool) -> None:
    quantizer = build_quantizer(QUANTIZERS[kind]).train(training)
    x = vectors(kind)
    codes, indices, losses = quantizer(x)
    assert codes.shape == x.shape and codes.dtype == torch.float32
    assert indices.shape == (6, 9 * QUANTIZERS[kind].codes_of_a_place) and indices.dtype == torch.int64
    assert int(indices.min()) >= 0 and int(indices.max()) < quantizer.codebook_size
    assert all(loss.ndim == 0 and torch.isfinite(loss) for loss in losses.values())
    assert quantizer.dim == x.shape[-1]


@pytest.mark.parametrize("kind", KINDS)
def test_lookup_gives_the_codes_that_the_decoder_saw(kind: str) -> None:
    quantizer = build_quantizer(QUANTIZERS[kind])
    quantizer(vectors(kind))
    codes, indices, _ = quantizer.eval()(vectors(kind))
    torch.testing.assert_close(quantizer.lookup(indices), codes, rtol=0, atol=1e-6)
    assert len(indices.unique()) > 1


@pytest.mark.parametrize("kind", KINDS)
def test_every_code_that_exists_can_be_looked_up_and_all_differ(kind: str) -> None:
    quantizer = build_quantizer(QUANTIZERS[kind])
    quantizer(vectors(kind, images=64))
    codes = quantizer.eval().vectors()
    assert len(codes.unique(dim=0)) == quantizer.codebook_size == QUANTIZERS[kind].codebook_size


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_of_the_codes_reaches_the_input(kind: str) -> None:
    quantizer = build_quantizer(QUANTIZERS[kind])
    quantizer(vectors(kind))
    x = vectors(kind).requires_grad_()
    quantizer(x).codes.sum().backward()
    assert x.grad is not None and (x.grad != 0).float().mean() > 0.9


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_changes_nothing(kind: str) -> None:
    quantizer = build_quantizer(QUANTIZERS[kind])
    quantizer(vectors(kind))
    before = {name: tensor.clone() for name, tensor in quantizer.eval().state_dict().items()}
    quantizer(vectors(kind) + 3)
    assert all(torch.equal(before[name], tensor) for name, tensor in quantizer.state_dict().items())


def test_residual_levels_add_up_and_each_has_its_own_ids() -> None:
    torch.manual_seed(0)
    config = ResidualVQConfig(levels=3, level_size=8, dim=4)
    quantizer = build_quantizer(config)
    for _ in range(20):
        quantizer(torch.randn(4, 30, 4))
    x = torch.randn(2, 9, 4)
    codes, indices, _ = quantizer.eval()(x)
    places = indices.view(2, 9, 3)
    assert all(torch.equal(places[..., level] // 8, torch.full((2, 9), level)) for level in range(3))
    vectors = quantizer.vectors()
    torch.testing.assert_close(vectors[places].sum(2), codes, rtol=0, atol=1e-6)
    first = torch.cdist(x, vectors[:8][None]).argmin(-1)
    assert torch.equal(places[..., 0], first)  # the nearest, then the nearest of what is left
    second = torch.cdist(x - vectors[first], vectors[8:16][None]).argmin(-1)
    assert torch.equal(places[..., 1] - 8, second)
    errors = [(x - vectors[places[..., :level]].sum(2)).square().mean() for level in (1, 2, 3)]
    assert errors[0] > errors[1] > errors[2]
    moved = (indices + 8) % 24
    torch.testing.assert_close(quantizer.lookup(moved), codes)  # a code of another level counts by its number


@pytest.mark.parametrize("wrong", [{"levels": 1}, {"level_size": 1}])
def test_residual_quantisation_has_levels(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="two levels at least"):
        ResidualVQConfig(**wrong)


def codebook(quantizer: VQ) -> Tensor:
    return quantizer.lookup(torch.arange(quantizer.codebook_size)[None])[0].detach().clone()


def test_a_vq_codebook_starts_from_the_data() -> None:
    quantizer = VQ(VQConfig(codebook_size=4, dim=3))
    centres = torch.tensor([[9.0, 0, 0], [0, 9, 0], [0, 0, 9], [-9, -9, -9]])
    quantizer(centres.repeat(25, 1)[None] + 0.01 * torch.randn(1, 100, 3))
    distances = torch.cdist(centres, codebook(quantizer)).amin(1)
    assert distances.max() < 9, "every code lies nearer to the data than a random one could"
    assert codebook(quantizer).norm(dim=1).min() > 5


def test_a_vq_code_moves_towards_the_vectors_it_stands_for_by_the_ema_rate() -> None:
    quantizer = VQ(VQConfig(codebook_size=2, dim=1, decay=0.9, revive_below=0.0))
    start = torch.tensor([[[-1.0], [1.0]]])
    quantizer(start.repeat(1, 50, 1))
    assert codebook(quantizer).flatten().sort().values.tolist() == pytest.approx([-1, 1], abs=1e-3)
    quantizer(2 * start.repeat(1, 50, 1))
    assert codebook(quantizer).flatten().sort().values.tolist() == pytest.approx([-1.1, 1.1], abs=0.02)


def share_in_use(revive_below: float) -> float:
    """After starting from a narrow cloud, the share of codes in use on a wide one."""
    torch.manual_seed(0)
    quantizer = VQ(VQConfig(codebook_size=32, dim=2, decay=0.8, revive_below=revive_below))
    quantizer(0.01 * torch.randn(1, 512, 2))
    for _ in range(60):
        quantizer(4 * torch.randn(1, 512, 2) + 10)
    indices = quantizer.eval()(4 * torch.randn(1, 512, 2) + 10).indices
    return len(indices.unique()) / 32


def test_dead_vq_codes_are_revived_from_the_batch() -> None:
    assert share_in_use(revive_below=1.0) > 0.8
    assert share_in_use(revive_below=0.0) < 0.5


def test_a_cosine_codebook_keeps_the_contract() -> None:
    quantizer = build_quantizer(VQConfig(codebook_size=8, dim=4, cosine=True))
    quantizer(torch.randn(2, 30, 4))
    codes, indices, _ = quantizer.eval()(torch.randn(2, 30, 4))
    torch.testing.assert_close(quantizer.lookup(indices), codes, rtol=0, atol=1e-5)


def test_an_unknown_quantizer_is_named() -> None:
    class OtherConfig(QuantizerConfig):
        pass

    with pytest.raises(ValueError, match="unknown quantizer OtherConfig"):
        build_quantizer(OtherConfig())


def total_loss(config: QuantizerConfig) -> float:
    """The losses of a quantizer in training on the same vectors from the same start."""
    torch.manual_seed(0)
    quantizer = build_quantizer(config)
    x = torch.randn(6, 9, config.dim)
    return sum(float(loss.detach()) for loss in quantizer(x).losses.values())


@pytest.mark.parametrize("weight", [0.25, 3.0])
def test_the_commitment_loss_of_a_vq_is_in_proportion_to_its_weight(weight: float) -> None:
    one, other = (total_loss(VQConfig(codebook_size=8, dim=4, commitment=c)) for c in (1.0, weight))
    assert one > 0 and other == pytest.approx(weight * one)


@pytest.mark.parametrize("changed", [{"commitment": 1.0}, {"entropy_weight": 0.5}, {"diversity_gamma": 3.0}])
def test_every_weight_of_a_look_up_free_quantizer_changes_its_loss(changed: dict[str, float]) -> None:
    assert total_loss(LFQConfig(bits=4)) != pytest.approx(total_loss(LFQConfig(bits=4, **changed)), rel=1e-3)


@pytest.mark.parametrize("at_once", [700, 2**24])
def test_encoding_finds_the_codes_of_the_layer_without_its_table(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantizers, "DISTANCES_AT_ONCE", at_once)
    quantizer = build_quantizer(VQConfig(codebook_size=64, dim=8))
    x = torch.randn(7, 50, 8)
    quantizer.train()(x)  # the first batch makes the codebook
    quantizer.eval()
    x = torch.cat([x, quantizer.lookup(torch.arange(50)[None])])
    assert torch.equal(quantizer.encode(x), quantizer(x).indices)
    assert quantizer.encode(x)[-1].tolist() == list(range(50))


def test_encoding_with_a_cosine_is_the_layers() -> None:
    quantizer = build_quantizer(VQConfig(codebook_size=64, dim=8, cosine=True))
    x = torch.randn(7, 50, 8)
    quantizer.train()(x)
    assert torch.equal(quantizer.eval().encode(x), quantizer(x).indices)
