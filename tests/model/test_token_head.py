"""The token head: scores of targets without all logits at once equal those with them, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from unimodal.model import token_head
from unimodal.model.token_head import TokenHead, TokenScores, plain_scores, scores_in_parts

TOKENS, WIDTH, VOCABULARY = 37, 12, 50


def fields(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """features, weight, targets."""
    features = torch.randn(TOKENS, WIDTH, dtype=dtype, requires_grad=True)
    weight = torch.randn(VOCABULARY, WIDTH, dtype=dtype, requires_grad=True)
    return features, weight, torch.randint(VOCABULARY, (TOKENS,))


def loss(scores: TokenScores) -> Tensor:
    """Each token and each score with a weight of its own."""
    numbers = torch.linspace(-1, 2, len(scores.log_z), dtype=scores.log_z.dtype)
    return (
        (scores.log_z * numbers).sum() + 0.3 * (scores.log_z**2 * numbers).sum() - (scores.of_targets * numbers).sum()
    )


@pytest.mark.parametrize("rows", [1, 5, 37, 100])
def test_scores_in_parts_and_their_gradients_are_those_of_all_logits(rows: int) -> None:
    features, weight, targets = fields()
    plain = plain_scores(features @ weight.T, targets)
    expected = torch.autograd.grad(loss(plain), (features, weight))
    parts = scores_in_parts(features, weight, targets, at_once=rows * VOCABULARY)
    torch.testing.assert_close(parts, plain, rtol=1e-12, atol=1e-12)
    found = torch.autograd.grad(loss(parts), (features, weight))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_logits_that_are_kept_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    features, weight, targets = fields()
    expected = torch.autograd.grad(loss(plain_scores(features @ weight.T, targets)), (features, weight))
    monkeypatch.setitem(token_head.KEPT_LOGITS, "cpu", 2**20)
    scores = scores_in_parts(features, weight, targets)
    kept = [saved for saved in scores.log_z.grad_fn.saved_tensors if saved is not None]  # pyright: ignore
    assert (TOKENS, VOCABULARY) in [tuple(each.shape) for each in kept]
    found = torch.autograd.grad(loss(scores), (features, weight))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_the_kernels_of_a_gpu_give_the_same_gradients() -> None:
    logits, targets = torch.randn(TOKENS, VOCABULARY), torch.randint(VOCABULARY, (TOKENS,))
    log_z = torch.logsumexp(logits, -1)
    rest = (targets, log_z, torch.randn(TOKENS), torch.randn(TOKENS))
    torch.testing.assert_close(token_head._slope(logits, *rest), token_head._slope_in_place(logits, *rest))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_products_are_made_in_its_type_and_scores_stay_exact(dtype: torch.dtype) -> None:
    features, weight, targets = fields(torch.float32)
    head = TokenHead(WIDTH, VOCABULARY)
    head.weight = torch.nn.Parameter(weight.detach())
    with torch.autocast("cpu", dtype):
        plain = plain_scores(head(features), targets)
        parts = scores_in_parts(features, head.weight, targets, at_once=5 * VOCABULARY)
    assert parts.log_z.dtype == parts.of_targets.dtype == torch.float32
    torch.testing.assert_close(parts, plain, rtol=1e-6, atol=1e-6)
    expected = torch.autograd.grad(loss(plain), (features, head.weight))
    found = torch.autograd.grad(loss(parts), (features, head.weight))
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)


def test_a_large_product_is_never_made_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_head, "PLAIN_LOGITS", 10 * VOCABULARY)
    monkeypatch.setitem(token_head.LOGITS_AT_ONCE, "cpu", 4 * VOCABULARY)
    head, sizes = TokenHead(WIDTH, VOCABULARY), list[int]()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # pyright: ignore
            out = func(*args, **(kwargs or {}))
            sizes.extend(
                each.numel() for each in (out if isinstance(out, tuple) else [out]) if isinstance(each, Tensor)
            )
            return out

    features, _, targets = fields(torch.float32)
    with Watch():
        loss(head(features, targets)).backward()
    assert max(sizes) == max(VOCABULARY * WIDTH, TOKENS * WIDTH) < TOKENS * VOCABULARY
    few = head(features[:10], targets[:10])
    torch.testing.assert_close(few, plain_scores(head(features[:10]), targets[:10]), rtol=0, atol=0)
