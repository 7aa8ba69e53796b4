"""Pictures as patches that a ViT sees."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np

from data_pipelines.deferred import Deferred
from data_pipelines.forms.codes import CodesForm
from data_pipelines.forms.form import ShownForm, media_values
from data_pipelines.outline import Run, RunMedia, media_run
from data_pipelines.shards.format import TokenSegment
from tokenizers_vq.folded_patches import HEADER, fold_patches
from tokenizers_vq.media import PATCHES
from tokenizers_vq.token_space import TokenSpace


@dataclass(frozen=True)
class PatchesForm:
    """Shown as `<boi> patches <eoi>`, which nothing predicts; drawn as codes, by which it is also seen later.

    With `tokens` a picture takes so many, whatever its shape.
    """

    space: TokenSpace
    tokens: int = 0

    def shown(self, picture: TokenSegment, weight: float, *, followed: bool) -> tuple[Run, ...]:
        del weight, followed
        return (media_run(RunMedia(PATCHES, self._values(picture), "clean"), self.space, 0.0),)

    def _values(self, picture: TokenSegment) -> Any:
        """Patches as they are, or shared by a fixed number of tokens, in either case made when they are read."""
        values = media_values(picture, PATCHES)
        if not self.tokens:
            return values
        rows, columns, width = values.shape
        shape = (1, self.tokens, HEADER + -(-rows * columns // self.tokens) * width)
        return Deferred(shape, lambda: fold_patches(np.asarray(values), self.tokens))

    def drawn(self, picture: TokenSegment, weight: float, *, followed: bool) -> tuple[Run, ...]:
        return CodesForm(self.space).drawn(picture, weight, followed=followed)

    def whole(self, random: Random) -> bool:
        del random
        return False

    def source(self, random: Random) -> ShownForm:
        del random
        return self
