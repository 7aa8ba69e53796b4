"""The policy is the sampler: what was stored while sampling comes out of packed rows again, differentiable."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.generation.test_engine import CONFIGS, CONTEXT, HOT, NAMES, SPACES, engine, prompts
from tokenizers_vq.token_space import TokenSpace
from unimodal.generation.answer_probs import HowRead, Read, answer_log_probs
from unimodal.generation.answer_rows import AnswerBatch, AnswerPacker, SampledAnswer
from unimodal.generation.context import Reading
from unimodal.generation.engine import Engine
from unimodal.generation.forward import MatvecForward, StaticForward
from unimodal.generation.guidance import GuidanceConfig
from unimodal.generation.modality import ModalityMachine
from unimodal.generation.requests import DecodeConfig, Request
from unimodal.generation.sampling import SamplingConfig
from unimodal.model.masks import dense_mask

ROWS, LENGTH = 2, 64
SAMPLED = [name for name in NAMES if name != "greedy"]


def sample_groups(decoder: Engine, config: DecodeConfig, space: TokenSpace, group: int = 3) -> list[SampledAnswer]:
    """Answers to every prompt, `group` of each."""
    asked = [
        Request(prompt=prompt, config=config, seed=100 * number + member)
        for number, prompt in enumerate(prompts(space))
        for member in range(group)
    ]
    answers = decoder.decode(asked)
    return [
        SampledAnswer(request=request, ids=a.ids, log_probs=a.log_probs, finish=a.finish, group=number // group)
        for number, (request, a) in enumerate(zip(asked, answers, strict=True))
    ]


def packed_batches(space: TokenSpace, trajectories: list[SampledAnswer], **sizes: int) -> list[AnswerBatch]:
    sizes = {"rows": ROWS, "length": LENGTH, "context": CONTEXT} | sizes
    packer = AnswerPacker(space, Reading(), **sizes)
    return list(packer.batches(trajectories, range(len(trajectories))))


def log_probs_of(decoder: Engine, batch: AnswerBatch, **settings: Any) -> Tensor:
    packed, model = batch.packed, decoder.model
    features = model(packed.tokens, packed.positions, dense_mask(packed.documents, packed.branches))
    read, machine = Read(model.token_head, features), ModalityMachine(decoder.space)
    return answer_log_probs(read, batch, machine, how=HowRead(**settings)).log_probs


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
@pytest.mark.parametrize("name", SAMPLED)
def test_stored_log_probabilities_come_out_of_packed_rows_again(name: str, space: TokenSpace) -> None:
    config, decoder = DecodeConfig(max_new_tokens=34, **CONFIGS[name]), engine(space=space)
    trajectories = sample_groups(decoder, config, space)
    batches = packed_batches(space, trajectories)
    assert len(batches) > 1
    assert sorted(n for batch in batches for n in batch.numbers) == list(range(len(trajectories)))
    for batch in batches:
        torch.testing.assert_close(log_probs_of(decoder, batch), batch.old, rtol=1e-10, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "way"),
    [("three-way", "layer by layer"), ("cut", "layer by layer"), ("cut", "matrices read straight through")],
)
def test_compiled_steps_sample_from_the_same_distribution(name: str, way: str) -> None:
    space = SPACES["grid"]
    config, plain = DecodeConfig(max_new_tokens=34, **CONFIGS[name]), engine(space=space)
    model = plain.model
    forward = StaticForward(model) if way == "layer by layer" else MatvecForward(model, model)
    decoder = Engine(model, space, forward)
    for batch in packed_batches(space, sample_groups(decoder, config, space, group=2)):
        torch.testing.assert_close(log_probs_of(plain, batch), batch.old, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["text", "guided image", "three-way", "cut"])
def test_in_float32_they_are_equal_to_rounding(name: str) -> None:
    space = SPACES["grid"]
    config, decoder = DecodeConfig(max_new_tokens=34, **CONFIGS[name]), engine(torch.float32, space)
    exact, apart, rounding = engine(torch.float64, space), 0.0, 0.0
    for batch in packed_batches(space, sample_groups(decoder, config, space)):
        stored = batch.old.double()
        apart = max(apart, float((log_probs_of(decoder, batch) - stored).abs().max()))
        rounding = max(rounding, float((log_probs_of(exact, batch) - stored).abs().max()))
    assert apart < 2 * rounding < 1e-4, "both are float32's rounding away from float64"


def test_log_probabilities_without_guidance_are_of_another_distribution() -> None:
    space = SPACES["fixed"]
    config, decoder = DecodeConfig(max_new_tokens=34, **CONFIGS["guided image"]), engine(space=space)
    trajectories = sample_groups(decoder, config, space)
    unguided = replace(config, guidance=GuidanceConfig())
    plain = [replace(each, request=replace(each.request, config=unguided)) for each in trajectories]
    gaps = [(log_probs_of(decoder, batch) - batch.old).abs().max().item() for batch in packed_batches(space, plain)]
    assert max(gaps) > 0.01


def test_batches_however_small_and_parts_of_logits_change_nothing() -> None:
    space = SPACES["fixed"]
    config, decoder = DecodeConfig(max_new_tokens=34, **CONFIGS["three-way"]), engine(space=space)
    trajectories = sample_groups(decoder, config, space)
    for sizes in ({"rows": 1, "length": 70}, {"rows": 8, "length": 200}):
        for batch in packed_batches(space, trajectories, **sizes):
            found = log_probs_of(decoder, batch, at_once=5 * space.vocab_size)
            torch.testing.assert_close(found, batch.old, rtol=1e-10, atol=1e-10)


def test_the_gradient_is_that_of_finite_differences() -> None:
    space = SPACES["fixed"]
    config = DecodeConfig(mode="mixed", max_new_tokens=20, guidance=GuidanceConfig(scale=3.0, image_scale=1.5))
    decoder = engine(space=space)
    batches = packed_batches(space, sample_groups(decoder, replace(config, sampling=HOT), space, group=2))

    def loss() -> Tensor:
        parts = [log_probs_of(decoder, batch, at_once=7 * space.vocab_size) for batch in batches]
        return sum((part * torch.linspace(-1, 1, len(part)).double()).sum() for part in parts)  # pyright: ignore[reportReturnType]

    parameters = [
        decoder.model.token_head.weight,
        decoder.model.get_parameter("trunk.blocks.0.attention.o_proj.weight"),
    ]
    generator = torch.Generator().manual_seed(0)
    for parameter in parameters:
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        [slope] = torch.autograd.grad(loss(), [parameter])
        with torch.no_grad():
            values = []
            for sign in (1, -1):
                parameter += sign * 1e-5 * direction
                values.append(loss().item())
                parameter -= sign * 1e-5 * direction
        assert (slope * direction).sum().item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-6)


def test_an_answer_that_fits_no_row_is_refused_with_the_length_it_takes() -> None:
    space = SPACES["fixed"]
    config, decoder = DecodeConfig(mode="text", max_new_tokens=34), engine(space=space)
    trajectories = sample_groups(decoder, config, space)
    with pytest.raises(ValueError, match=r"does not fit a row of 8: set rollouts\.length to"):
        packed_batches(space, trajectories, length=8)


def test_ids_that_top_k_keeps_are_the_sampled_ones_whatever_rounding_says() -> None:
    space = SPACES["fixed"]
    sampling = SamplingConfig(top_k=1)
    decoder = engine(space=space)
    trajectories = sample_groups(decoder, DecodeConfig(mode="text", max_new_tokens=8, sampling=sampling), space)
    changed = engine(space=space)
    with torch.no_grad():
        changed.model.token_head.weight += 0.3 * torch.randn_like(changed.model.token_head.weight)
    for batch in packed_batches(space, trajectories):
        assert torch.isfinite(log_probs_of(changed, batch)).all()


def test_a_batch_of_padding_gives_every_weight_a_gradient_of_zero() -> None:
    """A rank without answers left does the same passes as the others, which DDP waits for."""
    space = SPACES["fixed"]
    decoder = engine(space=space)
    trajectories = sample_groups(decoder, DecodeConfig(mode="text", max_new_tokens=8), space)
    packer = AnswerPacker(space, Reading(), rows=ROWS, length=LENGTH, context=CONTEXT)
    batch = packer.empty(next(iter(packer.batches(trajectories, [0]))))
    log_probs_of(decoder, batch).sum().backward()
    gradients = [parameter.grad for parameter in decoder.model.parameters()]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)


@pytest.mark.parametrize("name", ["guided image", "three-way", "cut"])
def test_the_distance_from_a_reference_is_that_of_a_slow_sum(name: str) -> None:
    """KL over all ids that can be drawn, of two models that both read the same rows; and zero from oneself."""
    space = SPACES["fixed"]
    decoder, other = engine(space=space), engine(space=space, seed=1)
    batch = packed_batches(space, sample_groups(decoder, DecodeConfig(max_new_tokens=34, **CONFIGS[name]), space))[0]
    reads, machine = [], ModalityMachine(space)
    for model in (decoder.model, other.model):
        packed = batch.packed
        features = model(packed.tokens, packed.positions, dense_mask(packed.documents, packed.branches))
        reads.append(Read(model.token_head, features))
    here, there = reads
    found = answer_log_probs(here, batch, machine, there)
    slow = torch.zeros(len(batch.tokens), dtype=torch.float64)
    for token in range(space.vocab_size):
        as_if = replace(batch, tokens=torch.full_like(batch.tokens, token))
        log_p, log_q = (answer_log_probs(read, as_if, machine).log_probs for read in (here, there))
        if name != "cut":  # its kept ids are those of each model; there the sum runs over what both keep
            slow += torch.where(log_p > -1e9, log_p.exp() * (log_p - log_q).nan_to_num(), 0.0)
    if name != "cut":
        torch.testing.assert_close(found.divergence, slow, rtol=1e-9, atol=1e-9)
    assert (answer_log_probs(here, batch, machine, here).divergence.abs() < 1e-12).all()
    torch.testing.assert_close(found.reference, answer_log_probs(there, batch, machine).log_probs)


def test_the_entropy_is_that_of_a_slow_sum_and_has_a_gradient_where_it_is_asked_for() -> None:
    space = SPACES["fixed"]
    decoder = engine(space=space)
    trajectories = sample_groups(decoder, DecodeConfig(max_new_tokens=20, **CONFIGS["guided mixed"]), space)
    batch, machine = packed_batches(space, trajectories)[0], ModalityMachine(space)
    packed = batch.packed
    features = decoder.model(packed.tokens, packed.positions, dense_mask(packed.documents, packed.branches))
    read = Read(decoder.model.token_head, features)
    found = answer_log_probs(read, batch, machine, how=HowRead(entropy_gradient=True))
    slow = torch.zeros(len(batch.tokens), dtype=torch.float64)
    for token in range(space.vocab_size):
        as_if = replace(batch, tokens=torch.full_like(batch.tokens, token))
        log_p = answer_log_probs(read, as_if, machine).log_probs
        slow -= torch.where(log_p > -1e9, log_p.exp() * log_p.nan_to_num(neginf=0.0), 0.0)
    torch.testing.assert_close(found.entropy, slow, rtol=1e-9, atol=1e-9)
    weight = decoder.model.token_head.weight
    [wanted] = torch.autograd.grad(slow.sum(), [weight], retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(found.entropy.sum(), [weight])[0], wanted)
    assert not answer_log_probs(read, batch, machine).entropy.requires_grad
