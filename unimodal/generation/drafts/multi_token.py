"""Drafts of a model's own multi-token heads, one depth after the other (DeepSeek-V3, arXiv 2412.19437, section 2.2).

Depth k reads the features of the place before the last token and, in the sequential form, what the depths before it
guessed. Its guess is what its distribution takes with the noise of that very token, guided as the token will be.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unimodal.generation.drafts.ahead import states_ahead
from unimodal.generation.drafts.base import Guesses, Pass
from unimodal.generation.modality import ModalityState
from unimodal.generation.noise import exponentials
from unimodal.generation.sampling import exact, pick
from unimodal.generation.stepping import guided
from unimodal.model.heads.multi_token import MultiTokenHead

# Shapes: P answers, R rows of the cache, W drafts, T = W + 1 places of a pass, D model width, V vocabulary.


class MultiTokenDrafter:
    """Guesses as many tokens as the model has depths."""

    def __init__(self, head: MultiTokenHead) -> None:
        self.head = head

    def __call__(self, done: Pass, window: int) -> Guesses:
        """See `Drafter`."""
        batch, count = done.batch, min(window, len(self.head.depths))
        drafts = done.tokens.new_zeros(len(done.tokens), window)
        states = states_ahead(batch.machine, batch.state, drafts).states
        cache = batch.cache.beginning(len(done.features))
        cache.reserve(cache.slots if batch.forward.recordable else min(batch.reach, cache.slots))
        context = self.head.cached(done.features, done.positions, done.slots, cache)
        hidden, ids = done.features, done.tokens
        last = (done.taken - 1).clamp_min(0)
        for depth in range(count):
            embedded = batch.model.trunk.embedding(ids[batch.answer_of])
            at = self.head.at_depth(context, depth, cache) if self.head.has_blocks else context
            hidden, out = self.head.depths[depth](hidden, done.features, embedded, at)
            guess = _guess(done, self._logits(done, out, last), states, depth, window)
            drafts[:, depth] = guess
            ids = torch.cat([ids[:, 1:], ids[:, -1:]], 1).scatter(1, last[:, None], guess[:, None])
        known = (torch.arange(window, device=drafts.device) < count) & (done.taken[:, None] > 0)
        return Guesses(drafts, known)

    def _logits(self, done: Pass, out: Tensor, last: Tensor) -> Tensor:
        """(P, V): of the place of each answer's last token but one, guided as the answer is."""
        batch = done.batch
        rows = torch.arange(len(out), device=out.device)
        chosen = out[rows, last[batch.answer_of]]
        return guided(batch, exact(batch.model.token_head(chosen))[:, None], batch.state)


def _guess(done: Pass, logits: Tensor, states: ModalityState, depth: int, window: int) -> Tensor:
    """(P,): what is taken from logits (P, V) in the state that the machine will be in, with the token's own noise."""
    batch = done.batch
    rows = torch.arange(len(done.taken), device=logits.device) * (window + 1)
    state = states.select(rows + depth)
    left = batch.token_limit - batch.step_count - depth
    noise = exponentials(batch.seeds, batch.num_sampled + depth, logits.shape[1])
    return pick(logits + batch.machine.bias(state, left), noise, batch.sampling)[0]
