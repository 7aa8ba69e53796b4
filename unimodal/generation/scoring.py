"""Scoring: how likely given answers are, under the very distribution that the engine draws from.

One forward pass over prompt and answer instead of one a token; guidance, the modality machine, grammars, temperature,
top-k and top-p all count, so that log-probabilities recorded while sampling come out again.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tokenizers_vq.token_space import TokenSpace
from unimodal.generation.context import Context, Reading, guidance_contexts, read_prompt
from unimodal.generation.guidance import GuidanceConfig, RowGuidance, guided_logits
from unimodal.generation.modality import ModalityMachine, ModalityState
from unimodal.generation.reading import piece_media
from unimodal.generation.requests import Request, check_ids
from unimodal.generation.sampling import RowSampling, log_probabilities
from unimodal.generation.structured import text_mask
from unimodal.model.model import UnifiedModel

# Shapes: T tokens of an answer, V vocabulary.


@torch.inference_mode()
def score(
    model: UnifiedModel,
    space: TokenSpace,
    requests: Sequence[Request],
    answers: Sequence[Sequence[int]],
    reading: Reading | None = None,
) -> list[Tensor]:
    """Logarithms of the probabilities of every token of the answers: (T,) float32 each, -inf for what is never sampled.

    Raises ValueError for an answer that is empty or does not fit into the context after its prompt.
    """
    if len(requests) != len(answers):
        raise ValueError(f"{len(requests)} requests and {len(answers)} answers")
    machine = ModalityMachine(space, model.device)
    pairs = zip(requests, answers, strict=True)
    return [_score(model, machine, *pair, reading or Reading()) for pair in pairs]


def _score(
    model: UnifiedModel, machine: ModalityMachine, request: Request, answer: Sequence[int], reading: Reading
) -> Tensor:
    limit, space, config = model.config.trunk.max_length, machine.space, request.config
    request.check(space, limit)
    prompt = read_prompt(request, space, reading)
    if not 0 < len(answer) <= limit - len(prompt):
        raise ValueError(
            f"an answer of {len(answer)} tokens cannot be scored: after a prompt of {len(prompt)} it may have 1 to "
            f"{limit - len(prompt)}"
        )
    check_ids("an answer", answer, space)
    if reading.latents and config.mode != "text" and space.specials.boi in answer:
        raise ValueError("an image that was drawn from latents has no probability: score answers in text")
    tokens = torch.tensor(answer, device=machine.device)
    states = _states(machine, request, tokens)
    logits = _guided(model, space, prompt, answer, config.guidance, states.progress)
    left = min(config.max_new_tokens, limit - len(prompt)) - torch.arange(len(answer), device=machine.device)
    logits = logits + machine.bias(states, left)
    if config.grammar is not None:
        logits[:, : space.text_size] += _text_bias(machine, request, answer, states, left)
    sampling = RowSampling.of([config.sampling] * len(answer), machine.device)
    over = states.done | (left <= 0)
    return log_probabilities(logits, tokens, sampling).masked_fill(over, float("-inf"))


def _after(model: UnifiedModel, before: Context, answer: Sequence[int]) -> Tensor:
    """Logits (T, V) for each token of `answer` after `before` and what precedes it."""
    context = Context(runs=list(before.runs))
    context.say(answer[:-1])
    piece = context.piece()
    ids, positions = (torch.tensor([row], device=model.device) for row in (piece.tokens, piece.positions))
    mask = None
    if piece.media:
        limits = torch.tensor([piece.limits], device=model.device)
        mask = (torch.arange(len(piece), device=model.device) <= limits[..., None]).unsqueeze(1)
    features = model(ids, positions, mask, media=piece_media([piece], len(piece), model))
    return model.token_head(features[0, len(before) - 1 :]).float()


def _guided(
    model: UnifiedModel,
    space: TokenSpace,
    prompt: Context,
    answer: Sequence[int],
    guidance: GuidanceConfig,
    progress: Tensor,
) -> Tensor:
    logits, compared = _after(model, prompt, answer), guidance_contexts(prompt, space, guidance)
    if not compared:
        return logits
    for start, end in _open_images(answer, space):
        piece = answer[start:end]
        others = []
        for context in compared:
            opened = Context(runs=list(context.runs))
            opened.say([space.specials.boi])
            others.append(_after(model, opened, piece))
        rows = RowGuidance.of([guidance] * len(piece), logits.device)
        logits[start:end] = guided_logits(logits[start:end], others[-1], others[0], rows, progress[start:end])
    return logits


def _open_images(answer: Sequence[int], space: TokenSpace) -> list[tuple[int, int]]:
    """Where tokens are generated inside an image: from after its boi to its eoi, or to the end of the answer."""
    found, start = [], None
    for index, token in enumerate(answer):
        if token == space.specials.boi and start is None:
            start = index + 1
        elif token == space.specials.eoi and start is not None:
            found.append((start, index + 1))
            start = None
    return [*found, (start, len(answer))] if start is not None and start < len(answer) else found


def _states(machine: ModalityMachine, request: Request, tokens: Tensor) -> ModalityState:
    """The machine before each token, as the rows of one state."""
    state = machine.start([request.config.outside()], [request.config.image_size])
    rows = [state]
    for token in tokens[:-1]:
        rows.append(machine.advance(rows[-1], token[None]))
    return ModalityState.cat(rows)


def _text_bias(
    machine: ModalityMachine, request: Request, answer: Sequence[int], states: ModalityState, left: Tensor
) -> Tensor:
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
