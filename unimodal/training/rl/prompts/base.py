"""A prompt for reinforcement learning, and where prompts come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from unimodal.generation.prompts import Prompt, listed
from unimodal.generation.settings import DecodeSettings


@dataclass(frozen=True, kw_only=True)
class RLPrompt:
    """What is asked, and the facts that rewards read. `name` tells it from all others; pictures may be made late."""

    name: str
    prompt: Prompt
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def words(self) -> str:
        """Its words, as a scorer reads them."""
        parts = [self.prompt] if isinstance(self.prompt, str) else listed(self.prompt)
        return " ".join(part for part in parts if isinstance(part, str))

    @property
    def pictures(self) -> list[Image.Image]:
        """Those that it shows."""
        parts = [] if isinstance(self.prompt, str) else listed(self.prompt)
        return [part for part in parts if isinstance(part, Image.Image)]


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """Prompts of one kind, the rewards that their answers get with a weight for each, and how they are answered.

    `rewards`: names of the run's rewards. `weight`: how often prompts of this kind are drawn beside others. `decode`:
    settings of `generate`, temperature or guidance say; both sides, sampling and training, take them from here. A
    subclass is one file, registered by being named in a config.
    """

    rewards: dict[str, float]
    weight: float = 1.0
    decode: dict[str, Any] = field(default_factory=dict)

    mode = "mixed"
    """The mode of answers that `decode` does not name."""

    def __post_init__(self) -> None:
        if not self.rewards or not any(self.rewards.values()):
            raise ValueError("prompts need at least one reward with a weight that is not 0")
        if self.weight <= 0:
            raise ValueError(f"the weight of prompts is above 0, got {self.weight}")
        if self.settings.temperature == 0:
            raise ValueError("answers are sampled: a temperature of 0 leaves nothing to learn from")

    @property
    def settings(self) -> DecodeSettings:
        """How they are answered. Raises ValueError for settings that there are not."""
        given = {"mode": self.mode, "guidance": 1.0, **self.decode}
        try:
            return DecodeSettings(**given)
        except TypeError as error:
            raise ValueError(f"decode: {error}") from error

    @property
    def kind(self) -> str:
        """What metrics call them."""
        return type(self).__name__.lower()

    def open(self) -> Sequence[RLPrompt]:
        """All of them. Raises ValueError where there is none."""
        raise NotImplementedError
