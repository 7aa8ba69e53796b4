"""Log-probabilities of packed answers under the distribution that they were sampled from, differentiable.

The policy of reinforcement learning is the sampler, and scoring asks how likely the sampler is to say something.
Guidance, the modality machine, grammars, temperature, top-k and top-p all count. Whoever leaves out guidance trains
another distribution than the one that drew the pictures: with scale w, the gradient of a sampled code's probability is
w times that of its logit under the prompt less (w - 1) times that of its logit without it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from unimodal.generation.answer_rows import IMAGES, MAIN, NULL, AnswerBatch
from unimodal.generation.guidance import guided_logits
from unimodal.generation.log_probs import divergences, log_distributions, of_distributions
from unimodal.generation.modality import ModalityMachine
from unimodal.generation.sampling import exact
from unimodal.model.token_head import TokenHead, ToLogits

# Shapes: M tokens of all answers, D model width, V vocabulary.

LOGITS_OF_A_PART = 2**22
"""Logits of one part; what a part needs besides is made again in the backward pass."""


class AnswerTokens(NamedTuple):
    """(M,) each, in nats."""

    log_probs: Tensor
    entropy: Tensor
    reference: Tensor
    """Log-probabilities under the reference; the policy's where there is none."""
    divergence: Tensor
    """KL(policy | reference) at each token, over all ids; 0 without a reference."""


class HowRead(NamedTuple):
    """How answers are read."""

    at_once: int = LOGITS_OF_A_PART
    """Logits that are made at a time."""
    entropy_gradient: bool = False
    sampled: bool = True
    """Whether the tokens were drawn so; otherwise one that is never drawn has -inf (`log_distributions`)."""


class Read(NamedTuple):
    """What a model made of a batch: its head, and features (B, T, D) of the packed rows."""

    head: ToLogits
    features: Tensor


def answer_log_probs(
    policy: Read,
    batch: AnswerBatch,
    machine: ModalityMachine,
    reference: Read | None = None,
    how: HowRead | None = None,
) -> AnswerTokens:
    """Log-probabilities, entropies and distances from a reference of a batch's tokens (M,).

    `machine` is on the device of the features.
    """
    within = partial(_in_parts, batch, machine, reference, how or HowRead())
    if isinstance(policy.head, TokenHead):
        return policy.head(policy.features, within=within)
    return within(policy.features, policy.head)  # prepacked, for inference


def _in_parts(
    batch: AnswerBatch,
    machine: ModalityMachine,
    reference: Read | None,
    how: HowRead,
    features: Tensor,
    to_logits: ToLogits,
) -> AnswerTokens:
    policy = _Flat(to_logits, features.flatten(0, 1))
    other = reference and _Flat(reference.head, reference.features.flatten(0, 1))
    rows = max(how.at_once // machine.space.vocab_size, 1)
    found = []
    for part in _parts(batch, rows):
        if torch.is_grad_enabled() and len(batch.tokens) > rows:
            found.append(checkpoint(_tokens, policy, other, part, machine, how, use_reentrant=False))
        else:
            found.append(_tokens(policy, other, part, machine, how))
    return AnswerTokens(*(torch.cat(values) for values in zip(*found, strict=True)))


class _Flat(NamedTuple):
    """Features (B * T, D), and what makes logits of them."""

    to_logits: ToLogits
    features: Tensor


def _tokens(
    policy: _Flat, reference: _Flat | None, part: AnswerBatch, machine: ModalityMachine, how: HowRead
) -> AnswerTokens:
    distributions = _distributions(policy, part, machine, how)
    drawn = of_distributions(distributions, part.tokens, entropy_gradient=how.entropy_gradient)
    if reference is None:
        alone = drawn.log_probs.detach()
        return AnswerTokens(drawn.log_probs, drawn.entropy, alone, torch.zeros_like(alone))
    with torch.no_grad():
        others = _distributions(reference, part, machine, how)
    of_reference = of_distributions(others, part.tokens).log_probs
    return AnswerTokens(drawn.log_probs, drawn.entropy, of_reference, divergences(distributions, others))


def _distributions(read: _Flat, part: AnswerBatch, machine: ModalityMachine, how: HowRead) -> Tensor:
    """(M, V) logarithms of what each token is drawn from."""
    to_logits, flat = read
    logits = exact(to_logits(flat[part.index[:, MAIN]]))
    if part.is_guided:  # where a token is not, all contexts are the main one, and its logits stay
        null, image = (exact(to_logits(flat[part.index[:, role]])) for role in (NULL, IMAGES))
        mixed = guided_logits(logits, image, null, part.guidance, part.states.progress)
        logits = torch.where(part.guided[:, None], mixed, logits)
    logits = logits + machine.bias(part.states, part.left)
    if part.text_bias is not None:
        rules = torch.nn.functional.pad(part.text_bias, (0, logits.shape[-1] - part.text_bias.shape[-1]))
        logits = logits + rules
    return log_distributions(logits, part.tokens, part.sampling, sampled=how.sampled)


def _parts(batch: AnswerBatch, rows: int) -> Iterator[AnswerBatch]:
    """Some tokens at a time; a batch without any is one part, so that every weight has a gradient."""
    for start in range(0, max(len(batch.tokens), 1), rows):
        yield batch.map(partial(_some, chosen=slice(start, start + rows)))


def _some(tensor: Tensor, chosen: slice) -> Tensor:
    return tensor[chosen]
