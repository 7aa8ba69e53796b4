"""Scoring: how likely given answers are, under the very distribution that the engine draws from.

Answers are packed into rows, those of one prompt as branches of one trunk, and read in one forward pass a batch of rows
instead of one a token. Guidance, the modality machine, grammars, temperature, top-k and top-p all count, so that
log-probabilities recorded while sampling come out again.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from tokenizers_vq.token_space import TokenSpace
from unimodal.generation.answer_probs import HowRead, Read, answer_log_probs
from unimodal.generation.answer_rows import AnswerBatch, AnswerPacker, SampledAnswer
from unimodal.generation.batch_media import media_tokens
from unimodal.generation.context import Reading, guidance_contexts, read_prompt
from unimodal.generation.log_probs import open_images
from unimodal.generation.modality import ModalityMachine
from unimodal.generation.requests import Request, check_ids
from unimodal.model.masks import dense_mask
from unimodal.model.model import UnifiedModel

# Shapes: T tokens of an answer, B rows, D model width.

ROW, BATCH = 512, 8192
"""Tokens of a row where answers are short, and of a batch of rows."""


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
    reading, machine = reading or Reading(), ModalityMachine(space, model.device)
    lengths = [
        _row_tokens(request, answer, model.config.trunk.max_length, space, reading)
        for request, answer in zip(requests, answers, strict=True)
    ]
    length = max([*lengths, min(ROW, sum(lengths))], default=1)
    packer = AnswerPacker(
        space, reading, rows=max(BATCH // length, 1), length=length, context=model.config.trunk.max_length
    )
    groups: dict[Hashable, int] = {}
    asked = [
        SampledAnswer(
            request=request,
            ids=answer,
            log_probs=[0.0] * len(answer),
            group=groups.setdefault(_group(request), len(groups)),
        )
        for request, answer in zip(requests, answers, strict=True)
    ]
    found: dict[int, Tensor] = {}
    for batch in packer.batches(asked, range(len(asked))):
        read = batch.to(model.device)
        opened = Read(model.token_head, _features(model, read))
        scores = answer_log_probs(opened, read, machine, how=HowRead(sampled=False))
        over = read.states.done | (read.left <= 0)
        parts = scores.log_probs.masked_fill(over, float("-inf")).split([len(answers[n]) for n in batch.numbers])
        found |= dict(zip(batch.numbers, parts, strict=True))
    return [found[number] for number in range(len(asked))]


def _row_tokens(request: Request, answer: Sequence[int], limit: int, space: TokenSpace, reading: Reading) -> int:
    """Tokens of a row that holds one answer with its prompt, or with any of the contexts it is compared with."""
    request.check(space, limit)
    prompt = read_prompt(request, space, reading)
    if not 0 < len(answer) <= limit - len(prompt):
        raise ValueError(
            f"an answer of {len(answer)} tokens cannot be scored: after a prompt of {len(prompt)} it may have 1 to "
            f"{limit - len(prompt)}"
        )
    check_ids("an answer", answer, space)
    if reading.latents and request.config.mode != "text" and space.specials.boi in answer:
        raise ValueError("an image that was drawn from latents has no probability: score answers in text")
    contexts = [prompt, *guidance_contexts(prompt, space, request.config.guidance)]
    return max(map(len, contexts)) + len(answer) + 2 * len(open_images(answer, space))


def _group(request: Request) -> Hashable:
    """Equal for requests whose prompts are read alike, and are compared with the same contexts."""
    media = (tuple(map(id, request.latents)), tuple(map(id, request.pixels)))
    return (tuple(request.prompt), request.config.mode == "text", request.config.guidance, media)


def _features(model: UnifiedModel, batch: AnswerBatch) -> Tensor:
    """(B, T, D) of the packed rows."""
    packed = batch.packed
    mask = dense_mask(packed.documents, packed.branches, packed.spans)
    media = {name: media_tokens(values) for name, values in packed.media.items()}
    return model(packed.tokens, packed.positions, mask, media=media)
