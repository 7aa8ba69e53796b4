"""What a user says about an answer, and a model -> how that answer is decoded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

from tokenizers_vq.layout import FixedLayout, Layout, Size, nearest_size
from tokenizers_vq.media import LATENTS
from unimodal.bundle import Bundle
from unimodal.generation.flow_sampling import FlowSamplingConfig
from unimodal.generation.grammars import AnyGrammar, CompiledGrammar
from unimodal.generation.guidance import GuidanceConfig
from unimodal.generation.requests import DecodeConfig
from unimodal.generation.sampling import SamplingConfig
from unimodal.generation.settings import DecodeSettings

TEXT_BUDGET = 32
"""Tokens that an answer may have beside one image, if max_new_tokens is not set."""
STRUCTURED_BUDGET = 256
"""The same for an answer under a grammar."""


def decode_config(
    settings: DecodeSettings, bundle: Bundle, compiled: Callable[[AnyGrammar], CompiledGrammar]
) -> DecodeConfig:
    """How a bundle's model decodes under these settings; `compiled` compiles a grammar for its text tokenizer.

    Raises ValueError for what makes no sense or what this model cannot do.
    """
    layout, mode = bundle.space.layout, settings.mode
    flow = {field.name: getattr(settings, field.name) for field in fields(FlowSamplingConfig)}
    flow = {name: value for name, value in flow.items() if value is not None}
    if flow and LATENTS not in bundle.model.branches:
        raise ValueError(f"{', '.join(flow)}: settings of the flow branch, and this model has none")
    if mode != "text" and bundle.tokenizers.image is None:
        raise ValueError(f"mode {mode!r} draws, but this model has no image tokenizer: use mode 'text'")
    grammar = None if settings.grammar is None else compiled(settings.grammar)
    if grammar is not None and grammar.draws and mode == "text":
        raise ValueError("this grammar wants pictures: they need mode 'mixed', not 'text'")
    beside = 1 if mode == "image" else TEXT_BUDGET if grammar is None else STRUCTURED_BUDGET
    budget = layout.span + beside if settings.max_new_tokens is None else settings.max_new_tokens
    return DecodeConfig(
        mode=mode,
        max_new_tokens=budget,
        sampling=SamplingConfig(temperature=settings.temperature, top_p=settings.top_p, top_k=settings.top_k),
        guidance=GuidanceConfig(
            scale=settings.guidance, image_scale=settings.image_guidance, schedule=settings.guidance_schedule
        ),
        image_size=None if settings.aspect_ratio is None else _image_size(settings.aspect_ratio, layout),
        grammar=grammar,
        constrained=settings.constrained,
        flow=FlowSamplingConfig(**flow),
    )


def _image_size(ratio: float, layout: Layout) -> Size:
    if isinstance(layout, FixedLayout):
        raise ValueError(f"this model draws {layout.rows}x{layout.columns} codes and no other size")
    return nearest_size(layout, 1, ratio)
