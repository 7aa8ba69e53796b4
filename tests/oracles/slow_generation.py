"""Slow and obvious: decoding one row without any cache, one whole forward pass for every token."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from tokenizers_vq.token_space import TokenSpace
from unimodal.generation.engine import DecodeConfig
from unimodal.generation.sampling import row_uniforms
from unimodal.model.transformer import Transformer


def sample_slowly(logits: Sequence[float], uniform: float, temperature: float, top_k: int, top_p: float) -> int:
    """The token that a uniform number picks: walk down from the likeliest token, over what top-k and top-p keep."""
    order = sorted(range(len(logits)), key=lambda token: -logits[token])
    if temperature == 0:
        return order[0]
    order = [token for token in order if logits[token] > -math.inf]
    order = order[:top_k] if top_k else order
    heights = [math.exp((logits[token] - logits[order[0]]) / temperature) for token in order]
    kept: list[float] = []
    for height in heights:
        if kept and sum(kept) / sum(heights) >= top_p:
            break
        kept.append(height)
    passed = 0.0
    for token, height in zip(order, kept, strict=False):
        passed += height
        if passed > uniform * sum(kept):
            return token
    return order[len(kept) - 1]


def legal_tokens(answer: Sequence[int], space: TokenSpace, mode: str, room: int) -> set[int]:
    """What may follow `answer`, read off the answer itself; `room` tokens are left."""
    specials = space.specials
    codes = set(range(space.image_offset, space.vocab_size))
    opened = [index for index, token in enumerate(answer) if token == specials.boi]
    if opened and specials.eoi not in answer[opened[-1] :]:
        given = len(answer) - opened[-1] - 1
        return codes if given < space.layout.num_codes else {specials.eoi}
    begins = {specials.boi} if room > space.layout.span else set()
    if mode == "image":
        return begins or {specials.eos}
    never = {specials.pad, specials.bos, specials.boi, specials.eoi, specials.sep, specials.null}
    text = set(range(space.text_size)) - never
    return text if mode == "text" else text | begins


@torch.no_grad()
def decode_slowly(
    transformer: Transformer, space: TokenSpace, prompt: Sequence[int], seed: int, config: DecodeConfig
) -> list[int]:
    """The answer to one prompt."""
    specials, settings = space.specials, config.sampling
    room = min(config.max_new_tokens, transformer.config.max_length - len(prompt))
    uniforms = row_uniforms([seed], config.max_new_tokens)[0].tolist()
    answer: list[int] = []
    while len(answer) < room:
        logits = transformer(torch.tensor([[*prompt, *answer]]))[0, -1].float()
        image = _open_image(answer, space)
        if image is not None and config.guidance != 1:
            null_context = [specials.bos, specials.null, specials.sep, *image]
            unconditional = transformer(torch.tensor([null_context]))[0, -1].float()
            logits = unconditional + config.guidance * (logits - unconditional)
        legal = legal_tokens(answer, space, config.mode, room - len(answer))
        masked = [value if token in legal else -math.inf for token, value in enumerate(logits.tolist())]
        token = sample_slowly(masked, uniforms[len(answer)], settings.temperature, settings.top_k, settings.top_p)
        answer.append(token)
        if token == specials.eos or (config.mode == "image" and token == specials.eoi):
            break
    return answer


def _open_image(answer: Sequence[int], space: TokenSpace) -> list[int] | None:
    """`<boi> codes` of an image that is not finished."""
    specials = space.specials
    opened = [index for index, token in enumerate(answer) if token == specials.boi]
    if not opened or specials.eoi in answer[opened[-1] :]:
        return None
    return list(answer[opened[-1] :])
