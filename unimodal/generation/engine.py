"""The decoding engine: ids in, ids out, many rows at a time; it knows neither strings nor pixels.

Rows of one batch may be in text, in an image or finished. Each is prefilled once, whatever it switches to later. In
an image, guidance compares with a second, short context <bos> <null> <sep> <boi> codes; it has its own cache whose
slots are simply written again when the next image begins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tokenizers_vq.token_space import TokenSpace
from unimodal.generation.grammar import FreeGrammar, ModalityGrammar, ModalityState, Mode
from unimodal.generation.sampling import SamplingConfig, guide, row_uniforms, sample
from unimodal.model.cache import KVCache
from unimodal.model.transformer import Transformer

WORTH_SHARING = 0.25
"""Share of all prompt tokens that has to be saved before prompts are run in two parts."""

# Shapes: B rows, T prompt tokens, V vocabulary.


@dataclass(frozen=True, kw_only=True)
class DecodeConfig:
    """How answers are decoded. `guidance` acts inside images; `constrained=False` switches the grammar off."""

    mode: Mode = "mixed"
    max_new_tokens: int = 128
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    guidance: float = 1.0
    constrained: bool = True

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is at least 1, got {self.max_new_tokens}")
        if not 0 <= self.guidance < math.inf:
            raise ValueError(f"the guidance scale is finite and at least 0, got {self.guidance}")


class Engine:
    """Decodes batches of prompts with one transformer."""

    def __init__(self, transformer: Transformer, space: TokenSpace) -> None:
        self.transformer, self.space = transformer, space

    @torch.inference_mode()
    def decode(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], config: DecodeConfig) -> list[list[int]]:
        """Answers of a batch of prompts, without the prompts; eos is included where a row reached it.

        Raises ValueError for an empty prompt or one longer than the context.
        """
        steps = self._check(prompts, config)
        grammar = (ModalityGrammar if config.constrained else FreeGrammar)(self.space, config.mode)
        uniforms = row_uniforms(list(seeds), config.max_new_tokens)
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        room = (self.transformer.config.max_length - lengths).clamp_max(config.max_new_tokens)
        rows = _Rows(self.transformer, self.space, lengths, steps, guided=config.guidance != 1)
        logits, state = rows.prefill(prompts), grammar.start(len(prompts))
        out: list[Tensor] = []
        for step in range(steps):
            allowed = grammar.allowed(state, room - step)
            tokens = sample(logits.masked_fill(~allowed, float("-inf")), uniforms[:, step], config.sampling)
            tokens = torch.where(state.done, self.space.specials.pad, tokens)
            out.append(tokens)
            state = grammar.advance(state, tokens)
            state.done = state.done | (step + 1 >= room)
            if bool(state.done.all()):
                break
            logits = rows.step(tokens, state, config.guidance)
        return self._trim(torch.stack(out, dim=1), room)

    def _check(self, prompts: Sequence[Sequence[int]], config: DecodeConfig) -> int:
        context = self.transformer.config.max_length
        longest, shortest = max(map(len, prompts)), min(map(len, prompts))
        if shortest == 0:
            raise ValueError("a prompt is empty")
        if longest >= context:
            raise ValueError(f"a prompt of {longest} tokens leaves no room in a context of {context}")
        room, span = min(config.max_new_tokens, context - longest), self.space.layout.span + 1
        if config.mode == "image" and config.constrained and room < span:
            raise ValueError(f"an image and its end take {span} tokens, a prompt leaves room for {room}")
        return min(config.max_new_tokens, context - shortest)

    def _trim(self, tokens: Tensor, room: Tensor) -> list[list[int]]:
        pad = self.space.specials.pad
        rows = [row[: int(limit)] for row, limit in zip(tokens.tolist(), room, strict=True)]
        return [[token for token in row if token != pad] for row in rows]


class _Rows:
    """Caches and positions of a batch while it is decoded."""

    def __init__(
        self, transformer: Transformer, space: TokenSpace, lengths: Tensor, steps: int, *, guided: bool
    ) -> None:
        self.transformer, self.space, self.lengths = transformer, space, lengths
        self.dtype, count = transformer.embedding.weight.dtype, len(lengths)
        self.slots = min(int(lengths.max()) + steps, transformer.config.max_length)
        self.cache: KVCache
        self.positions = lengths.clone()
        specials = space.specials
        self.null_context = [specials.bos, specials.null, specials.sep]
        self.null_cache: KVCache | None = None
        if guided:
            null_slots = len(self.null_context) + space.layout.span
            self.null_cache = KVCache(transformer.config, count, null_slots, self.dtype)
            self._run(self.null_cache, torch.tensor([self.null_context] * count), torch.zeros(count, dtype=torch.int64))

    def prefill(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Logits (B, V) after each prompt. What prompts begin with in common goes through the model once."""
        shared = shared_length(prompts)
        begun = [tuple(prompt[:shared]) for prompt in prompts]
        numbers = {prefix: number for number, prefix in enumerate(dict.fromkeys(begun))}
        self.cache = KVCache(self.transformer.config, len(numbers), self.slots, self.dtype)
        if shared:
            self._run(self.cache, torch.tensor(list(numbers)), torch.zeros(len(numbers), dtype=torch.int64))
        self.cache.select(torch.tensor([numbers[prefix] for prefix in begun]))
        tokens = torch.full((len(prompts), int(self.lengths.max()) - shared), self.space.specials.pad)
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt) - shared] = torch.tensor(prompt[shared:])
        features = self._run(self.cache, tokens, torch.full((len(prompts),), shared))
        last = features[torch.arange(len(prompts)), self.lengths - 1 - shared]
        return self.transformer.head(last).float()

    def step(self, tokens: Tensor, state: ModalityState, guidance: float) -> Tensor:
        """Feed one token a row; logits (B, V) for the next, guided where a row is in an image."""
        positions = self.positions.clamp_max(self.cache.slots - 1)
        logits = self._logits(self.cache, tokens, positions)
        self.positions = self.positions + 1
        inside = state.in_image & ~state.done
        if self.null_cache is None or not bool(inside.any()):
            return logits
        codes_done = (self.space.layout.num_codes - state.codes_left).clamp(0, self.space.layout.num_codes)
        null_positions = len(self.null_context) + torch.where(inside, codes_done, 0)
        unconditional = self._logits(self.null_cache, tokens, null_positions)
        return torch.where(inside[:, None], guide(logits, unconditional, guidance), logits)

    def _logits(self, cache: KVCache, tokens: Tensor, positions: Tensor) -> Tensor:
        return self.transformer.head(self._run(cache, tokens[:, None], positions)[:, 0]).float()

    def _run(self, cache: KVCache, tokens: Tensor, start: Tensor) -> Tensor:
        positions = start[:, None] + torch.arange(tokens.shape[1])
        cache.reserve(int(positions.max()) + 1)
        return self.transformer.features(tokens, positions, cache=cache)


def shared_length(prompts: Sequence[Sequence[int]]) -> int:
    """How many first ids to run through the model once for all prompts that have them in common.

    The length that saves most: with U different beginnings of length L among B prompts, (B - U) L tokens. At least the
    last id of every prompt is left over, because its output decides what comes next. 0 where it saves too little.
    """
    best = saved = 0
    groups = [0] * len(prompts)
    for length in range(1, min(map(len, prompts))):
        known: dict[tuple[int, int], int] = {}
        groups = [
            known.setdefault((group, prompt[length - 1]), len(known))
            for group, prompt in zip(groups, prompts, strict=True)
        ]
        if (len(prompts) - len(known)) * length > saved:
            best, saved = length, (len(prompts) - len(known)) * length
        if len(known) == len(prompts):
            break
    return best if saved > WORTH_SHARING * sum(map(len, prompts)) else 0
