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
from unimodal.generation.log_probs import grammar_bias, open_images, states_of_answers, token_log_probs
from unimodal.generation.modality import ModalityMachine
from unimodal.generation.reading import piece_media
from unimodal.generation.requests import Request, check_ids
from unimodal.generation.sampling import RowSampling, exact
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
    """Logarithms of the probabilities of every token of the answers: (T,) each, -inf for what is never sampled.

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
    states = states_of_answers(machine, [config], [answer])
    logits = _guided(model, space, prompt, answer, config.guidance, states.progress)
    left = min(config.max_new_tokens, limit - len(prompt)) - torch.arange(len(answer), device=machine.device)
    logits = logits + machine.bias(states, left)
    if config.grammar is not None:
        logits[:, : space.text_size] += grammar_bias(machine, request, answer, states, left)
    sampling = RowSampling.of([config.sampling] * len(answer), machine.device)
    over = states.done | (left <= 0)
    return token_log_probs(logits, tokens, sampling).log_probs.masked_fill(over, float("-inf"))


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
    return exact(model.token_head(features[0, len(before) - 1 :]))


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
    for start, end in open_images(answer, space):
        piece = answer[start:end]
        others = []
        for context in compared:
            opened = Context(runs=list(context.runs))
            opened.say([space.specials.boi])
            others.append(_after(model, opened, piece))
        rows = RowGuidance.of([guidance] * len(piece), logits.device)
        logits[start:end] = guided_logits(logits[start:end], others[-1], others[0], rows, progress[start:end])
    return logits
