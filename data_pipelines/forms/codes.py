"""Pictures as the codes of the image tokenizer: one representation, in which they are shown and drawn alike."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from data_pipelines.forms.form import ShownForm
from data_pipelines.outline import Run, single
from data_pipelines.shards.format import TokenSegment
from tokenizers_vq.token_space import TokenSpace


@dataclass(frozen=True)
class CodesForm:
    """`<boi> codes <eoi>`, each of them predicted."""

    space: TokenSpace

    def shown(self, picture: TokenSegment, weight: float, *, followed: bool) -> tuple[Run, ...]:
        del followed
        specials = self.space.specials
        return single(specials.boi, weight), Run(picture.ids, weight), single(specials.eoi, weight)

    def drawn(self, picture: TokenSegment, weight: float, *, followed: bool) -> tuple[Run, ...]:
        return self.shown(picture, weight, followed=followed)

    def whole(self, random: Random) -> bool:
        del random
        return False

    def source(self, random: Random) -> ShownForm:
        del random
        return self
