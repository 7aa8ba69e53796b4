"""Masks: one predicate says who sees whom, and every mask is made of it."""

from __future__ import annotations

from random import Random

import pytest
import torch

from tests.oracles.passes import logits
from tests.oracles.slow_attention import random_layout, visible
from tests.oracles.tiny import tiny_model
from unimodal.model.block_masks import block_mask, blocks_of, training_mask
from unimodal.model.masks import additive, allowed, cached_mask, causal_mask, dense_mask

LENGTH = 24


@pytest.mark.parametrize("seed", range(20))
def test_the_predicate_lets_a_token_see_what_its_trunk_and_branch_hold_alone(seed: int) -> None:
    documents, branches = random_layout(Random(seed), LENGTH)
    seen = visible(documents, branches)
    for query in range(LENGTH):
        found = {
            key
            for key in range(LENGTH)
            if allowed(query, documents[query], branches[query], key, documents[key], branches[key])
        }
        assert found == seen[query]


def test_the_dense_mask_is_the_predicate_for_every_pair() -> None:
    layouts = [random_layout(Random(seed), LENGTH) for seed in range(20)]
    mask = dense_mask(torch.tensor([d for d, _ in layouts]), torch.tensor([b for _, b in layouts]))
    assert mask.shape == (20, 1, LENGTH, LENGTH)
    for row, (documents, branches) in enumerate(layouts):
        for query, keys in enumerate(visible(documents, branches)):
            assert set(mask[row, 0, query].nonzero().flatten().tolist()) == keys


def test_padding_and_documents_never_see_each_other_and_no_query_is_left_without_a_key() -> None:
    documents = torch.tensor([[0, 0, 1, 1, -1, -1]])
    mask = dense_mask(documents)[0, 0]
    assert not mask[4:, :4].any() and not mask[:4, 4:].any()
    assert mask.any(-1).all()


def test_without_branches_one_document_is_plain_causal() -> None:
    torch.testing.assert_close(dense_mask(torch.zeros(1, 9, dtype=torch.int64)), causal_mask(9, torch.device("cpu")))


def test_a_cached_query_sees_the_slots_up_to_its_own_position() -> None:
    mask = cached_mask(torch.tensor([[2, 3], [0, 1]]), num_keys=5)
    assert mask.shape == (2, 1, 2, 5)
    assert mask.sum(-1).tolist() == [[[3, 4]], [[1, 2]]]
    assert bool(mask[0, 0, 0, 2]) and not bool(mask[0, 0, 0, 3])


def test_the_additive_mask_is_zero_or_minus_infinity() -> None:
    bias = additive(torch.tensor([True, False]), torch.float64)
    assert bias.dtype == torch.float64 and bias.tolist() == [0.0, float("-inf")]


def test_a_model_gives_the_same_with_the_mask_in_blocks() -> None:
    layouts = [random_layout(Random(seed), 160) for seed in range(3)]
    documents, branches = (torch.tensor(field) for field in zip(*layouts, strict=True))
    model = tiny_model(30, dtype=torch.float64, max_length=160).requires_grad_(False)
    tokens = torch.randint(30, documents.shape)
    positions = torch.arange(160).expand_as(tokens)
    dense, blocks = (logits(model, tokens, positions, make(documents, branches)) for make in (dense_mask, block_mask))
    torch.testing.assert_close(blocks, dense, rtol=1e-10, atol=1e-10)
    assert block_mask(documents, branches).sparsity() > 0


def test_in_training_a_token_sees_its_trunk_its_branch_and_the_whole_of_its_picture() -> None:
    """Each layout has a picture over part of its first document; a noised one is seen from nowhere else."""
    for seed, sign in ((seed, sign) for seed in range(10) for sign in (0, 1, -1)):
        documents, branches = random_layout(Random(seed), LENGTH)
        picture = {token for token in range(1, 4) if documents[token] == 0 and branches[token] == branches[1]}
        spans = [sign * (token in picture) for token in range(LENGTH)]
        mask = training_mask(torch.tensor([documents]), torch.tensor([branches]), torch.tensor([spans]))
        assert isinstance(mask, torch.Tensor), "blocks train on CUDA alone"
        for query, keys in enumerate(visible(documents, branches)):
            inside = query in picture and sign != 0
            expected = keys | picture if inside else keys - picture if sign < 0 else keys
            assert set(mask[0, 0, query].nonzero().flatten().tolist()) == expected


def _with_pictures(random: Random, length: int, sign: int) -> tuple[list[int], list[int], list[int]]:
    """A layout in which some runs of one document and branch are pictures."""
    documents, branches = random_layout(random, length)
    spans, number, start = [0] * length, 0, 0
    while start < length and sign:
        end = start + 1
        while end < length and (documents[end], branches[end]) == (documents[start], branches[start]):
            end += 1
        if documents[start] >= 0 and random.random() < 0.7:
            number += 1
            first, last = sorted(random.randint(start, end) for _ in range(2))
            spans[first:last] = [sign * number] * (last - first)
        start = end
    return documents, branches, spans


@pytest.mark.parametrize("sign", [0, 1, -1])
@pytest.mark.parametrize("size", [3, 4, 8])
def test_blocks_leave_out_nothing_that_is_allowed_and_full_ones_allow_all(size: int, sign: int) -> None:
    for seed in range(60):
        fields = _with_pictures(Random(seed), 37, sign)
        documents, branches, spans = (torch.tensor([field]) for field in fields)
        dense = dense_mask(documents, branches, spans if sign else None)[:, 0]
        found = blocks_of(documents, branches if branches.any() else None, spans if sign else None, size)
        count = -(-37 // size)
        for query in range(count):
            for key in range(count):
                part = dense[0, query * size : (query + 1) * size, key * size : (key + 1) * size]
                partial, full = bool(found.partial[0, query, key]), bool(found.full[0, query, key])
                assert partial or full or not part.any(), (seed, query, key)
                assert not full or bool(part.all()), (seed, query, key)
                assert not (partial and full)


def test_long_rows_of_short_documents_have_few_blocks_and_long_documents_full_ones() -> None:
    documents = torch.arange(64).repeat_interleave(64)[None]
    blocks = blocks_of(documents, None, None)
    assert int(blocks.partial.sum()) == 32 and not blocks.full.any()
    long = blocks_of(torch.zeros(1, 4096, dtype=torch.int64), None, None)
    assert int(long.partial.sum()) == 32 and int(long.full.sum()) == 32 * 31 // 2
