"""What evaluation asks of a model and of a source, and what a task hands back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from PIL import Image
from torch import Tensor

from data_pipelines.documents import Document
from data_pipelines.failures import FailureLog
from tokenizers_vq.layout import Size
from tokenizers_vq.token_space import TokenSpace
from unimodal.generation.guidance import UNGUIDED
from unimodal.generation.prompts import Answer, Part, Prompt
from unimodal.generation.settings import DecodeSettings, Mode, chosen

# Shapes: B images, H height, W width, N codes of one image; images lie in [-1, 1].


class ImageCodec(Protocol):
    """An image tokenizer as reconstruction sees it."""

    @property
    def image_size(self) -> int: ...

    @property
    def codebook_size(self) -> int: ...

    def size_of(self, height: int, width: int) -> Size:
        """Rows and columns of the codes of an image of so many pixels."""
        ...

    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, N) int64."""
        ...

    def decode(self, codes: Tensor, size: Size | None = None) -> Tensor:
        """(B, N) int64 -> (B, 3, H, W), of `size` rows and columns of codes or else square."""
        ...


class LatentCodec(Protocol):
    """An autoencoder as the tasks see it."""

    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> latents."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Latents -> (B, 3, H, W)."""
        ...


class AnyToAnyModel(Protocol):
    """The part of a pipeline that the tasks use."""

    @property
    def token_space(self) -> TokenSpace: ...

    @property
    def image_tokenizer(self) -> ImageCodec | None: ...

    @property
    def autoencoder(self) -> LatentCodec | None:
        """What a flow branch draws with; None where codes are drawn."""
        ...

    @property
    def path(self) -> Path | None: ...

    @property
    def sha256(self) -> str: ...

    def preprocess(self, image: Image.Image) -> Tensor:
        """A picture of any size -> (3, H, W)."""
        ...

    def generate(
        self,
        prompts: Sequence[Prompt],
        mode: Mode = ...,
        max_new_tokens: int | None = ...,
        temperature: float = ...,
        top_p: float = ...,
        top_k: int = ...,
        guidance: float = ...,
        seed: int = ...,
        *,
        batch_size: int = ...,
        progress: Callable[[int], None] = ...,
        **settings: Any,
    ) -> Sequence[Answer]:
        """An answer for each prompt; `progress(n)` after every n answers."""
        ...

    def refused(self, prompts: Sequence[Prompt], mode: Mode = ..., **settings: Any) -> dict[int, str]:
        """Number -> reason of every prompt that `generate` would refuse under these settings."""
        ...

    def log_likelihoods(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[float]:
        """Logarithm of the probability of each answer in text, in nats."""
        ...


class DocumentSource(Protocol):
    """A source as the tasks read it."""

    failures: FailureLog
    """Counts what cannot be used, of the source and of the tasks alike."""

    def documents(self) -> Iterator[Document]: ...

    def fingerprint(self) -> str: ...


@dataclass(frozen=True)
class Sampling(DecodeSettings):
    """How the answers of a task are decoded, and the seed of the first."""

    seed: int = field(default=0, kw_only=True)

    def to_dict(self) -> dict[str, Any]:
        """Keyword arguments of `generate`, the mode apart."""
        return {name: value for name, value in chosen(self).items() if name != "mode"}

    def recipe(self) -> dict[str, Any]:
        """As a results file tells it; settings beyond the usual ones where they were changed."""
        cuts = {name: getattr(self, name) for name in SAMPLING_KEYS}
        usual = {*SAMPLING_KEYS, "mode", "max_new_tokens", "guidance", "grammar", "seed"}
        changed = {name: value for name, value in chosen(self).items() if name not in usual}
        changed = {name: value for name, value in changed.items() if value != getattr(DecodeSettings, name)}
        guidance = UNGUIDED if self.mode == "text" else self.guidance
        return {"sampling": cuts, "guidance": guidance, **changed, "seed": self.seed}


SAMPLING_KEYS = ("temperature", "top_p", "top_k")
GREEDY = Sampling(mode="text", temperature=0.0)
DRAWN = Sampling(mode="image")

Reporter = Callable[[str, int], Callable[[int], None]]
"""Called with a description and a total, gives back what is to be told of every n items done."""


def silent(description: str, total: int) -> Callable[[int], None]:
    """A reporter that shows nothing."""
    return lambda done: None


@dataclass(frozen=True, kw_only=True)
class Example:
    """One item for a reader: what was asked, what came, what was right. Images have names such as `shown`."""

    prompt: str = ""
    answer: str = ""
    reference: str = ""
    right: bool | None = None
    images: dict[str, Image.Image] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """What a task measured over `n` items, and how."""

    task: str
    metrics: dict[str, float]
    n: int
    seconds: float
    recipe: dict[str, Any]
    examples: list[Example] = field(default_factory=list)


def codec_of(model: AnyToAnyModel) -> ImageCodec:
    """The model's image tokenizer. Raises ValueError for a model of text only."""
    if model.image_tokenizer is None:
        raise ValueError(f"model {model.path} has no image tokenizer: this task needs one that sees pictures")
    return model.image_tokenizer


def only_picture(parts: Sequence[Part]) -> Image.Image | None:
    """The picture of an answer that is exactly one picture."""
    pictures = [part for part in parts if isinstance(part, Image.Image)]
    return pictures[0] if len(pictures) == len(parts) == 1 else None
