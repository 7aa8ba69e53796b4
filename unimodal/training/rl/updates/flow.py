"""The update of pictures that a flow has drawn: its noisy steps are the actions (Flow-GRPO, arXiv 2505.05470)."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from data_pipelines.batch import PackedBatch, collate
from data_pipelines.outline import Outline, Rendered, RunMedia, media_run
from data_pipelines.packing import best_fit, in_batches
from tokenizers_vq.media import LATENTS
from tokenizers_vq.token_space import TokenSpace
from unimodal.generation.answer_rows import SampledAnswer
from unimodal.generation.context import Reading, read_prompt
from unimodal.generation.sampling import exact
from unimodal.generation.stochastic_flow import FlowStep, StepTime, log_prob, step_mean
from unimodal.model.branches.base import MediaBatch
from unimodal.model.model import VELOCITY, UnifiedModel
from unimodal.training.rl.losses.base import TokenRatios
from unimodal.training.rl.losses.divergence import kl_penalty
from unimodal.training.rl.prompts.base import Prompts
from unimodal.training.rl.statistics import Sums
from unimodal.training.rl.updates.base import RolloutUpdate, UpdateConfig, log_ratios, with_all_heads

# Shapes: M steps of all pictures of a batch, N latents of a picture, C numbers of a latent.


def draws_by_flow(branches: Container[str], kinds: Sequence[Prompts], config: UpdateConfig) -> bool:
    """Whether the pictures of a run are drawn by a flow, and its steps are what is learnt.

    Raises ValueError for prompts whose answers would have steps and tokens, for pictures that are drawn without noise
    or with guidance, and for what steps do not have.
    """
    settings = [kind.settings for kind in kinds]
    if LATENTS not in branches or all(each.mode == "text" for each in settings):
        return False
    if any(each.mode != "image" for each in settings):
        raise ValueError("this model draws by flow: a run has either pictures alone or words alone for answers")
    if not all(each.noise for each in settings):
        raise ValueError("a flow that is followed without noise has no probability: set decode.noise, 0.7 say")
    if any(each.guidance != 1 or each.image_guidance not in (None, 1) for each in settings):
        raise ValueError("steps of a flow are learnt without guidance: leave out decode.guidance")
    if config.value is not None or config.entropy:
        raise ValueError("steps of a flow have neither values nor an entropy of their own: leave out value and entropy")
    return True


def flow_velocities(
    media_of: Callable[[PackedBatch], MediaBatch],
    features_of: Callable[[UnifiedModel, PackedBatch, MediaBatch], Tensor],
) -> Velocities:
    """Velocities by a forward pass over packed rows whose noised latents are at their own times."""

    def velocities(model: UnifiedModel, batch: FlowBatch) -> Tensor:
        media, times = media_of(batch.packed), batch.at.time
        tokens, count = media[LATENTS], batch.before.shape[1]
        of_tokens = times.new_zeros(len(tokens.index), dtype=torch.float32)
        of_tokens = of_tokens.index_copy(0, batch.noised, times.float()[:, None].expand(-1, count).flatten())
        media = {**media, LATENTS: tokens._replace(times=of_tokens)}
        features = with_all_heads(model, features_of(model, batch.packed, media))
        drawn = features.flatten(0, 1)[tokens.index[batch.noised]]
        return exact(model.heads[VELOCITY](drawn)).view(batch.before.shape)

    return velocities


TENSORS = ("noised", "before", "after", "old", "answers")
"""Of a FlowBatch, its times apart."""


@dataclass(kw_only=True, eq=False)
class FlowBatch:
    """Packed rows with noised pictures, and the step that each of them is taken from."""

    packed: PackedBatch
    noised: Tensor
    """(M * N,): which latents of the rows are noised; those of a prompt's pictures are not."""
    at: StepTime
    """Tensors (M,)."""
    before: Tensor
    after: Tensor
    """(M, N, C): latents on both sides of a step."""
    old: Tensor
    """(M,): log-probabilities when the steps were drawn."""
    answers: Tensor
    numbers: list[int] = field(default_factory=list)

    def to(self, device: torch.device) -> FlowBatch:
        """The same batch on another device."""
        if device.type == "cpu":
            return self
        tensors = {name: getattr(self, name).to(device) for name in TENSORS}
        at = StepTime(*(each.to(device) for each in self.at))
        return replace(self, packed=self.packed.to(device), at=at, **tensors)


Velocities = Callable[[UnifiedModel, FlowBatch], Tensor]
"""Velocities (M, N, C) of a batch's noised pictures under a model, float32 at least."""


class _Piece(NamedTuple):
    """A document of one prompt, and the answer and step of each of its noised pictures."""

    rendered: Rendered
    steps: list[tuple[int, FlowStep]]


