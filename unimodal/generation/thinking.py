"""Thinking: a plan in words first, and then the picture, with the plan in its context (BAGEL, arXiv 2505.14683).

    <bos> instruction request <sep> plan  |  <boi> picture <eoi>

It is the form of an answer that speaks and then draws, so either branch can do it, and dialogues teach it. A plan ends
where the model would begin the picture, as it does in training, or by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from data_pipelines.documents import THINKING
from unimodal.generation.prompts import Answer, Prompt, listed
from unimodal.generation.requests import DecodeConfig, Decoded, Request
from unimodal.generation.settings import check_number

if TYPE_CHECKING:
    from unimodal.generation.pipeline import Pipeline


@dataclass(frozen=True, kw_only=True)
class ThinkingConfig:
    """`instruction` stands before the prompt; a plan has at most `room` tokens, drawn at `temperature` (BAGEL: 0.3)."""

    instruction: str = THINKING
    room: int = 64
    temperature: float = 0.3

    def __post_init__(self) -> None:
        check_number("the room of a plan", self.room, 1, 2**31, whole=True)
        check_number("the temperature of a plan", self.temperature, 0, 1000)


def think_then_draw(
    pipeline: Pipeline,
    prompts: Sequence[Prompt],
    config: DecodeConfig,
    thinking: ThinkingConfig,
    *,
    seed: int = 0,
    batch_size: int,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Answer]:
    """Answers of a plan and one picture; `config` is that of the picture. Raises ValueError for another mode."""
    if config.mode != "image":
        raise ValueError(f"thinking ends in a picture: it goes with mode 'image', not {config.mode!r}")
    words = replace(pipeline.decode_config("text", thinking.room, thinking.temperature), until_image=True)
    told = [_instructed(prompt, thinking.instruction) for prompt in prompts]
    requests = [_with_room(pipeline, request) for request in pipeline.requests(told, words, seed)]
    plans = pipeline.engine.decode(requests, rows=batch_size)
    drawing = [_with_plan(request, plan, config) for request, plan in zip(requests, plans, strict=True)]
    drawn = pipeline.engine.decode(drawing, rows=batch_size, progress=progress)
    return pipeline.finished([_joined(plan, picture) for plan, picture in zip(plans, drawn, strict=True)])


def _instructed(prompt: Prompt, instruction: str) -> Prompt:
    """One string with the words that follow, as in training."""
    first, *rest = [prompt] if isinstance(prompt, str) else listed(prompt)
    return [instruction + first, *rest] if isinstance(first, str) else [instruction, first, *rest]


def _with_room(pipeline: Pipeline, request: Request) -> Request:
    """A plan that leaves room for the picture. Raises ValueError where there is none for a word of it."""
    room = min(request.config.max_new_tokens, pipeline.engine.tokens_before_image(request))
    if room < 1:
        raise ValueError(
            f"a prompt of {len(request.prompt)} tokens leaves no room for a plan and a picture in a context of "
            f"{pipeline.model.config.trunk.max_length}"
        )
    return replace(request, config=replace(request.config, max_new_tokens=room))


def _said(plan: Decoded) -> int:
    """Tokens of a plan without its end, eos or boi."""
    return len(plan.ids) - (plan.finish == "end")


def _with_plan(request: Request, plan: Decoded, config: DecodeConfig) -> Request:
    return replace(request, prompt=[*request.prompt, *plan.ids[: _said(plan)]], config=config)


def _joined(plan: Decoded, picture: Decoded) -> Decoded:
    said = _said(plan)
    return replace(picture, ids=plan.ids[:said] + picture.ids, log_probs=plan.log_probs[:said] + picture.log_probs)
