"""Forms of a picture: how it stands in a training sequence, where it is shown and where it is drawn."""

from data_pipelines.forms.codes import CodesForm
from data_pipelines.forms.form import PictureForm, ShownForm
from data_pipelines.forms.latents import CleanLatentsForm, LatentsForm, LatentTemplateConfig
from data_pipelines.forms.patches import PatchesForm

__all__ = [
    "CleanLatentsForm",
    "CodesForm",
    "LatentTemplateConfig",
    "LatentsForm",
    "PatchesForm",
    "PictureForm",
    "ShownForm",
]
