"""What the engine is asked and what it gives back, in ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from torch import Tensor

from tokenizers_vq.layout import Size
from tokenizers_vq.token_space import TokenSpace
from unimodal.generation.checks import check_number
from unimodal.generation.flow_sampling import FlowSamplingConfig
from unimodal.generation.guidance import GuidanceConfig
from unimodal.generation.modality import OUTSIDE, Kind
from unimodal.generation.sampling import SamplingConfig
from unimodal.generation.settings import Mode, check_setting
from unimodal.generation.stochastic_flow import FlowStep, NoiseWindow

Finish = Literal["end", "length", "no room for an image"]
"""Why an answer ended: by itself, at the end of its token budget, or because an image was due that did not fit."""


class Matcher(Protocol):
    """One answer's way through a grammar over its text; images are no business of it, but for boi and eoi."""

    def mask(self) -> Tensor:
        """bool (text_size,): which text ids may come next; of the special ones boi, eoi and eos alone."""
        ...

    def consume(self, token: int) -> None:
        """Advance by one token."""
        ...


class TextGrammar(Protocol):
    """Rules for the text of an answer."""

    def start(self) -> Matcher:
        """A matcher at the beginning of an answer."""
        ...


@dataclass(frozen=True, kw_only=True)
class DecodeConfig:
    """How one answer is decoded.

    `guidance` acts inside images. `image_size` asks for a size of the grid layout, None leaves it to the model.
    `grammar` rules the text (JSON, a list of answers, ...). `constrained=False` switches all rules off. `flow` says how
    a model with the flow branch draws. With `until_image` an answer in text also ends where the model would begin a
    picture, and boi is its last id.
    """

    mode: Mode = "mixed"
    max_new_tokens: int = 128
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
    image_size: Size | None = None
    grammar: TextGrammar | None = None
    constrained: bool = True
    flow: FlowSamplingConfig = field(default_factory=FlowSamplingConfig)
    until_image: bool = False

    def __post_init__(self) -> None:
        for name in ("mode", "max_new_tokens", "constrained"):
            check_setting(name, getattr(self, name))
        if self.grammar is not None and (self.mode == "image" or not self.constrained):
            raise ValueError("a grammar rules text: it goes with mode 'text' or 'mixed' and with constrained decoding")
        if self.until_image and (self.mode != "text" or not self.constrained or self.grammar is not None):
            raise ValueError("until_image goes with mode 'text', constrained and without a grammar")

    def outside(self, *, painted: bool = False) -> Kind:
        """The state of the machine outside images. Where they are `painted`, rules on images cannot be switched off."""
        if not self.constrained and not (painted and self.mode != "text"):
            return Kind.FREE
        if self.grammar is not None:
            return Kind.STRUCTURED
        return Kind.PLAN if self.until_image else OUTSIDE[self.mode]


@dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt, how to answer it, and the seed of its answer.

    `latents` (R, K, C) of the prompt's pictures, in order, are for a model with the flow branch, and `pixels` uint8
    (H, W, 3) for one that sees them through a ViT.
    """

    prompt: Sequence[int]
    config: DecodeConfig
    seed: int = 0
    latents: Sequence[Tensor] = ()
    pixels: Sequence[np.ndarray] = ()
    window: NoiseWindow | None = None
    """Of pictures that a flow draws with noise, in reinforcement learning."""

    def budget(self, context: int) -> int:
        """Tokens that the answer may have."""
        return min(self.config.max_new_tokens, context - len(self.prompt))

    def check(self, space: TokenSpace, context: int) -> None:
        """Raise ValueError for a prompt that is empty or too long, or a drawing that max_new_tokens cannot hold."""
        check_number("a seed", self.seed, -(2**63), 2**63 - 1, whole=True)
        if len(self.prompt) == 0:
            raise ValueError("a prompt is empty")
        check_ids("a prompt", self.prompt, space)
        if len(self.prompt) >= context:
            raise ValueError(f"a prompt of {len(self.prompt)} tokens does not fit a context of {context}")
        sizes = space.layout.sizes if self.config.image_size is None else (self.config.image_size,)
        if not set(sizes) <= set(space.layout.sizes):
            offered = ", ".join(f"{rows}x{columns}" for rows, columns in space.layout.sizes[:12])
            raise ValueError(f"this model draws no images of {sizes[0][0]}x{sizes[0][1]} codes, but {offered}")
        span = min(space.layout.span_of(size) for size in sizes) + 1
        if self.config.mode == "image" and self.config.constrained and self.config.max_new_tokens < span:
            raise ValueError(f"an image and its end take {span} tokens, max_new_tokens is {self.config.max_new_tokens}")


def check_ids(name: str, ids: Sequence[int], space: TokenSpace) -> None:
    """Raise ValueError for ids that the token space does not have."""
    if not 0 <= min(ids) <= max(ids) < space.vocab_size:
        raise ValueError(f"ids lie in 0 to {space.vocab_size - 1}, {name} holds {min(ids)} to {max(ids)}")


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """An answer: its ids with eos where it was generated, the logarithm of the probability of each, and why it ended.

    The flow branch gives its `pictures` (3, H, W) as well; the ids of a picture are then its codes, not what
    was drawn, and their logarithms are 0.
    """

    ids: list[int]
    log_probs: list[float]
    finish: Finish
    pictures: tuple[Tensor, ...] = ()
    steps: tuple[tuple[FlowStep, ...], ...] = ()
    """Of each of these pictures, where the flow was followed with noise."""


@dataclass(frozen=True, kw_only=True)
class Update:
    """News of one request: the ids that it got since the last update, and the whole answer once it has ended."""

    request: int
    ids: list[int]
    pictures: tuple[Tensor, ...] = ()
    """All that the flow branch has drawn for it so far."""
    decoded: Decoded | None = None
