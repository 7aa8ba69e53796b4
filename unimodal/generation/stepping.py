"""A decoding step of a batch: one pass of the model, and the tokens that each answer takes from it. Tensors only."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unimodal.generation.drafts.ahead import states_ahead
from unimodal.generation.drafts.base import Pass
from unimodal.generation.guidance import guided_logits
from unimodal.generation.modality import ModalityState, keep_where
from unimodal.generation.noise import exponentials
from unimodal.generation.rows import write_where
from unimodal.generation.sampling import pick

STEPPING_GRAPHS = 64
"""Of kinds of batches (settings that are on, numbers of rows) for which one process compiles."""

# Shapes: P answers, R rows of the cache, W drafts of each answer, V vocabulary. A window is W + 1 offsets: the next
# token and, if drafts come true, those after it; P * (W + 1) are the windows of all answers, one after the other.


def advance(batch: Any) -> None:
    """One token for every answer that moves, or more where its drafts are what it would have taken."""
    alone = len(batch) == 1 and not batch.window  # more kinds of batches would take longer to compile than they save
    stepping: Stepping = batch.forward.stepping if alone else EAGER
    fed = stepping.before(batch)
    batch.reach += batch.window + 1
    logits, features = batch.forward(fed.ids, fed.positions, fed.slots, batch.cache, batch.reach)
    tokens, taken = stepping.after(batch, fed, logits)
    if batch.window:
        batch.drafts = batch.drafting(Pass(batch, tokens, taken, features, fed.positions, fed.slots), batch.window)


class Fed(NamedTuple):
    """What goes into a pass, and what is known of its places."""

    ids: Tensor
    positions: Tensor
    slots: Tensor
    """(R, W + 1)."""
    states: ModalityState
    """(P * (W + 1)): of each answer, if its drafts come true."""
    drafts: Tensor
    follows: Tensor
    """(P, W), see `Ahead`."""


def before(batch: Any) -> Fed:
    """What the rows of a batch feed next."""
    width = batch.window + 1
    if width == 1:
        states, drafts, follows = batch.state, batch.drafts, batch.drafts.bool()
    else:
        states, drafts, follows = states_ahead(batch.machine, batch.state, batch.drafts)
    ids = torch.cat([batch.tokens[:, None], drafts], 1)[batch.answer_of]
    positions, slots = _where(batch, torch.arange(width, device=batch.device))
    return Fed(ids, positions, slots, states, drafts, follows)


def after(batch: Any, fed: Fed, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (R, W + 1, V) -> what was sampled at each place (P, W + 1), and how much of it was taken (P,)."""
    offsets = torch.arange(batch.window + 1, device=batch.device)
    tokens, log_probs = _sampled(batch, guided(batch, logits, fed.states), fed.states, offsets)
    agree = (tokens[:, :-1] == fed.drafts) & fed.follows
    moving = ~(batch.state.done | waits(batch))
    taken = torch.minimum(1 + agree.long().cumprod(1).sum(1), batch.token_limit - batch.step_count) * moving
    index = batch.step_count[:, None] + offsets
    write_where(offsets < taken[:, None], batch.out, index, tokens)
    write_where(offsets < taken[:, None], batch.log_probs, index, log_probs)
    _follow(batch, fed.states, tokens, taken)
    return tokens, taken


class Stepping(NamedTuple):
    """What stands around the model in a step: some two hundred small operations, which may be compiled."""

    before: Callable[[Any], Fed]
    after: Callable[[Any, Fed, Tensor], tuple[Tensor, Tensor]]


EAGER = Stepping(before, after)


