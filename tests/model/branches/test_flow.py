"""The flow branch: positions, times, the first loss, and who sees a noised image."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from random import Random
from typing import Any

import pytest
import torch

from tests.oracles.passes import flow_branch, media_at, on_table, velocity
from tests.oracles.slow_attention import spanned_layout, visible_with_spans
from tests.oracles.tiny import tiny_config, tiny_model
from unimodal.model.block_masks import block_mask
from unimodal.model.branches.base import MediaTokens, grid_positions, positions_of
from unimodal.model.branches.flow import FlowBranch, add_noise, logit_normal_times, shift_times
from unimodal.model.config import FlowConfig, RopeConfig
from unimodal.model.masks import allowed, dense_mask
from unimodal.model.model import LATENTS, UnifiedModel
from unimodal.model.rope import RotaryEmbedding, rotate
from unimodal.model.sinusoids import axial_angles, sincos_positions, sinusoids

LENGTH, CHANNELS = 24, 4
FLOW = FlowConfig(latent_dim=CHANNELS, grid_size=6, time_channels=8)


@pytest.mark.parametrize("seed", range(300))
def test_the_predicate_is_the_slow_rule_of_generalized_causal_attention(seed: int) -> None:
    documents, branches, spans = spanned_layout(Random(seed), LENGTH)
    seen = visible_with_spans(documents, branches, spans)
    for query in range(LENGTH):
        of_query = (query, documents[query], branches[query])
        found = {
            key
            for key in range(LENGTH)
            if allowed(*of_query, key, documents[key], branches[key], spans[query], spans[key])
        }
        assert found == seen[query]


def test_dense_and_block_masks_are_the_predicate() -> None:
    layouts = [spanned_layout(Random(seed), LENGTH) for seed in range(20)]
    documents, branches, spans = (torch.tensor([layout[i] for layout in layouts]) for i in range(3))
    dense = dense_mask(documents, branches, spans)
    for row, layout in enumerate(layouts):
        for query, keys in enumerate(visible_with_spans(*layout)):
            assert set(dense[row, 0, query].nonzero().flatten().tolist()) == keys
    blocks = block_mask(documents, branches, spans)
    assert blocks.mask_mod is not None
    index = torch.arange(LENGTH)
    for row in range(len(layouts)):
        rows = torch.tensor(row)
        found = torch.stack([blocks.mask_mod(rows, rows, query, index) for query in index])
        assert torch.equal(found, dense[row, 0])


def test_the_example_of_bagels_layout() -> None:
    """Lengths 3 causal, 4 noise, 2 full, 3 full, 2 causal: row by row, written out."""
    spans = torch.tensor([[0] * 3 + [-1] * 4 + [2] * 2 + [3] * 3 + [0] * 2])
    mask = dense_mask(torch.zeros_like(spans), None, spans)[0, 0].int()
    rows = ["".join(map(str, row)) for row in mask.tolist()]
    assert rows[0] == "1" + "0" * 13 and rows[2] == "111" + "0" * 11
    assert set(rows[3:7]) == {"1111111" + "0" * 7}
    assert set(rows[7:9]) == {"111000011" + "0" * 5} and set(rows[9:12]) == {"111000011111" + "00"}
    assert rows[12:] == ["11100001111110", "11100001111111"]


def one_row(noise_seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, MediaTokens]:
    """Two documents with two noised images and a clean one: tokens, spans, and latents of other noise by seed."""
    spans = torch.tensor([[0, 0, -1, -1, -1, 2, 2, 0, -3, -3, 0, 0]])
    latents = torch.randn(4, CHANNELS, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    latents[:2] += torch.randn(2, CHANNELS, generator=torch.Generator().manual_seed(noise_seed), dtype=torch.float64)
    standing = torch.tensor([[0, 0, 0, 1, 1, 0, 1, 0, 0, 1, 0, 0]]).bool()
    times = torch.tensor([0.5, 0.5, 0.0, 0.7], dtype=torch.float64)
    row_col = on_table(torch.tensor([0, 1, 0, 7]), FLOW.grid_size)
    return torch.arange(12)[None], spans, media_at(standing, latents, row_col, times)


@pytest.mark.parametrize("mixture", [True, False])
def test_another_noise_in_an_image_changes_no_token_outside_it(mixture: bool) -> None:
    model = tiny_model(flow=FLOW, mixture=mixture)
    outputs = []
    for seed in (1, 2):
        tokens, spans, media = one_row(seed)
        outputs.append(model(tokens, mask=dense_mask(torch.zeros_like(spans), None, spans), media={LATENTS: media}))
    inside = one_row()[1][0] == -1
    assert torch.equal(outputs[0][0, ~inside], outputs[1][0, ~inside])
    assert ((outputs[0] - outputs[1])[0, inside].abs().amax(-1) > 1e-6).all()


def test_the_first_velocity_is_zero_and_the_first_loss_that_of_noise_minus_image() -> None:
    model = UnifiedModel(tiny_config(flow=FLOW, mixture=True))
    standing = torch.zeros(64, 40, dtype=torch.bool)
    standing[:, 2:38] = True
    count = int(standing.sum())
    clean, noise = torch.randn(count, CHANNELS), torch.randn(count, CHANNELS)
    times = logit_normal_times(64, 1.0).repeat_interleave(36)
    media = media_at(standing, add_noise(clean, noise, times), grid_positions(6, 6).repeat(64, 1), times)
    features = model(torch.zeros(64, 40, dtype=torch.int64), media={LATENTS: media})
    loss = (velocity(model, features, media) - (noise - clean)).square().mean()
    assert float(loss.detach()) == pytest.approx(2.0, rel=0.02)


def test_time_runs_from_the_image_to_noise_and_the_velocity_is_its_derivative() -> None:
    clean, noise = torch.randn(5, CHANNELS).double(), torch.randn(5, CHANNELS).double()
    at = lambda t: add_noise(clean, noise, torch.full((5,), t, dtype=torch.float64))  # noqa: E731
    assert torch.equal(at(0.0), clean) and torch.equal(at(1.0), noise)
    torch.testing.assert_close((at(0.6) - at(0.4)) / 0.2, noise - clean)


def test_times_are_logit_normal_and_shifted_towards_noise() -> None:
    torch.manual_seed(0)
    times = logit_normal_times(200_000, 1.0)
    assert float(times.median()) == pytest.approx(0.5, abs=0.005)
    assert float(times.logit().std()) == pytest.approx(1.0, abs=0.01)
    assert float(shift_times(torch.tensor(0.5), 3.0)) == pytest.approx(0.75)
    moved = shift_times(torch.linspace(0, 1, 11), 4.0)
    assert moved[0] == 0 and moved[-1] == 1 and (moved.diff() > 0).all()


def test_positions_are_sines_and_cosines_with_the_column_first() -> None:
    table = sincos_positions(3, 16)
    assert table.shape == (9, 16)
    row, column = 2, 1
    entry = table[row * 3 + column].tolist()
    frequencies = [10_000 ** (-k / 4) for k in range(4)]
    expected = [f(at * w) for at in (column, row) for f in (math.sin, math.cos) for w in frequencies]
    assert entry == pytest.approx(expected, abs=1e-6)


def test_a_shorter_longest_period_parts_neighbours_better() -> None:
    """On a small image BAGEL's periods leave neighbouring positions nearly alike."""
    ours, theirs = sincos_positions(8, 192, 10.0), sincos_positions(8, 192)
    far = [float((table[0] - table[1]).norm()) for table in (ours, theirs)]
    assert far[0] > 1.5 * far[1]
    table = FlowBranch(FlowConfig(latent_dim=4, grid_size=8, pos_embed_period=10.0), 192, 64).positions
    assert torch.equal(table, ours)


