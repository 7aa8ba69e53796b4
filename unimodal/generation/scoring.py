"""Scoring: how likely given answers are, under the very distribution that the engine draws from.

One forward pass over prompt and answer instead of one a token; guidance, the modality machine, grammars, temperature,
top-k and top-p all count, so that log-probabilities recorded while sampling come out again.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tokenizers_vq.token_space import TokenSpace
from unimodal.generation.grammar import ModalityGrammar, ModalityState
from unimodal.generation.guidance import RowGuidance, contexts, guide
from unimodal.generation.requests import Request, check_ids
from unimodal.generation.sampling import RowSampling, log_probabilities
from unimodal.generation.structured import text_mask
from unimodal.model.model import UnifiedModel

# Shapes: T tokens of an answer, V vocabulary.


@torch.inference_mode()
def score(
    model: UnifiedModel, space: TokenSpace, requests: Sequence[Request], answers: Sequence[Sequence[int]]
) -> list[Tensor]:
    """Logarithms of the probabilities of every token of the answers: (T,) float32 each, -inf for what cannot be said.

    Raises ValueError for an answer that is empty or does not fit into the context after its prompt.
    """
    if len(requests) != len(answers):
        raise ValueError(f"{len(requests)} requests and {len(answers)} answers")
    grammar = ModalityGrammar(space, model.device)
    return [_score(model, grammar, *pair) for pair in zip(requests, answers, strict=True)]


def _score(model: UnifiedModel, grammar: ModalityGrammar, request: Request, answer: Sequence[int]) -> Tensor:
    context = model.config.trunk.max_length
    request.check(grammar.space, context)
    if not 0 < len(answer) <= context - len(request.prompt):
        raise ValueError(
            f"an answer of {len(answer)} tokens cannot be scored: a prompt of {len(request.prompt)} leaves room for "
            f"1 to {context - len(request.prompt)}"
        )
    config = request.config
    check_ids("an answer", answer, grammar.space)
    tokens = torch.tensor(answer, device=grammar.device)
    states = _states(grammar, request, tokens)
    logits = _guided(model, grammar.space, request, answer, states.progress)
    room = request.room(context) - torch.arange(len(answer), device=grammar.device)
    logits = logits + grammar.bias(states, room)
    if config.grammar is not None:
        logits[:, : grammar.space.text_size] += _text_bias(grammar, request, answer, states, room)
    sampling = RowSampling.of([config.sampling] * len(answer), grammar.device)
    over = states.done | (room <= 0)
    return log_probabilities(logits, tokens, sampling).masked_fill(over, float("-inf"))


def _after(model: UnifiedModel, before: Sequence[int], answer: Sequence[int]) -> Tensor:
    """Logits (T, V) for each token of `answer` after `before` and what precedes it."""
    ids = torch.tensor([[*before, *answer[:-1]]], device=model.device)
    return model.token_head(model(ids)[0, len(before) - 1 :]).float()


def _guided(
    model: UnifiedModel, space: TokenSpace, request: Request, answer: Sequence[int], progress: Tensor
) -> Tensor:
    logits, guidance = _after(model, request.prompt, answer), request.config.guidance
    compared = contexts(space, request.prompt, guidance)
    if not compared:
        return logits
    for begin, end in _open_images(answer, space):
        piece = answer[begin:end]
        others = [_after(model, [*context, space.specials.boi], piece) for context in compared]
        rows = RowGuidance.of([guidance] * len(piece), logits.device)
        logits[begin:end] = guide(logits[begin:end], others[-1], others[0], rows, progress[begin:end])
    return logits


def _open_images(answer: Sequence[int], space: TokenSpace) -> list[tuple[int, int]]:
    """Where tokens are said inside an image: from after its boi to its eoi, or to the end of the answer."""
    found, begin = [], None
    for index, token in enumerate(answer):
        if token == space.specials.boi and begin is None:
            begin = index + 1
        elif token == space.specials.eoi and begin is not None:
            found.append((begin, index + 1))
            begin = None
    return [*found, (begin, len(answer))] if begin is not None and begin < len(answer) else found


def _states(grammar: ModalityGrammar, request: Request, tokens: Tensor) -> ModalityState:
    """The machine before each token, as the rows of one state."""
    state = grammar.start([request.config.outside], [request.config.image_size])
    rows = [state]
    for token in tokens[:-1]:
        rows.append(grammar.advance(rows[-1], token[None]))
    return ModalityState.cat(rows)


def _text_bias(
    grammar: ModalityGrammar, request: Request, answer: Sequence[int], states: ModalityState, room: Tensor
) -> Tensor:
    assert request.config.grammar is not None
    matcher, bias = request.config.grammar.start(), torch.zeros(len(answer), grammar.space.text_size)
    begins, inside = grammar.fits(states, room).any(-1).tolist(), states.in_image.tolist()
    for index, token in enumerate(answer):
        if not inside[index]:
            mask, stuck = text_mask(grammar.space, matcher, begins=begins[index])
            bias[index].masked_fill_(~mask, float("-inf"))
            if stuck or token >= grammar.space.text_size or not mask[token]:
                break
        if token < grammar.space.text_size:
            matcher.consume(token)
    return bias.to(grammar.device)
