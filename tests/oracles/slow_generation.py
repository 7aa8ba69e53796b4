"""Slow and obvious: decoding one row without any cache, one whole forward pass for every token and context."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from tests.oracles.passes import logits
from tokenizers_vq.layout import Size
from tokenizers_vq.token_space import TokenSpace
from unimodal.generation.noise import exponentials
from unimodal.generation.requests import DecodeConfig
from unimodal.model.model import UnifiedModel


def sample_slowly(logits: Sequence[float], noise: Sequence[float], temperature: float, top_k: int, top_p: float) -> int:
    """The token that noise picks: the largest share of noise among what top-k and top-p keep."""
    if temperature == 0:
        return max(range(len(logits)), key=lambda token: logits[token])
    heights = kept_heights(logits, temperature, top_k, top_p)
    return max(heights, key=lambda token: heights[token] / noise[token])


def kept_heights(logits: Sequence[float], temperature: float, top_k: int, top_p: float) -> dict[int, float]:
    """What is left of the probabilities, by token, up to a common factor."""
    order = sorted(range(len(logits)), key=lambda token: -logits[token])
    order = [token for token in order if logits[token] > -math.inf]
    order = order[:top_k] if top_k else order
    heights = [math.exp((logits[token] - logits[order[0]]) / temperature) for token in order]
    kept: dict[int, float] = {}
    for token, height in zip(order, heights, strict=True):
        if kept and top_p < 1 and sum(kept.values()) / sum(heights) >= top_p:
            break
        kept[token] = height
    return dict(sorted(kept.items()))


def legal_tokens(
    answer: Sequence[int], space: TokenSpace, mode: str, room: int, wanted: Size | None = None
) -> set[int]:
    """What may follow `answer`, read off the answer itself; `room` tokens are left."""
    specials = space.specials
    opened = [index for index, token in enumerate(answer) if token == specials.boi]
    if opened and specials.eoi not in answer[opened[-1] :]:
        said = list(answer[opened[-1] :])
        spans = [[-1, *body, -2] for body in possible_bodies(space, room + len(said), wanted)]
        following = [span[len(said)] for span in spans if _agrees(said, span, space)]
        codes = set(range(space.image_offset, space.vocab_size))
        return set().union(*({specials.eoi} if f == -2 else codes if f == -3 else {f} for f in following))
    begins = {specials.boi} if possible_bodies(space, room, wanted) else set()
    if mode == "image":
        return begins or {specials.eos}
    never = {specials.pad, specials.bos, specials.boi, specials.eoi, specials.sep, specials.null}
    text = set(range(space.text_size)) - never
    return text if mode == "text" else text | begins


def possible_bodies(space: TokenSpace, room: int, wanted: Size | None) -> list[list[int]]:
    """What may stand between boi and eoi, -3 for any code, of the images that fit in `room` with a token to end."""
    sizes = [size for size in space.layout.sizes if wanted in (None, size) and space.layout.span_of(size) + 1 <= room]
    if space.layout.kind == "fixed":
        return [[-3] * (rows * columns) for rows, columns in sizes]
    bodies = []
    for rows, columns in sizes:
        body = [space.text_size + rows, space.text_size + columns]
        for _ in range(rows):
            body += [*[-3] * columns, space.text_size]
        bodies.append(body[:-1])
    return bodies


def _agrees(said: Sequence[int], span: Sequence[int], space: TokenSpace) -> bool:
    def same(token: int, planned: int) -> bool:
        return token >= space.image_offset if planned == -3 else token == planned

    return len(said) < len(span) and all(same(a, b) for a, b in zip(said[1:], span[1:], strict=False))


def noise_of(seed: int, count: int, vocab_size: int) -> list[list[float]]:
    """The noise of each of an answer's tokens, over all ids."""
    return exponentials(torch.full((count,), seed), torch.arange(count), vocab_size).tolist()


@torch.no_grad()
def decode_slowly(
    model: UnifiedModel, space: TokenSpace, prompt: Sequence[int], seed: int, config: DecodeConfig
) -> tuple[list[int], list[float]]:
    """The answer to one prompt, and the logarithm of each token's probability."""
    specials, settings = space.specials, config.sampling
    room = min(config.max_new_tokens, model.config.trunk.max_length - len(prompt))
    noise = noise_of(seed, config.max_new_tokens, space.vocab_size)
    answer: list[int] = []
    log_probs: list[float] = []
    while len(answer) < room:
        logits = guided_logits(model, space, prompt, answer, config)
        legal = legal_tokens(answer, space, config.mode, room - len(answer), config.image_size)
        masked = [value if token in legal else -math.inf for token, value in enumerate(logits.tolist())]
        token = sample_slowly(masked, noise[len(answer)], settings.temperature, settings.top_k, settings.top_p)
        heights = kept_heights(masked, settings.temperature or 1, settings.top_k, settings.top_p)
        log_probs.append(math.log(heights[token] / sum(heights.values())))
        answer.append(token)
        if token == specials.eos or (config.mode == "image" and token == specials.eoi):
            break
    return answer, log_probs


def guided_logits(
    model: UnifiedModel, space: TokenSpace, prompt: Sequence[int], answer: Sequence[int], config: DecodeConfig
) -> torch.Tensor:
    """(V,) logits after prompt and answer, compared with the other contexts inside an image."""
    specials, guidance = space.specials, config.guidance

    def after(context: Sequence[int]) -> torch.Tensor:
        return logits(model, torch.tensor([context]))[0, -1].float()

    full = after([*prompt, *answer])
    opened = [index for index, token in enumerate(answer) if token == specials.boi]
    if not guidance.active or not opened or specials.eoi in answer[opened[-1] :]:
        return full
    image = list(answer[opened[-1] :])
    pictures = [token for token in prompt if token in (specials.boi, specials.eoi) or token >= space.text_size]
    null = after([specials.bos, specials.null, specials.sep, *image])
    shown = after([specials.bos, specials.null, *pictures, specials.sep, *image])
    progress = _progress(image, space)
    weight = {"constant": 1, "linear": progress, "cosine": (1 - math.cos(math.pi * progress)) / 2}[guidance.schedule]
    text = 1 + (guidance.scale - 1) * weight
    if guidance.image_scale is None:
        return null + text * (full - null)
    return null + (1 + (guidance.image_scale - 1) * weight) * (shown - null) + text * (full - shown)


def _progress(image: Sequence[int], space: TokenSpace) -> float:
    rows, columns = space.layout.sizes[0]
    if space.layout.kind == "grid":
        if len(image) < 3:
            return 0.0
        rows, columns = image[1] - space.text_size, image[2] - space.text_size
    return sum(token >= space.image_offset for token in image) / (rows * columns)