def compiled_stepping(**options: Any) -> Stepping:
    """Compiled for a CPU, where a small operation costs as much as its launch; for answers one at a time.

    `options` go to torch.compile, which counts graphs by the code object of a function.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, STEPPING_GRAPHS)
    fresh = [FunctionType(each.__code__.replace(), globals(), each.__name__) for each in EAGER]
    return Stepping(*(torch.compile(each, **options) for each in fresh))


def may_draw(batch: Any, state: ModalityState | None = None, offsets: Tensor | None = None) -> Tensor:
    """bool: whether an image that starts next, with its end, fits an answer and its context.

    (P,) for the batch as it is; (P * (W + 1),) for the states of windows at offsets (W + 1,).
    """
    width = 1 if offsets is None else len(offsets)
    ahead = 0 if offsets is None else offsets.repeat(len(batch))

    def spread(values: Tensor) -> Tensor:
        return values if width == 1 else values.repeat_interleave(width)

    steps = spread(batch.step_count) + ahead
    may_begin = batch.machine.fits(state or batch.state, spread(batch.token_limit) - steps).any(-1)
    if batch.painter is None:
        return may_begin
    read = spread(batch.position + batch.main_offset) + ahead + 1
    slots = spread(batch.image_slots)
    fits = read + slots <= batch.model.config.trunk.max_length
    fits = fits & (steps + batch.space.layout.span <= spread(batch.budget))
    return torch.where(slots > 0, fits, may_begin)


def waits(batch: Any) -> Tensor:
    """bool (P,): whether an answer waits for the contexts of its image, or for a painter."""
    open_image = batch.state.in_image & ~batch.state.done
    lacks_contexts = batch.guidance.active & ~batch.has_contexts
    return open_image & (lacks_contexts | (batch.image_slots > 0))


def guided(batch: Any, logits: Tensor, states: ModalityState) -> Tensor:
    """Logits (R, T, V) of the rows that were fed -> (P * T, V), guided where an answer draws and has its contexts.

    T is 1 or W + 1, and `states` (P * T) are the answers' there.
    """
    length = logits.shape[1]
    logits = torch.nn.functional.pad(logits, (0, 0, 0, 0, 0, len(batch.parked)))
    if batch.null is None or batch.image is None:
        return logits.flatten(0, 1)  # all rows are main rows, in the order of the answers
    full, image, null = (logits[rows].flatten(0, 1) for rows in (batch.main, batch.image, batch.null))
    guidance = batch.guidance if length == 1 else batch.window_guidance
    mixed = guided_logits(full, image, null, guidance, states.progress)
    has_contexts = batch.has_contexts.repeat_interleave(length)
    return torch.where((has_contexts & states.in_image)[:, None], mixed, full)


def _where(batch: Any, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Positions and slots (R, W + 1) of a pass. What lies beyond the cache goes to the slot of padding."""
    positions = (batch.position[batch.answer_of] + batch.shift)[:, None] + offsets
    slots = positions if batch.offset is None else positions + batch.offset[:, None]
    return positions, slots if len(offsets) == 1 else slots.clamp_max(batch.cache.slots - 1)


def _sampled(batch: Any, logits: Tensor, states: ModalityState, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """What is sampled at each place of the windows, and the logarithms of its probability: (P, W + 1) each."""
    width = len(offsets)
    left = (batch.token_limit - batch.step_count)[:, None] - offsets
    probable = logits + batch.machine.bias(states, left.flatten(), may_draw(batch, states, offsets))
    if (rules := batch.structured.bias) is not None:
        probable[:, : batch.space.text_size] += rules.repeat_interleave(width, 0)
    numbers = (batch.num_sampled[:, None] + offsets).flatten()
    noise = exponentials(batch.seeds.repeat_interleave(width), numbers, probable.shape[1])
    tokens, log_probs = pick(probable, noise, batch.window_sampling)
    return tokens.view(-1, width), log_probs.view(-1, width)


def _follow(batch: Any, states: ModalityState, tokens: Tensor, taken: Tensor) -> None:
    """Bring what the batch knows of its answers to after the tokens (P, W + 1) that each has taken (P,)."""
    width, last = tokens.shape[1], (taken - 1).clamp_min(0)
    token, moving = tokens.gather(1, last[:, None])[:, 0], taken > 0
    if width > 1:
        states = states.select(torch.arange(len(last), device=last.device) * width + last)
    batch.state = keep_where(moving, batch.machine.advance(states, token), batch.state)
    batch.tokens = torch.where(moving, token, batch.tokens)
    batch.step_count, batch.num_sampled = batch.step_count + taken, batch.num_sampled + taken
    batch.position = batch.position + taken
    batch.state.done = batch.state.done | (batch.step_count >= batch.token_limit)
    batch.has_contexts = batch.has_contexts & batch.state.in_image
