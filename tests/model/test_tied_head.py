"""A tied head: one weight in memory and on disk, which computes and learns as two equal ones would."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.oracles.passes import logits
from tests.oracles.tiny import tiny_config, tiny_model, tiny_space
from unimodal.model.checkpoint import EMBEDDING, HEAD, open_model, save_model
from unimodal.model.inference.matvec import matvec
from unimodal.model.inference.prepacked import prepacked
from unimodal.model.model import UnifiedModel

SPACE = tiny_space()


def tied_model(dtype: torch.dtype = torch.float64) -> UnifiedModel:
    return tiny_model(SPACE.vocab_size, dtype=dtype, tied_head=True)


def untied(model: UnifiedModel) -> UnifiedModel:
    """The same weights, the shared one twice."""
    made = UnifiedModel(tiny_config(SPACE.vocab_size)).to(model.dtype)
    made.load_state_dict({name: tensor.clone() for name, tensor in model.state_dict().items()})
    return made


def random_tokens() -> torch.Tensor:
    return torch.randint(SPACE.vocab_size, (2, 9))


@torch.no_grad()
def test_logits_are_those_of_a_head_of_its_own_with_the_same_weight() -> None:
    model, tokens = tied_model(), random_tokens()
    other = untied(model)
    assert other.token_head.weight is not other.trunk.embedding.weight
    assert torch.equal(logits(model, tokens), logits(other, tokens))
    model.trunk.embedding.weight[3] += 1
    assert (logits(model, tokens) - logits(other, tokens))[..., 3].abs().min() > 1e-3


def test_the_gradient_of_the_shared_weight_is_the_sum_of_both() -> None:
    model, tokens = tied_model(), random_tokens()
    other, weights = untied(model), torch.randn(2, 9, SPACE.vocab_size, dtype=torch.float64)
    for each in (model, other):
        (logits(each, tokens) * weights).sum().backward()
    shared, own = model.token_head.weight.grad, (other.token_head.weight.grad, other.trunk.embedding.weight.grad)
    assert shared is not None and own[0] is not None and own[1] is not None
    assert min(own[0].abs().max(), own[1].abs().max()) > 1e-3
    torch.testing.assert_close(shared, own[0] + own[1], rtol=1e-12, atol=1e-12)


def test_a_bundle_holds_the_weight_once_and_opens_tied(tmp_path: Path) -> None:
    model, tokens = tied_model(torch.float32), random_tokens()
    save_model(model, SPACE, tmp_path)
    in_file = load_file(tmp_path / "model.safetensors")
    assert EMBEDDING in in_file and HEAD not in in_file
    assert set(in_file) == {name for name, _ in model.named_parameters()}
    opened, _ = open_model(tmp_path)
    assert opened.config == model.config and opened.config.trunk.tied_head
    assert opened.token_head.weight is opened.trunk.embedding.weight
    with torch.no_grad():
        assert torch.equal(logits(opened, tokens), logits(model, tokens))


def test_a_head_of_its_own_is_on_disk_and_is_missed_where_it_is_not(tmp_path: Path) -> None:
    save_model(tiny_model(SPACE.vocab_size), SPACE, tmp_path)
    assert HEAD in load_file(tmp_path / "model.safetensors")
    save_model(tied_model(), SPACE, tmp_path / "tied")
    (tmp_path / "tied" / "config.json").write_bytes((tmp_path / "config.json").read_bytes())
    with pytest.raises(ValueError, match=r"Missing key.*heads\.tokens\.weight"):
        open_model(tmp_path / "tied")


@torch.no_grad()
def test_the_tie_outlives_copies_types_and_weights_that_are_drawn_again() -> None:
    model = tied_model(torch.float32)
    for each in (copy.deepcopy(model), copy.deepcopy(model).bfloat16(), model):
        assert each.token_head.weight is each.trunk.embedding.weight
        assert sum(name in (HEAD, EMBEDDING) for name, _ in each.named_parameters()) == 1
    model.init_weights()
    assert model.token_head.weight is model.trunk.embedding.weight


@torch.inference_mode()
def test_forms_for_inference_compute_the_same() -> None:
    model, tokens = tied_model(torch.float32), random_tokens()
    expected = logits(model, tokens)
    for fast in (prepacked(model), matvec(model)):
        torch.testing.assert_close(logits(fast, tokens), expected, rtol=1e-4, atol=1e-4)
