"""Pictures as patches that a ViT sees."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from data_pipelines.forms.codes import CodesForm
from data_pipelines.forms.form import ShownForm, media_values
from data_pipelines.outline import Run, RunMedia, media_run
from data_pipelines.shards.format import TokenSegment
from tokenizers_vq.media import PATCHES
from tokenizers_vq.token_space import TokenSpace


@dataclass(frozen=True)
class PatchesForm:
    """Shown as `<boi> patches <eoi>`, which nothing predicts; drawn as codes, by which it is also seen later."""

    space: TokenSpace

    def shown(self, picture: TokenSegment, weight: float, *, followed: bool) -> tuple[Run, ...]:
        del weight, followed
        return (media_run(RunMedia(PATCHES, media_values(picture, PATCHES), "clean"), self.space, 0.0),)

    def drawn(self, picture: TokenSegment, weight: float, *, followed: bool) -> tuple[Run, ...]:
        return CodesForm(self.space).drawn(picture, weight, followed=followed)

    def whole(self, random: Random) -> bool:
        del random
        return False

    def source(self, random: Random) -> ShownForm:
        del random
        return self
