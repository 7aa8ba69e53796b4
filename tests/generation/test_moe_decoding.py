"""A mixture of experts decodes, drafts, scores and is trained by rewards as a dense model is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.generation.test_engine import CONFIGS, CONTEXT, NAMES, SPACES, ids, mixed_requests, requests
from tests.model.test_moe import TINY
from tests.oracles.slow_generation import decode_slowly
from tests.oracles.tiny import tiny_model
from tests.training.rl.test_policy import SAMPLED, log_probs_of, packed_batches, sample_groups
from tokenizers_vq.token_space import TokenSpace
from unimodal.generation.drafts.usual import usual_drafting
from unimodal.generation.engine import Engine
from unimodal.generation.forward import EagerForward, compiled_forward
from unimodal.generation.requests import DecodeConfig
from unimodal.model.inference.joined import joined
from unimodal.model.inference.prepacked import prepacked


def engine_of(space: TokenSpace, bias_by: Any = "modality", dtype: torch.dtype = torch.float64) -> Engine:
    moe = replace(TINY, first_dense=1, bias_by=bias_by, image_ids_from=space.image_offset)
    model = tiny_model(vocab_size=space.vocab_size, max_length=CONTEXT, moe=moe, dtype=dtype)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith("router.bias"):
                buffer.copy_(torch.linspace(-0.3, 0.3, buffer.numel()).view_as(buffer))
    return Engine(model, space)


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
@pytest.mark.parametrize("settings", CONFIGS.values(), ids=NAMES)
def test_answers_are_those_of_one_pass_a_token_without_a_cache(settings: dict[str, Any], space: TokenSpace) -> None:
    config, engine = DecodeConfig(max_new_tokens=24, **settings), engine_of(space)
    for request, answer in zip(requests(config, space), engine.decode(requests(config, space)), strict=True):
        slow, log_probs = decode_slowly(engine.model, space, request.prompt, request.seed, config)
        assert answer.ids == slow and answer.log_probs == pytest.approx(log_probs, abs=1e-4)


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_a_queue_with_drafts_gives_what_each_gives_alone(space: TokenSpace) -> None:
    engine, asked = engine_of(space), mixed_requests(space, 24)
    drafting = Engine(engine.model, space, drafting=usual_drafting(engine.model, 4))
    alone = [engine.decode([request])[0].ids for request in asked]
    assert ids(engine.decode(asked, rows=7)) == alone == ids(drafting.decode(asked, rows=5))


def test_copies_for_inference_compute_the_same() -> None:
    space = SPACES["fixed"]
    model = engine_of(space, dtype=torch.float32).model.requires_grad_(False)
    tokens = torch.randint(space.vocab_size, (2, 20))
    with torch.inference_mode():
        wanted = model.token_head(model(tokens))
        for copy in (prepacked(model), joined(model)):
            torch.testing.assert_close(copy.token_head(copy(tokens)), wanted, rtol=1e-4, atol=1e-4)
    assert isinstance(compiled_forward(model, model), EagerForward)


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
@pytest.mark.parametrize("name", SAMPLED)
def test_recorded_log_probabilities_come_out_of_packed_rows_again(name: str, space: TokenSpace) -> None:
    """Which experts a token takes is a function of its context: routes need not be recorded to be the same."""
    engine = engine_of(space)
    trajectories = sample_groups(engine, DecodeConfig(max_new_tokens=34, **CONFIGS[name]), space)
    for batch in packed_batches(space, trajectories):
        torch.testing.assert_close(log_probs_of(engine, batch), batch.old, rtol=1e-10, atol=1e-10)