class FlowPacker:
    """Packs steps of pictures behind their prompts: a prompt is a trunk, each step a branch with the noised picture."""

    def __init__(self, space: TokenSpace, reading: Reading, grid: tuple[int, int], *, rows: int, length: int) -> None:
        """grid: rows and columns of latents of a picture."""
        self.space, self.reading, self.grid, self.rows, self.length = space, reading, grid, rows, length

    def batches(self, sampled: Sequence[SampledAnswer], numbers: Sequence[int]) -> Iterator[FlowBatch]:
        """Batches of these answers' steps. Raises ValueError for a picture that does not fit a row."""
        pieces = ([piece] for piece in self._pieces(sampled, numbers))
        for held in in_batches(pieces, lambda piece: len(piece.rendered), self.length, self.rows):
            yield self._batch(held)

    def empty(self, like: FlowBatch) -> FlowBatch:
        """A batch of padding, for a rank that has none left."""
        packed = collate([], self.length, self.space, num_rows=self.rows)
        none = {name: getattr(like, name)[:0] for name in TENSORS}
        return replace(like, packed=packed, at=StepTime(*(each[:0] for each in like.at)), numbers=[], **none)

    def _pieces(self, sampled: Sequence[SampledAnswer], numbers: Sequence[int]) -> Iterator[_Piece]:
        """Documents, as many steps of one prompt's answers in each as a row takes."""
        by_group: dict[int, list[tuple[int, FlowStep]]] = {}
        for number in numbers:
            steps = by_group.setdefault(sampled[number].group, [])
            steps += [(number, step) for step in sampled[number].steps]
        for steps in filter(None, by_group.values()):
            prompt = read_prompt(sampled[steps[0][0]].request, self.space, self.reading)
            taken = self.grid[0] * self.grid[1] + 2
            fitting = (self.length - len(prompt)) // taken
            if fitting < 1:
                raise ValueError(
                    f"a picture of {taken} tokens after a prompt of {len(prompt)} does not fit a row of {self.length}: "
                    f"set rollouts.length to {len(prompt) + taken} at least"
                )
            for start in range(0, len(steps), fitting):
                chosen = steps[start : start + fitting]
                blocks = []
                for _, step in chosen:
                    values = step.before.cpu().unflatten(0, self.grid).numpy()
                    blocks.append((media_run(RunMedia(LATENTS, values, "noised"), self.space, 0.0),))
                yield _Piece(Outline(tuple(prompt.runs), tuple(blocks), branched=True).build(), chosen)

    def _batch(self, held: Sequence[_Piece]) -> FlowBatch:
        rows = best_fit([len(piece.rendered) for piece in held], self.length)
        packed = collate([[held[place].rendered for place in row] for row in rows], self.length, self.space, self.rows)
        steps = [pair for row in rows for place in row for pair in held[place].steps]
        members = list(dict.fromkeys(number for number, _ in steps))
        times = torch.tensor([step.at for _, step in steps], dtype=torch.float64)
        return FlowBatch(
            packed=packed,
            noised=(packed.media[LATENTS].spans < 0).nonzero().flatten(),
            at=StepTime(*times.unbind(1)),
            before=torch.stack([step.before for _, step in steps]).cpu(),
            after=torch.stack([step.after for _, step in steps]).cpu(),
            old=torch.tensor([step.log_prob for _, step in steps], dtype=torch.float64),
            answers=torch.tensor([members.index(number) for number, _ in steps]),
            numbers=members,
        )


@dataclass(kw_only=True)
class FlowUpdate(RolloutUpdate):
    """Losses of the noisy steps of pictures: each step is to the loss what a token is of an answer in ids."""

    velocities: Velocities

    def lengths(self, numbers: Sequence[int]) -> list[int]:
        """See `RolloutUpdate`: the steps that are learnt."""
        return [len(self.rollout.trajectories[number].steps) for number in numbers]

    def loss(self, model: UnifiedModel, batch: FlowBatch, sums: Sums) -> Tensor:
        """See `RolloutUpdate`."""
        velocity = self.velocities(model, batch)
        at = StepTime(*(each[:, None, None].to(velocity.dtype) for each in batch.at))
        before, after = batch.before.to(velocity.dtype), batch.after.to(velocity.dtype)
        mean = step_mean(before, velocity, at)
        log_probs = log_prob(after, mean, at.deviation)
        advantages = self.of_tokens(self.advantages[batch.numbers], batch, log_probs)
        tokens = TokenRatios(log_probs, batch.old.to(log_probs.dtype), advantages, batch.answers)
        found = self.config.loss.of(tokens)
        log_ratios(tokens, found, sums)
        losses = found.losses
        if self.config.kl is not None:
            losses = losses + self._penalties(mean, log_probs, batch, at, sums)
        return self.weighted(losses, batch)

    def _penalties(self, mean: Tensor, log_probs: Tensor, batch: FlowBatch, at: StepTime, sums: Sums) -> Tensor:
        """(M,) of the distance from the reference; exact: two Gaussians of one deviation."""
        assert self.config.kl is not None and self.reference is not None
        with torch.no_grad():
            velocity = self.velocities(self.reference, batch)
            other = step_mean(batch.before.to(mean.dtype), velocity.to(mean.dtype), at)
        divergence = ((mean - other) / at.deviation).square().mean((-2, -1)) / 2
        sums.add("kl_image", divergence)
        if self.config.kl.estimator == "exact":
            return self.config.kl.image * divergence
        of_reference = log_prob(batch.after.to(mean.dtype), other, at.deviation)
        return self.config.kl.image * kl_penalty(log_probs, of_reference, self.config.kl.estimator)
