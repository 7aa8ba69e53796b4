"""Losses of reinforcement learning on CUDA without a GPU: nothing waits for the device, and nothing leaves it."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from data_pipelines.batch import PackedBatch
from tests.oracles.fake_cuda import Launches, cuda_model, fake_like
from tokenizers_vq.media import LATENTS
from tokenizers_vq.token_space import FixedLayout, TokenSpace
from unimodal.generation.answer_rows import AnswerBatch, AnswerPacker, SampledAnswer
from unimodal.generation.batch_media import media_tokens
from unimodal.generation.context import Reading
from unimodal.generation.guidance import GuidanceConfig
from unimodal.generation.modality import ModalityMachine
from unimodal.generation.requests import DecodeConfig, Request
from unimodal.generation.stochastic_flow import FlowStep, StepTime
from unimodal.model.config import FlowConfig
from unimodal.training.rl.losses.base import PolicyLoss
from unimodal.training.rl.losses.clipped import ClippedRatio
from unimodal.training.rl.losses.divergence import KLConfig
from unimodal.training.rl.losses.sequence import SequenceRatio
from unimodal.training.rl.statistics import Sums
from unimodal.training.rl.updates.base import UpdateConfig
from unimodal.training.rl.updates.flow import FlowBatch, FlowPacker, FlowUpdate, flow_velocities
from unimodal.training.rl.updates.tokens import TokenUpdate

pytestmark = pytest.mark.filterwarnings("ignore")

SPACE = TokenSpace(
    text_size=32_768, text_hash="", codebook_size=32_768, image_hash="", layout=FixedLayout(rows=8, columns=8)
)
PROMPT = [SPACE.specials.bos, 9, 10, SPACE.specials.sep]
FLOW = FlowConfig(latent_dim=8, grid_size=4, time_channels=16)
LOSSES = [ClippedRatio(), SequenceRatio()]


def moved(packed: PackedBatch) -> PackedBatch:
    """Packed on the CPU, as a loader does, and moved, with what is known of it on the host."""
    with unset_fake_temporarily():
        facts = packed.facts
        media = {name: each.map(lambda tensor: tensor) for name, each in packed.media.items()}
    columns: dict[str, Any] = {n: fake_like(v) for n, v in vars(packed).items() if isinstance(v, Tensor)}
    made = PackedBatch(**columns, media={name: each.map(fake_like) for name, each in media.items()})
    made.__dict__["facts"] = facts
    return made


def answers(guidance: float) -> tuple[list[SampledAnswer], AnswerBatch]:
    """Drawings of 64 codes."""
    with unset_fake_temporarily():
        config = DecodeConfig(mode="image", max_new_tokens=67, guidance=GuidanceConfig(scale=guidance))
        ids = [SPACE.specials.boi, *range(SPACE.image_offset, SPACE.image_offset + 64), SPACE.specials.eoi]
        request = Request(prompt=PROMPT, config=config)
        sampled = [SampledAnswer(request=request, ids=ids, log_probs=[-1.0] * len(ids)) for _ in range(6)]
        packer = AnswerPacker(SPACE, Reading(), rows=2, length=512, context=512)
        [made] = packer.batches(sampled, range(len(sampled)))
    return sampled, replace(made.map(fake_like), packed=moved(made.packed))


def drawings() -> tuple[list[SampledAnswer], FlowBatch]:
    """Pictures of 4 x 4 latents with two noisy steps each."""
    with unset_fake_temporarily():
        request = Request(prompt=PROMPT, config=DecodeConfig(mode="image"))
        steps = tuple(
            FlowStep(at=StepTime(t, t - 0.1, 0.7), before=torch.randn(16, 8), after=torch.randn(16, 8), log_prob=-1.0)
            for t in (0.9, 0.8)
        )
        sampled = [SampledAnswer(request=request, ids=[1], log_probs=[0.0], steps=steps) for _ in range(4)]
        packer = FlowPacker(SPACE, Reading(latents=True), (4, 4), rows=2, length=128)
        [made] = packer.batches(sampled, range(len(sampled)))
    names = ("noised", "before", "after", "old", "answers")
    tensors: dict[str, Any] = {name: fake_like(getattr(made, name)) for name in names}
    return sampled, replace(made, packed=moved(made.packed), at=StepTime(*map(fake_like, made.at)), **tensors)


def shared(sampled: list[SampledAnswer], loss: PolicyLoss, **config: Any) -> dict[str, Any]:
    return {
        "config": UpdateConfig(loss=loss, kl=KLConfig(), **config),
        "rollout": SimpleNamespace(trajectories=sampled),
        "advantages": torch.zeros(len(sampled)),
    }


def check(launches: Launches, loss: Tensor, sums: Sums) -> None:
    assert not launches.waits
    assert loss.device.type == "cuda" and loss.requires_grad
    assert {total.device.type for total, _ in sums.sums.values()} == {"cuda"}


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_of_tokens_waits_for_nothing_and_stays_on_the_device(loss: PolicyLoss, guidance: float) -> None:
    trained, reference, (sampled, given) = cuda_model(), cuda_model(), answers(guidance)
    with unset_fake_temporarily():
        machine = ModalityMachine(SPACE)
    for name in ("table", "ends", "sizes", "spans", "_row_counts", "_column_counts"):
        setattr(machine, name, fake_like(getattr(machine, name)))
    machine.device = torch.device("cuda")
    assert given.is_guided == (guidance != 1)
    update = TokenUpdate(
        **shared(sampled, loss, entropy=0.1),
        packer=SimpleNamespace(),  # pyright: ignore[reportArgumentType]
        machine=machine,
        forward=lambda model, batch: model(batch.packed.tokens, batch.packed.positions),
        head=trained.token_head,
        reference=reference,
    )
    sums = Sums()
    with Launches() as launches, torch.autocast("cuda", torch.bfloat16):
        found = update.loss(trained, given, sums)
    check(launches, found, sums)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_of_a_flows_steps_waits_for_nothing_and_stays_on_the_device(loss: PolicyLoss) -> None:
    trained, reference, (sampled, given) = cuda_model(FLOW), cuda_model(FLOW), drawings()
    velocities = flow_velocities(
        lambda packed: {LATENTS: media_tokens(packed.media[LATENTS])},
        lambda model, packed, media: model(packed.tokens, packed.positions, media=media),
    )
    update = FlowUpdate(
        **shared(sampled, loss),
        packer=SimpleNamespace(),  # pyright: ignore[reportArgumentType]
        velocities=velocities,
        reference=reference,
    )
    sums = Sums()
    with Launches() as launches:
        found = update.loss(trained, given, sums)
    check(launches, found, sums)