def test_axial_angles_make_attention_a_matter_of_how_far_apart_latents_lie() -> None:
    """Columns turn the even pairs of channels and rows the odd; of positions, a score keeps their difference."""
    places = torch.arange(36)
    table = axial_angles(places // 6, places % 6, 8, 1.5)
    assert table.shape == (36, 4) and table.dtype == torch.float32
    frequencies = [1.5, 1.5 * 0.1**0.5]
    row, column = 4, 2
    expected = [cell * w for w in frequencies for cell in (column, row)]
    assert table[row * 6 + column].tolist() == pytest.approx(expected, abs=1e-6)
    query, key = torch.randn(2, 8, dtype=torch.float64)
    rotary = RotaryEmbedding(8, RopeConfig())

    def score(one: int, other: int) -> float:
        turned = [
            rotate(x[None, None, None], *rotary(torch.tensor([[5]]), torch.float64, table[place][None, None]))
            for x, place in ((query, one), (key, other))
        ]
        return float((turned[0] * turned[1]).sum())

    cell = lambda row, column: row * 6 + column  # noqa: E731
    assert score(cell(1, 2), cell(2, 4)) == pytest.approx(score(cell(3, 1), cell(4, 3)), abs=1e-6)
    assert abs(score(cell(1, 2), cell(2, 4)) - score(cell(1, 2), cell(2, 3))) > 1e-3
    assert abs(score(cell(1, 2), cell(2, 4)) - score(cell(1, 2), cell(3, 3))) > 1e-3


def test_only_latents_are_turned_and_only_where_the_config_says_so() -> None:
    tokens, spans, media = one_row()
    mask = dense_mask(torch.zeros_like(spans), None, spans)
    seen = {}
    for turn in (0.0, 1.5):
        model = tiny_model(flow=replace(FLOW, axial_rope_max=turn), mixture=True)
        given: list[torch.Tensor | None] = []

        def note(module: torch.nn.Module, inputs: Any, given: list[torch.Tensor | None] = given) -> None:
            given.append(inputs[2])

        model.trunk.rotary.register_forward_pre_hook(note)
        seen[turn] = model(tokens, mask=mask, media={LATENTS: media})
        (turns,) = given
        assert (turns is None) == (turn == 0)
        if turns is not None:
            assert turns.shape == (1, 12, 4)
            others = [index for index in range(12) if index not in media.index]
            assert len(others) == 8 and not turns[0, others].any()
            rows, columns = media.row_col.unbind(1)
            angles = axial_angles(rows, columns, model.config.trunk.head_dim, turn)
            assert torch.equal(turns[0, media.index], angles)
            rounded = copy.deepcopy(flow_branch(model)).bfloat16()(media).angles
            assert rounded is not None and torch.equal(rounded, angles), "angles are never rounded"
    assert torch.equal(seen[0.0][0, :2], seen[1.5][0, :2]), "text before any latent"
    assert (seen[0.0] - seen[1.5])[0, 2:5].abs().amax() > 1e-6


def test_times_enter_as_cosines_and_sines_of_the_unscaled_time() -> None:
    waves = sinusoids(torch.tensor([0.25]), 8)[0].tolist()
    frequencies = [10_000 ** (-k / 4) for k in range(4)]
    expected = [f(0.25 * w) for f in (math.cos, math.sin) for w in frequencies]
    assert waves == pytest.approx(expected, abs=1e-6)


def test_an_image_has_the_positions_of_its_rows_and_columns_and_too_large_a_one_is_refused() -> None:
    assert positions_of(whole_image(2, 3), 5).tolist() == [0, 1, 2, 5, 6, 7]
    with pytest.raises(ValueError, match="an image of 6 tokens along a side does not fit this model's 5 positions"):
        positions_of(whole_image(6, 3), 5)


def whole_image(rows: int, columns: int) -> MediaTokens:
    count = rows * columns
    return media_at(torch.ones(1, count, dtype=torch.bool), torch.zeros(count, CHANNELS), grid_positions(rows, columns))


def test_an_embedded_latent_is_the_sum_of_its_three_parts() -> None:
    branch = FlowBranch(FLOW, 16, 8).double()
    latents, times, places = torch.randn(3, CHANNELS).double(), torch.rand(3).double(), torch.tensor([0, 7, 35])
    media = media_at(torch.ones(1, 3, dtype=torch.bool), latents, on_table(places, 6), times)
    time = branch.time_out(torch.nn.functional.silu(branch.time_in(sinusoids(times, 8))))
    expected = branch.latent_in(latents) + time + sincos_positions(6, 16)[places].double()
    torch.testing.assert_close(branch(media).embeddings, expected)
