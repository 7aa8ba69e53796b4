"""Which forms there are: one for each way of seeing pictures, under one for each way of drawing them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from data_pipelines.forms.codes import CodesForm
from data_pipelines.forms.form import PictureForm
from data_pipelines.forms.latents import LatentsForm, LatentTemplateConfig
from data_pipelines.forms.patches import PatchesForm
from tokenizers_vq.token_space import TokenSpace

SeenAs = Literal["codes", "patches"]
DrawnAs = Literal["codes", "latents"]
MakeForm = Callable[[TokenSpace, PictureForm, LatentTemplateConfig], PictureForm]

SEEN: dict[SeenAs, Callable[[TokenSpace, int], PictureForm]] = {
    "codes": lambda space, tokens: CodesForm(space),
    "patches": PatchesForm,
}
DRAWN: dict[DrawnAs, MakeForm] = {"codes": lambda space, seen, latents: seen, "latents": LatentsForm}


def picture_form(
    space: TokenSpace, seen: SeenAs, drawn: DrawnAs, latents: LatentTemplateConfig, resampled_tokens: int = 0
) -> PictureForm:
    """The form of pictures that are seen and drawn in these ways; `resampled_tokens` as in TemplateConfig."""
    return DRAWN[drawn](space, SEEN[seen](space, resampled_tokens), latents)
