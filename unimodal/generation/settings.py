"""DecodeSettings: all settings of an answer that a user may choose, defined once.

Command-line options, prompt files, the keyword arguments of `Pipeline.generate` and the settings of an evaluation are
made from its fields: a new field is a new setting at each of these doors. This module needs no torch, so that
`unimodal --help` is quick.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field, fields
from typing import Any, Literal

from unimodal.generation.checks import check_choice, check_number

Mode = Literal["text", "image", "mixed"]
MODES: tuple[Mode, ...] = ("text", "image", "mixed")
Schedule = Literal["constant", "linear", "cosine"]
SCHEDULES: tuple[Schedule, ...] = ("constant", "linear", "cosine")
Solver = Literal["euler", "heun"]
SOLVERS: tuple[Solver, ...] = ("euler", "heun")
Renorm = Literal["none", "global", "channel", "text_channel"]
RENORMS: tuple[Renorm, ...] = ("none", "global", "channel", "text_channel")

HUGE = 2**31


@dataclass(frozen=True, kw_only=True)
class Setting:
    """About a field: what errors call it, help for a reader, and which values it takes.

    `choices` are names; else it is a number from `low` to `high`, a `whole` one or not, or true or false.
    `flow` settings are for models with a flow branch. A setting that is no `option` is for Python alone.
    """

    title: str
    help: str
    choices: tuple[str, ...] = ()
    low: float = 0
    high: float = HUGE
    whole: bool = False
    truth: bool = False
    flow: bool = False
    option: bool = True

    @property
    def type(self) -> type[str] | type[int] | type[float] | type[bool]:
        """Of its values."""
        return bool if self.truth else str if self.choices else int if self.whole else float

    def check(self, value: object) -> None:
        """Raise ValueError, with title and value, for a value that it does not take."""
        if self.truth and not isinstance(value, bool):
            raise ValueError(f"{self.title} is true or false, got {value!r:.60}")
        if self.choices:
            check_choice(self.title, value, self.choices)
        elif not self.truth and self.option:
            check_number(self.title, value, self.low, self.high, whole=self.whole)


def _about(title: str, help: str, **more: Any) -> dict[str, Setting]:
    return {"setting": Setting(title=title, help=help, **more)}


@dataclass(frozen=True)
class DecodeSettings:
    """How one answer is decoded, as users say it. None leaves a choice to the model.

    `guidance` compares a prompt with none inside images (1: no guidance), `image_guidance` its images apart from its
    words. The settings from `steps` on are those of the flow branch (generation/flow_sampling.py). `grammar` rules the
    text: a JSON schema, a list of answers, Lark as a string, or a class of generation/grammars.py. What an answer
    cannot have with a given model is refused by `decode_config` (generation/resolve.py).
    """

    mode: Mode = field(default="mixed", metadata=_about("the mode", "what an answer may hold", choices=MODES))
    max_new_tokens: int | None = field(
        default=None,
        metadata=_about(
            "max_new_tokens", "token budget of an answer; an image and some text if absent", low=1, whole=True
        ),
    )
    temperature: float = field(
        default=1.0, metadata=_about("the temperature", "0 takes the likeliest token", high=10_000)
    )
    top_p: float = field(
        default=1.0, metadata=_about("top_p", "sample from the likeliest tokens of this mass", low=1e-6, high=1)
    )
    top_k: int = field(
        default=0, metadata=_about("top_k", "sample from that many likeliest tokens; 0 is all", whole=True)
    )
    guidance: float = field(
        default=2.0, metadata=_about("the guidance scale", "of the prompt, inside images; 1 is none", high=1000)
    )
    _: KW_ONLY
    image_guidance: float | None = field(
        default=None,
        metadata=_about(
            "the guidance scale of images", "guidance of the prompt's images apart from its words", high=1000
        ),
    )
    guidance_schedule: Schedule = field(
        default="constant",
        metadata=_about("the guidance schedule", "how guidance grows over an image", choices=SCHEDULES),
    )
    aspect_ratio: float | None = field(
        default=None,
        metadata=_about("an aspect ratio", "width by height of images, of several sizes", low=1e-3, high=1000),
    )
    constrained: bool = field(
        default=True, metadata=_about("constrained", "keep images whole and grammars kept", truth=True)
    )
    grammar: Any = field(default=None, metadata=_about("a grammar", "rules of the text", option=False))
    steps: int | None = field(
        default=None,
        metadata=_about("the number of steps", "from noise to an image", low=1, high=10_000, whole=True, flow=True),
    )
    solver: Solver | None = field(
        default=None,
        metadata=_about("the solver", "of the flow's equation", choices=SOLVERS, flow=True),
    )
    shift: float | None = field(
        default=None,
        metadata=_about("the shift of times", "of steps towards noise", low=1e-3, high=1000, flow=True),
    )
    guidance_from: float | None = field(
        default=None, metadata=_about("guidance_from", "guidance acts at times above this", high=1, flow=True)
    )
    guidance_to: float | None = field(
        default=None, metadata=_about("guidance_to", "guidance acts at times up to this", high=1, flow=True)
    )
    renorm: Renorm | None = field(
        default=None,
        metadata=_about("renorm", "keep guided velocities as long as plain ones", choices=RENORMS, flow=True),
    )
    renorm_min: float | None = field(
        default=None, metadata=_about("renorm_min", "share of their length that renorm leaves", high=1, flow=True)
    )
    noise: float | None = field(
        default=None, metadata=_about("the noise", "added at every step of the flow; 0 is none", high=100, flow=True)
    )

    def __post_init__(self) -> None:
        for name in SETTINGS:
            if (value := getattr(self, name)) is not None or getattr(DecodeSettings, name) is not None:
                check_setting(name, value)


SETTINGS: dict[str, Setting] = {each.name: each.metadata["setting"] for each in fields(DecodeSettings)}
"""What there is to set, by name."""
OPTIONS: tuple[str, ...] = tuple(name for name, setting in SETTINGS.items() if setting.option)
"""Settings that can be written in a command line or a prompt file."""


def check_setting(name: str, value: object) -> None:
    """Raise ValueError, with name and value, for what a setting does not take."""
    SETTINGS[name].check(value)


def chosen(settings: DecodeSettings) -> dict[str, Any]:
    """Keyword arguments that say the same; choices left to the model are omitted."""
    values = {each.name: getattr(settings, each.name) for each in fields(settings)}
    return {name: value for name, value in values.items() if value is not None}
