"""Answers in packed rows: a group is a trunk with a branch for each answer, and so are the contexts of guidance.

    main    <bos> prompt         | <sep> answer 1 | <sep> answer 2 | ...      one trunk for all answers of a prompt
    null    <bos> <null>         | <sep> <boi> codes <eoi> | ...              what guidance compares with
    images  <bos> <null> images  | <sep> <boi> codes <eoi> | ...              the same with the prompt's pictures

A prompt runs through the model once for all of its answers. Each token of an answer knows where the features that
predict it lie in up to three contexts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_pipelines.batch import PackedBatch, collate
from data_pipelines.outline import Outline, Rendered, Run
from data_pipelines.packing import best_fit, in_batches
from tokenizers_vq.token_space import TokenSpace
from unimodal.generation.context import Context, Reading, guidance_contexts, read_prompt
from unimodal.generation.guidance import RowGuidance
from unimodal.generation.log_probs import grammar_bias, open_images, states_of_answers, tokens_left
from unimodal.generation.modality import ModalityMachine, ModalityState
from unimodal.generation.requests import Finish, Request
from unimodal.generation.sampling import RowSampling
from unimodal.generation.stochastic_flow import FlowStep

# Shapes: M tokens of all answers of a batch, X text ids.

MAIN, NULL, IMAGES = 0, 1, 2
"""Contexts in which a token of an answer is predicted."""


@dataclass(frozen=True, kw_only=True)
class SampledAnswer:
    """An answer that was sampled: its request, ids, and the log-probability of each when it was drawn.

    `steps` are those of the pictures that a flow has drawn with noise.
    """

    request: Request
    ids: Sequence[int]
    log_probs: Sequence[float]
    finish: Finish = "end"
    steps: tuple[FlowStep, ...] = ()
    group: int = 0
    """Answers of one group have the same prompt, mode and guidance."""

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class _Piece:
    """A packed document of one context, and which stretch of which answer each of its branches predicts."""

    rendered: Rendered
    role: int
    stretches: tuple[tuple[int, int, int], ...]


@dataclass(kw_only=True, eq=False)
class AnswerBatch:
    """Packed rows with some answers; the tensors of tokens are (M,), answer by answer.

    `index` (M, 3) says where in the flattened rows the features lie that predict a token in each context; where a token
    is not guided, all three are the main one. `numbers` are those of its answers among all that were packed; `answers`
    count them from 0 on in this batch.
    """

    packed: PackedBatch
    index: Tensor
    tokens: Tensor
    old: Tensor
    answers: Tensor
    guided: Tensor
    is_guided: bool
    """Whether any token is: known without asking the device."""
    left: Tensor
    states: ModalityState
    sampling: RowSampling
    guidance: RowGuidance
    text_bias: Tensor | None
    """(M, X) of 0 and -inf where any answer has a grammar."""
    numbers: list[int] = field(default_factory=list)

    def map(self, function: Callable[[Tensor], Tensor]) -> AnswerBatch:
        """Every tensor of tokens, (M, ...), through a function; rows and numbers stay."""
        names = ("index", "tokens", "old", "answers", "guided", "left")
        changed: dict[str, Any] = {name: function(getattr(self, name)) for name in names}
        states = {item.name: function(getattr(self.states, item.name)) for item in fields(self.states)}
        return replace(
            self,
            **changed,
            states=ModalityState(**states),
            sampling=self.sampling.map(function),
            guidance=RowGuidance(*map(function, self.guidance)),
            text_bias=None if self.text_bias is None else function(self.text_bias),
        )

    def to(self, device: torch.device) -> AnswerBatch:
        """The same batch on another device."""
        if device.type == "cpu":
            return self
        moved = self.map(lambda tensor: tensor.to(device, non_blocking=True))
        return replace(moved, packed=self.packed.to(device, non_blocking=True))


class AnswerPacker:
    """Packs answers into batches of `rows` rows of `length` tokens."""

    def __init__(self, space: TokenSpace, reading: Reading, *, rows: int, length: int, context: int) -> None:
        """context: tokens that the model can read, which ends an answer as its token budget does."""
        self.space, self.reading, self.rows, self.length, self.context = space, reading, rows, length, context
        self.machine = ModalityMachine(space)

    def batches(self, sampled: Sequence[SampledAnswer], numbers: Sequence[int]) -> Iterator[AnswerBatch]:
        """Batches of these answers, the answers of one prompt beside one another.

        Raises ValueError for an answer that does not fit a row.
        """
        units = self._units(sampled, numbers)
        for pieces in in_batches(units, lambda piece: len(piece.rendered), self.length, self.rows):
            yield self._batch(sampled, pieces)

    def empty(self, like: AnswerBatch) -> AnswerBatch:
        """A batch of padding, for a rank that has none left."""
        packed = collate([], self.length, self.space, num_rows=self.rows)
        return replace(like.map(lambda tensor: tensor[:0]), packed=packed, numbers=[])

    def _units(self, sampled: Sequence[SampledAnswer], numbers: Sequence[int]) -> Iterator[list[_Piece]]:
        """Pieces that have to be in one batch: answers of one prompt, and their contexts of guidance."""
        by_group: dict[int, list[int]] = {}
        for number in numbers:
            by_group.setdefault(sampled[number].group, []).append(number)
        for members in by_group.values():
            request = sampled[members[0]].request
            prompt = read_prompt(request, self.space, self.reading)
            contexts = [prompt, *guidance_contexts(prompt, self.space, request.config.guidance)]
            trunk = max(len(context) for context in contexts) - 1
            for chunk in self._chunks(sampled, members, trunk):
                yield self._pieces(sampled, contexts, chunk)

    def _chunks(self, sampled: Sequence[SampledAnswer], members: Sequence[int], trunk: int) -> Iterator[list[int]]:
        """As many answers as fit a row beside their trunk."""
        chunk, used = list[int](), trunk
        for number in members:
            ids = sampled[number].ids
            needed = len(ids) + 1 + 2 * len(open_images(ids, self.space))
            if trunk + needed > self.length:
                raise ValueError(
                    f"an answer of {len(ids)} tokens after a prompt of {trunk + 1} does not fit a row of "
                    f"{self.length}: set rollouts.length to {trunk + needed} at least"
                )
            if chunk and used + needed > self.length:
                yield chunk
                chunk, used = [], trunk
            chunk.append(number)
            used += needed
        if chunk:
            yield chunk

    def _pieces(
        self, sampled: Sequence[SampledAnswer], contexts: Sequence[Context], numbers: Sequence[int]
    ) -> list[_Piece]:
        roles = {0: MAIN, 1: NULL, 2: IMAGES}
        pieces = []
        for place, context in enumerate(contexts):
            trunk, last = _without_last(context)
            stretches = [
                (number, start, end)
                for number in numbers
                for start, end in self._stretches(sampled[number].ids, main=place == 0)
            ]
            if not stretches:
                continue
            blocks = tuple(
                self._block(last, sampled[number].ids, start, end, main=place == 0) for number, start, end in stretches
            )
            rendered = Outline(tuple(trunk), blocks, branched=True).build()
            pieces.append(_Piece(rendered, roles[place], tuple(stretches)))
        return pieces

    def _stretches(self, ids: Sequence[int], *, main: bool) -> list[tuple[int, int]]:
        return [(0, len(ids))] if main else open_images(ids, self.space)

    def _block(self, last: int, ids: Sequence[int], start: int, end: int, *, main: bool) -> tuple[Run, ...]:
        """A branch: the last token of the context, <boi> where it draws an image apart, and the ids to predict."""
        before = [last] if main else [last, self.space.specials.boi]
        return (Run(np.array(before), 0.0), Run(np.asarray(ids[start:end]), 1.0))

    # -- one batch

    def _batch(self, sampled: Sequence[SampledAnswer], pieces: Sequence[_Piece]) -> AnswerBatch:
        rows = best_fit([len(piece.rendered) for piece in pieces], self.length)
        placed = [[pieces[number] for number in row] for row in rows]
        packed = collate([[piece.rendered for piece in row] for row in placed], self.length, self.space, self.rows)
        flat = packed.loss_weights.flatten().nonzero().squeeze(-1)
        members = list(dict.fromkeys(n for piece in pieces if piece.role == MAIN for n, _, _ in piece.stretches))
        firsts = dict(zip(members, np.cumsum([0, *(len(sampled[n]) for n in members)]).tolist(), strict=False))
        total = sum(len(sampled[number]) for number in members)
        index, taken = torch.full((3, total), -1, dtype=torch.int64), 0
        for piece in (piece for row in placed for piece in row):
            for number, start, end in piece.stretches:
                first = firsts[number]
                index[piece.role, first + start : first + end] = flat[taken : taken + end - start]
                taken += end - start
        guided = index[NULL] >= 0
        index[NULL] = torch.where(guided, index[NULL], index[MAIN])
        index[IMAGES] = torch.where(index[IMAGES] >= 0, index[IMAGES], index[NULL])
        index = index.T.contiguous()
        return self._with_tokens([sampled[number] for number in members], members, packed, index, guided)

    def _with_tokens(
        self, chosen: Sequence[SampledAnswer], members: list[int], packed: PackedBatch, index: Tensor, guided: Tensor
    ) -> AnswerBatch:
        requests, answers = [each.request for each in chosen], [each.ids for each in chosen]
        configs, lengths = [request.config for request in requests], [len(ids) for ids in answers]
        states = states_of_answers(self.machine, configs, answers)
        budgets = [self._budget(request) for request in requests]
        left = [tokens_left(budget, length) for budget, length in zip(budgets, lengths, strict=True)]
        repeated = [config for config, length in zip(configs, lengths, strict=True) for _ in range(length)]
        return AnswerBatch(
            packed=packed,
            index=index,
            tokens=torch.tensor([token for ids in answers for token in ids], dtype=torch.int64),
            old=torch.tensor([value for each in chosen for value in each.log_probs], dtype=torch.float64),
            answers=torch.repeat_interleave(torch.arange(len(chosen)), torch.tensor(lengths)),
            guided=guided,
            is_guided=bool(guided.any()),
            left=torch.cat(left),
            states=states,
            sampling=RowSampling.of([config.sampling for config in repeated]),
            guidance=RowGuidance.of([config.guidance for config in repeated]),
            text_bias=self._text_bias(requests, answers, states, left),
            numbers=members,
        )

    def _budget(self, request: Request) -> int:
        read = len(read_prompt(request, self.space, self.reading))
        return min(request.config.max_new_tokens, self.context - read)

    def _text_bias(
        self,
        requests: Sequence[Request],
        answers: Sequence[Sequence[int]],
        states: ModalityState,
        left: Sequence[Tensor],
    ) -> Tensor | None:
        if not any(request.config.grammar for request in requests):
            return None
        found, start = [], 0
        for request, ids, budget in zip(requests, answers, left, strict=True):
            alone = states.select(torch.arange(start, start + len(ids)))
            nothing = torch.zeros(len(ids), self.space.text_size)
            ruled = request.config.grammar is not None
            found.append(grammar_bias(self.machine, request, ids, alone, budget) if ruled else nothing)
            start += len(ids)
        return torch.cat(found)


def _without_last(context: Context) -> tuple[list[Run], int]:
    """The runs of a context but for its last id, which every answer continues; and that id."""
    *runs, last = context.runs
    if last.media is not None:
        raise ValueError("a prompt ends with an id, not with a picture")
    rest = last._replace(ids=last.ids[:-1])
    return [*runs, rest] if len(rest.ids) else list(runs), int(last.ids[-1])
