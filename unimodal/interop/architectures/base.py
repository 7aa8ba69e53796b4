"""What an architecture of transformers says of itself. Import and export know nothing else of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from unimodal.model.config import ModelConfig


class TheirConfig(NamedTuple):
    """A config.json: the fields as they are written, and as the class of their config completes them."""

    written: Mapping[str, Any]
    whole: Any


class Architecture(Protocol):
    """One model type of transformers. `registry.ARCHITECTURES` lists those that there are."""

    model_type: str
    """As config.json names it."""
    opened_by: str
    """The class of transformers whose `from_pretrained` a user calls."""
    skipped: tuple[str, ...]
    """Beginnings of the names of weights that we have no use for. They are skipped at import, and zeros at export."""
    note: str
    """What a user of an export has to know, in Markdown; may be empty."""

    @property
    def config_class(self) -> type[PreTrainedConfig]:
        """Their class of config.json."""
        ...

    @property
    def model_class(self) -> type[PreTrainedModel]:
        """Their class of the whole model."""
        ...

    def config(self, theirs: TheirConfig) -> ModelConfig:
        """Their config in our words.

        Raises ValueError that names, in one line, the first thing that our transformer cannot compute.
        """
        ...

    def theirs(self, config: ModelConfig) -> PreTrainedConfig:
        """Our config in their words, for a config without a `mismatch`. Dropout is not carried."""
        ...

    def mismatch(self, config: ModelConfig) -> str | None:
        """Why this architecture does not compute what a model of ours does; None where it does."""
        ...

    def names(self, config: ModelConfig) -> dict[str, str]:
        """Our name of every weight -> theirs, as `collected` gives it. A tied head is among them."""
        ...

    def collected(self, tensors: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
        """Tensors as their files name them; what stands in several tensors there, and in one here, joined."""
        ...

    def in_memory(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of `names` as their class of the model holds them.

        Raises ValueError for a weight that it cannot hold.
        """
        ...

    def convert(self, name: str, tensor: Tensor, config: ModelConfig) -> Tensor:
        """Their tensor in our shape; `name` is ours."""
        ...

    def restore(self, name: str, tensor: Tensor, config: ModelConfig) -> Tensor:
        """The inverse of `convert`."""
        ...
