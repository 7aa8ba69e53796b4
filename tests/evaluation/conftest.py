"""A model and a source small enough to know every right score by heart."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from data_pipelines.documents import Document, ImageSegment, TextSegment
from data_pipelines.failures import FailureLog
from data_pipelines.images import to_tensor
from tests.oracles.tiny import tiny_space
from tokenizers_vq.token_space import TokenSpace
from unimodal.generation.prompts import Answer

SIZE = 16
PAINTS = {"red": (255, 0, 0), "blue": (0, 0, 255), "green": (0, 255, 0), "black": (0, 0, 0)}


def plain(colour: str) -> Image.Image:
    return Image.new("RGB", (SIZE, SIZE), PAINTS[colour])


@dataclass
class FakeCodec:
    """One code a pixel: the red channel in four steps."""

    image_size: int = SIZE
    codebook_size: int = 4

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        return height, width

    def encode(self, images: Tensor) -> Tensor:
        return ((images[:, 0] + 1) / 2 * 3).round().long().flatten(1)

    def decode(self, codes: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        red = codes.reshape(len(codes), 1, *(size or (SIZE, SIZE))) / 3 * 2 - 1
        return red.expand(-1, 3, -1, -1).float()


@dataclass
class FakeModel:
    """Sees plain colours exactly, says `nothing` of any other picture, and draws what `draw` returns."""

    draw: Callable[[str, int], list[Any]] = lambda prompt, index: [plain("red")]
    spans: tuple[int, int] = (1, 0)
    free_spans: tuple[int, int] = (1, 0)
    image_tokenizer: FakeCodec | None = field(default_factory=FakeCodec)
    autoencoder: Any = None
    token_space: TokenSpace = field(default_factory=tiny_space)
    path: Path | None = Path("runs/fake/model")
    sha256: str = "f" * 64
    calls: list[dict[str, Any]] = field(default_factory=list)

    def preprocess(self, image: Image.Image) -> Tensor:
        return to_tensor(image.convert("RGB").resize((SIZE, SIZE)))

    def generate(self, prompts: Sequence[Any], mode: str = "mixed", progress: Any = None, **settings: Any) -> list:
        self.calls.append({"mode": mode, "prompts": list(prompts), **settings})
        if progress:
            progress(len(prompts))
        if mode == "image":
            ids = self._ids(*(self.spans if settings.get("constrained", True) else self.free_spans))
            return [Answer(self.draw(prompt, index), ids=ids) for index, prompt in enumerate(prompts)]
        return [Answer([f" {self._say(prompt)} "]) for prompt in prompts]

    def refused(self, prompts: Sequence[Any], mode: str = "mixed", **settings: Any) -> dict[int, str]:
        """Questions of more than a hundred characters do not fit it."""
        texts = ["".join(part for part in prompt if isinstance(part, str)) for prompt in prompts]
        return {number: "too long" for number, text in enumerate(texts) if len(text) > 100}

    def log_likelihoods(self, prompts: Sequence[Any], answers: Sequence[str]) -> list[float]:
        """The caption that it would give is certain, the others are not."""
        return [0.0 if self._say(prompt) == answer else -1.0 for prompt, answer in zip(prompts, answers, strict=True)]

    def _ids(self, spans: int, malformed: int) -> list[int]:
        """An answer of image spans, the last of them without codes."""
        specials, code = self.token_space.specials, self.token_space.image_offset
        whole = [specials.boi, *[code] * 4, specials.eoi]
        return [*whole * (spans - malformed), *[specials.boi, specials.eoi] * malformed, specials.eos]

    def _say(self, prompt: list[Any]) -> str:
        pixel = tuple(np.asarray(prompt[0])[0, 0].tolist())
        colour = next((name for name, paint in PAINTS.items() if paint == pixel), None)
        if len(prompt) == 1:
            return f"a {colour} circle" if colour else "nothing"
        if prompt[1] == "what color is the shape?":
            return colour or "black"
        return "yes"


@dataclass
class FakeSource:
    """Documents from a list."""

    items: list[Document]
    notes: dict[str, int] = field(default_factory=dict)
    failures: FailureLog = field(default_factory=FailureLog)

    def documents(self) -> Iterator[Document]:
        return iter(self.items)

    def fingerprint(self) -> str:
        return "d" * 64


def sample(key: str, colour: str, *, caption: str | None = None, pairs: Sequence[tuple[str, ...]] = ()) -> Document:
    segments: list[Any] = [ImageSegment(source=plain(colour))]
    if caption:
        segments.append(TextSegment(text=caption, role="caption"))
    for question, *answers in pairs:
        segments.append(TextSegment(text=question, role="question"))
        segments += [TextSegment(text=answer, role="answer") for answer in answers]
    return Document(key=key, segments=tuple(segments), meta={"layout": "sample"})


@pytest.fixture
def model() -> FakeModel:
    return FakeModel()


@pytest.fixture
def source() -> FakeSource:
    """Three pictures; the fake model gets three of five questions and two of three captions right."""
    dialogue = Document(key="talk", segments=(TextSegment(text="hello", role="request"),), meta={"layout": "dialogue"})
    colour, circle = "what color is the shape?", "is there a circle?"
    return FakeSource(
        [
            sample("0", "red", caption="a red circle", pairs=[(colour, "red"), (circle, "yes")]),
            dialogue,
            sample("1", "blue", caption="a blue circle", pairs=[(colour, "blue"), (circle, "no")]),
            sample("2", "green", caption="a green triangle", pairs=[("how many shapes are there?", "1")]),
        ]
    )


@pytest.fixture
def make_sample() -> Callable[..., Document]:
    return sample


@pytest.fixture
def make_source() -> Callable[[list[Document]], FakeSource]:
    return FakeSource


@pytest.fixture
def make_model() -> Callable[..., FakeModel]:
    return FakeModel


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
