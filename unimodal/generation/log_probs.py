"""Log-probabilities of tokens that were sampled, in one pass over all of them and differentiable.

What a token was drawn from is more than a softmax of the model's logits: guidance, the modality machine, a grammar,
temperature, top-k and top-p have changed them. Scoring and policy gradients take it from here, so that both are of the
very distribution that the scheduler samples from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tokenizers_vq.token_space import TokenSpace
from unimodal.generation.modality import ModalityMachine, ModalityState
from unimodal.generation.requests import DecodeConfig, Request
from unimodal.generation.sampling import RowSampling, distribution
from unimodal.generation.structured import text_mask

# Shapes: M tokens of all answers, V vocabulary, B answers, T tokens of the max_length, X text ids.


SMALLEST = -1e4
"""Stands for the logarithm of 0 where it is multiplied with 0."""


class TokenLogProbs(NamedTuple):
    """(M,) each, in nats."""

    log_probs: Tensor
    entropy: Tensor
    """Of the distribution that the token was drawn from."""


def token_log_probs(logits: Tensor, tokens: Tensor, rows: RowSampling, *, sampled: bool = False) -> TokenLogProbs:
    """logits (M, V), -inf where forbidden, and settings of each row -> log-probabilities of tokens (M,).

    `sampled` as for `log_distributions`. A token that is never drawn has -inf.
    """
    return of_distributions(log_distributions(logits, tokens, rows, sampled=sampled), tokens)


def log_distributions(logits: Tensor, tokens: Tensor, rows: RowSampling, *, sampled: bool) -> Tensor:
    """As above -> the logarithms of what each token (M,) is drawn from: (M, V), -inf for ids that are never drawn.

    Which ids top-k and top-p keep is no matter of gradients. `sampled` says that the tokens were drawn so: then each is
    among the kept ones, whatever rounding says of an id at the edge.
    """
    scaled = logits / torch.where(rows.temperature > 0, rows.temperature, 1).to(logits.dtype)[:, None]
    if rows.by_rank or rows.by_mass:
        kept = distribution(logits.detach(), rows) > 0
        if sampled:
            kept = kept.scatter(-1, tokens[:, None], True)
        scaled = scaled.masked_fill(~kept, float("-inf"))
    return scaled.log_softmax(-1)


def of_distributions(log_probs: Tensor, tokens: Tensor, *, entropy_gradient: bool = False) -> TokenLogProbs:
    """log_probs (M, V), and tokens (M,) drawn from them; the entropy has a gradient where it is asked for."""
    with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
        finite = log_probs.clamp_min(SMALLEST)
        entropy = -(finite.exp() * finite).sum(-1)
    return TokenLogProbs(log_probs.gather(-1, tokens[:, None])[:, 0], entropy)


def divergences(log_probs: Tensor, reference: Tensor) -> Tensor:
    """log p and log q (M, V) over the same possible ids -> KL(p | q) of each row (M,)."""
    possible = (log_probs > float("-inf")) & (reference > float("-inf"))
    apart = (log_probs - reference).masked_fill(~possible, 0.0)
    return (log_probs.masked_fill(~possible, 0.0).exp() * apart).sum(-1)


def states_of_answers(
    machine: ModalityMachine, configs: Sequence[DecodeConfig], answers: Sequence[Sequence[int]]
) -> ModalityState:
    """The machine before each token of each answer, answer by answer: the rows of one state (M)."""
    state = machine.start([config.outside() for config in configs], [config.image_size for config in configs])
    lengths = torch.tensor([len(answer) for answer in answers], device=machine.device)
    max_length = int(lengths.max()) if len(answers) else 0
    table = torch.full((len(answers), max_length), machine.space.specials.pad, dtype=torch.int64)
    for index, answer in enumerate(answers):
        table[index, : len(answer)] = torch.as_tensor(answer, dtype=torch.int64)
    table = table.to(machine.device)
    found = []
    for step in range(max_length):
        found.append(state)
        state = machine.advance(state, table[:, step])
    steps, rows = torch.arange(max_length, device=machine.device), torch.arange(len(answers), device=machine.device)
    counted = (steps < lengths[:, None]).flatten()
    by_answer = (steps * len(answers) + rows[:, None]).flatten()[counted]
    return ModalityState.cat(found).select(by_answer)


def tokens_left(budget: int, length: int) -> Tensor:
    """(length,) tokens of a budget that are left before each token of an answer."""
    return budget - torch.arange(length)


def grammar_bias(
    machine: ModalityMachine, request: Request, answer: Sequence[int], states: ModalityState, left: Tensor
) -> Tensor:
    """What the grammar of a request adds to the logits of text ids before each token: (T, X) of 0 and -inf."""
    assert request.config.grammar is not None
    matcher, bias = request.config.grammar.start(), torch.zeros(len(answer), machine.space.text_size)
    may_begin, inside = machine.fits(states, left).any(-1).tolist(), states.in_image.tolist()
    for index, token in enumerate(answer):
        if not inside[index]:
            mask, stuck = text_mask(machine.space, matcher, may_begin=may_begin[index])
            bias[index].masked_fill_(~mask, float("-inf"))
            if stuck or token >= machine.space.text_size or not mask[token]:
                break
        if token < machine.space.text_size:
            matcher.consume(token)
    return bias.to(machine.device)


def open_images(answer: Sequence[int], space: TokenSpace) -> list[tuple[int, int]]:
    """Where tokens are generated inside an image: from after its boi to its eoi, or to the end of the answer."""
    found, start = [], None
    for index, token in enumerate(answer):
        if token == space.specials.boi and start is None:
            start = index + 1
        elif token == space.specials.eoi and start is not None:
            found.append((start, index + 1))
            start = None
    return [*found, (start, len(answer))] if start is not None and start < len(answer) else found
