"""A reward model of transformers from a local folder: CLIP-like for pictures, a sequence classifier for words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from unimodal.training.rl.rewards.base import Answered, Reward


@dataclass(frozen=True, kw_only=True)
class PictureScorer(Reward):
    """The cosine of a CLIP-like model between the prompt's words and the picture, from [low, high] to [0, 1].

    `folder` is a local folder of transformers (CLIP, SigLIP); nothing is downloaded. An answer that is not one picture
    gets 0.
    """

    folder: Path
    low: float = 0.0
    high: float = 0.4

    def __post_init__(self) -> None:
        if self.low >= self.high:
            raise ValueError(f"low lies below high, got {self.low} and {self.high}")

    @cached_property
    def parts(self) -> tuple[Any, Any]:
        """Model and processor."""
        from transformers import AutoModel, AutoProcessor

        return _opened(self.folder, AutoModel), _opened(self.folder, AutoProcessor)

    def prepare(self) -> None:
        """See `Reward`."""
        _ = self.parts

    @torch.inference_mode()
    def score(self, answers: Sequence[Answered]) -> Sequence[float]:
        """See `Reward`."""
        scores = [0.0] * len(answers)
        drawn = [number for number, each in enumerate(answers) if len(each.pictures) == 1]
        if not drawn:
            return scores
        model, processor = self.parts
        texts, pictures = zip(*((answers[n].prompt.words, answers[n].pictures[0]) for n in drawn), strict=True)
        inputs = processor(text=list(texts), images=list(pictures), return_tensors="pt", padding=True, truncation=True)
        output = model(**inputs)
        words, images = (torch.nn.functional.normalize(x, dim=-1) for x in (output.text_embeds, output.image_embeds))
        cosines = (words * images).sum(-1)
        scaled = ((cosines - self.low) / (self.high - self.low)).clamp(0, 1)
        for number, value in zip(drawn, scaled.tolist(), strict=True):
            scores[number] = value
        return scores


@dataclass(frozen=True, kw_only=True)
class TextScorer(Reward):
    """The sigmoid of a one-number sequence classifier (a Bradley-Terry reward model) on prompt and answer."""

    folder: Path

    @cached_property
    def parts(self) -> tuple[Any, Any]:
        """Model and tokenizer."""
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        return _opened(self.folder, AutoModelForSequenceClassification), _opened(self.folder, AutoTokenizer)

    def prepare(self) -> None:
        """See `Reward`."""
        _ = self.parts

    @torch.inference_mode()
    def score(self, answers: Sequence[Answered]) -> Sequence[float]:
        """See `Reward`."""
        model, tokenizer = self.parts
        found = []
        for each in answers:
            inputs = tokenizer(each.prompt.words, each.text, return_tensors="pt", truncation=True)
            found.append(torch.sigmoid(model(**inputs).logits.float().flatten()[0]).item())
        return found


def _opened(folder: Path, kind: Any) -> Any:
    """A part of a local folder, for inference. Raises ValueError where it cannot be opened."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: a reward model is read from a local folder of transformers")
    try:
        part = kind.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise ValueError(
            f"{folder} cannot be opened as a reward model: {' '.join(str(error).split())[:200]}"
        ) from error
    return part.eval() if isinstance(part, torch.nn.Module) else part
