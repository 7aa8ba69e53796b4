"""Pictures that the flow branch draws: in latents, beside the representation by which they are understood."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Literal

from data_pipelines.forms.form import ShownForm, media_values
from data_pipelines.outline import Run, RunMedia, media_run
from data_pipelines.shards.format import TokenSegment
from tokenizers_vq.media import LATENTS
from tokenizers_vq.token_space import TokenSpace


@dataclass(frozen=True, kw_only=True)
class LatentTemplateConfig:
    """How pictures are formatted for the flow branch (docs/flow.md).

    A drawn picture is noised latents; where the sequence continues, clean latents and what is understood (codes or
    patches) follow. A shown picture is clean latents and what is understood; for questions and captions the latter
    alone. A fraction `whole` of the drawings is followed by the picture and <eos>, and of the questions has the clean
    latents, so that training covers the contexts seen when generation continues after an image.
    `drop_clean` and `drop_codes` of the edits drop one of the two representations, so that the model does not rely on
    one of them.
    """

    drop_clean: float = 0.1
    drop_codes: float = 0.3
    whole: float = 0.1

    def __post_init__(self) -> None:
        if not all(0 <= share <= 1 for share in (self.drop_clean, self.drop_codes, self.whole)):
            raise ValueError(f"shares lie between 0 and 1, got {self}")


def latent_run(picture: TokenSegment, state: Literal["clean", "noised"], space: TokenSpace, weight: float) -> Run:
    """The run of a picture's latents; `weight` is that of boi. Raises ValueError where the shards hold none."""
    return media_run(RunMedia(LATENTS, media_values(picture, LATENTS), state), space, weight)


@dataclass(frozen=True)
class LatentsForm:
    """Drawn in latents, understood in another form."""

    space: TokenSpace
    understood: ShownForm
    config: LatentTemplateConfig

    def shown(self, picture: TokenSegment, weight: float, *, followed: bool) -> tuple[Run, ...]:
        clean = (latent_run(picture, "clean", self.space, 0.0),) if followed else ()
        return (*clean, *self.understood.shown(picture, weight, followed=followed))

    def drawn(self, picture: TokenSegment, weight: float, *, followed: bool) -> tuple[Run, ...]:
        noised = latent_run(picture, "noised", self.space, weight)
        return (noised, *(self.shown(picture, 0.0, followed=True) if followed else ()))

    def whole(self, random: Random) -> bool:
        return random.random() < self.config.whole

    def source(self, random: Random) -> ShownForm:
        """At most one of the two representations is dropped."""
        if random.random() < self.config.drop_clean:
            return self.understood
        return CleanLatentsForm(self.space) if random.random() < self.config.drop_codes else self


@dataclass(frozen=True)
class CleanLatentsForm:
    """Shown in clean latents alone."""

    space: TokenSpace

    def shown(self, picture: TokenSegment, weight: float, *, followed: bool) -> tuple[Run, ...]:
        del weight, followed
        return (latent_run(picture, "clean", self.space, 0.0),)
