"""Thinking: a plan in words first, and then the picture, with the plan in its context (BAGEL, arXiv 2505.14683).

    <bos> instruction request <sep> plan  |  <boi> picture <eoi>

It is the form of an answer that speaks and then draws, so either branch can do it, and dialogues teach it. A plan ends
where the model would begin the picture, as it does in training, or by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from data_pipelines.documents import THINKING
from unimodal.generation.checks import check_number
from unimodal.generation.engine import Engine
from unimodal.generation.prompts import Prompt, listed
from unimodal.generation.requests import DecodeConfig, Decoded, Request


@dataclass(frozen=True, kw_only=True)
class ThinkingConfig:
    """`instruction` stands before the prompt; a plan has `token_budget` tokens, at `temperature` (BAGEL: 0.3)."""

    instruction: str = THINKING
    token_budget: int = 64
    temperature: float = 0.3

    def __post_init__(self) -> None:
        check_number("the token budget of a plan", self.token_budget, 1, 2**31, whole=True)
        check_number("the temperature of a plan", self.temperature, 0, 1000)


def instructed(prompts: Sequence[Prompt], config: ThinkingConfig) -> list[Prompt]:
    """Prompts that ask for a plan: the instruction and the words that follow are one string, as in training."""
    return [_instructed(prompt, config.instruction) for prompt in prompts]


def think_then_draw(
    engine: Engine,
    requests: Sequence[Request],
    config: DecodeConfig,
    *,
    batch_size: int,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Decoded]:
    """Answers of a plan and one image. `requests` are for the plans, `config` is for the images.

    Raises ValueError for a config of another mode, and for a prompt that leaves no tokens for plan and image.
    """
    if config.mode != "image":
        raise ValueError(f"thinking ends in a picture: it goes with mode 'image', not {config.mode!r}")
    requests = [_with_token_budget(engine, request) for request in requests]
    plans = engine.decode(requests, rows=batch_size)
    drawing = [_with_plan(request, plan, config) for request, plan in zip(requests, plans, strict=True)]
    drawn = engine.decode(drawing, rows=batch_size, progress=progress)
    return [_joined(plan, image) for plan, image in zip(plans, drawn, strict=True)]


def _instructed(prompt: Prompt, instruction: str) -> Prompt:
    first, *rest = [prompt] if isinstance(prompt, str) else listed(prompt)
    return [instruction + first, *rest] if isinstance(first, str) else [instruction, first, *rest]


def _with_token_budget(engine: Engine, request: Request) -> Request:
    """A plan that leaves tokens for the image. Raises ValueError where there are none for a word of it."""
    budget = min(request.config.max_new_tokens, engine.tokens_before_image(request))
    if budget < 1:
        raise ValueError(
            f"a prompt of {len(request.prompt)} tokens leaves no room for a plan and a picture in a context of "
            f"{engine.model.config.trunk.max_length}"
        )
    return replace(request, config=replace(request.config, max_new_tokens=budget))


def _plan_length(plan: Decoded) -> int:
    """Tokens of a plan without its end, eos or boi."""
    return len(plan.ids) - (plan.finish == "end")


def _with_plan(request: Request, plan: Decoded, config: DecodeConfig) -> Request:
    return replace(request, prompt=[*request.prompt, *plan.ids[: _plan_length(plan)]], config=config)


def _joined(plan: Decoded, image: Decoded) -> Decoded:
    length = _plan_length(plan)
    return replace(image, ids=plan.ids[:length] + image.ids, log_probs=plan.log_probs[:length] + image.log_probs)
