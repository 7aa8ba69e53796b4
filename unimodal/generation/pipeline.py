"""The pipeline: text and pictures in, text and pictures out. What `unimodal.load` returns."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from tokenizers_vq.image_tokenizer import ImageTokenizer
from tokenizers_vq.text import TextTokenizer
from tokenizers_vq.token_space import TokenSpace
from unimodal.generation.engine import DecodeConfig, Engine
from unimodal.generation.grammar import Mode, check_spans
from unimodal.generation.prompts import Answer, Prompt, PromptCoder
from unimodal.generation.sampling import SamplingConfig
from unimodal.model.checkpoint import WEIGHTS_FILE, open_transformer, save_transformer
from unimodal.model.transformer import Transformer

TEXT_TOKENIZER, IMAGE_TOKENIZER = "text_tokenizer", "image_tokenizer"
ROWS_AT_ONCE = 128
LIKE_LENGTHS = 16
"""Prompts whose lengths have the same quotient by this are decoded in the order they came in, because neighbours often
begin alike (questions about one picture)."""


class Pipeline:
    """A transformer with its tokenizers."""

    def __init__(
        self,
        transformer: Transformer,
        space: TokenSpace,
        text: TextTokenizer,
        image: ImageTokenizer | None,
        path: Path | None = None,
    ) -> None:
        self.transformer, self.token_space = transformer, space
        self.text_tokenizer, self.image_tokenizer = text, image
        self.path = path
        self.coder = PromptCoder(space, text, image)
        self.engine = Engine(transformer, space)

    def generate(
        self,
        prompts: Sequence[Prompt],
        mode: Mode = "mixed",
        max_new_tokens: int | None = None,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        guidance: float = 1.0,
        seed: int = 0,
        stream: bool = False,
        *,
        batch_size: int = ROWS_AT_ONCE,
        constrained: bool = True,
        progress: Callable[[int], None] = lambda done: None,
    ) -> list[Answer]:
        """An answer for each prompt: a list of strings and PIL images.

        A prompt is a string, or a list of strings and PIL images; a list inside that list is an earlier answer of
        the model. `mode` is `text`, `image` (one picture) or `mixed` (the model chooses). Prompt i is sampled with
        seed + i. `progress` is told how many answers are done. Raises ValueError for settings that make no sense.
        """
        if stream:
            raise ValueError("streaming is not there yet: call generate without stream")
        if isinstance(prompts, str):
            raise ValueError("prompts is a list of prompts; for a single one write [prompt]")
        config = self._config(mode, max_new_tokens, temperature, top_p, top_k, guidance, constrained)
        answers = self.generate_ids(self.coder.encode(prompts), config, seed, batch_size, progress)
        return self.coder.decode(answers)

    def generate_ids(
        self,
        prompts: Sequence[Sequence[int]],
        config: DecodeConfig,
        seed: int = 0,
        batch_size: int = ROWS_AT_ONCE,
        progress: Callable[[int], None] = lambda done: None,
    ) -> list[list[int]]:
        """As `generate`, ids to ids; prompts of like length are decoded together, neighbours where they can be."""
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]) // LIKE_LENGTHS)
        answers: list[list[int]] = [[] for _ in prompts]
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            decoded = self.engine.decode([prompts[row] for row in rows], [seed + row for row in rows], config)
            for row, answer in zip(rows, decoded, strict=True):
                answers[row] = answer
            progress(len(rows))
        return answers

    def image_span_check(
        self,
        prompts: Sequence[Prompt],
        *,
        guidance: float = 1.0,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
        constrained: bool = True,
        batch_size: int = ROWS_AT_ONCE,
    ) -> tuple[int, int]:
        """(image spans, malformed ones) over drawings of the prompts; one without any image counts as malformed."""
        config = self._config("image", None, temperature, top_p, top_k, guidance, constrained)
        answers = self.generate_ids(self.coder.encode(prompts), config, seed, batch_size)
        counts = [check_spans(answer, self.token_space) for answer in answers]
        spans = sum(max(count, 1) for count, _ in counts)
        return spans, sum(bad if count else 1 for count, bad in counts)

    def logits(self, ids: Tensor) -> Tensor:
        """ids (B, T) int64 -> logits (B, T, V) float32."""
        if ids.ndim != 2 or ids.shape[1] > self.transformer.config.max_length:
            raise ValueError(
                f"ids have shape (B, T) with T up to {self.transformer.config.max_length}, got {tuple(ids.shape)}"
            )
        with torch.inference_mode():
            return self.transformer(ids).float()

    def preprocess(self, image: Image.Image) -> Tensor:
        """A shown picture -> (3, S, S) in [-1, 1]."""
        return self.coder.preprocess(image)

    @cached_property
    def sha256(self) -> str:
        """Hash of the weights file; empty for a model that was never saved."""
        if self.path is None:
            return ""
        return hashlib.sha256((self.path / WEIGHTS_FILE).read_bytes()).hexdigest()

    def _config(
        self,
        mode: Mode,
        max_new_tokens: int | None,
        temperature: float,
        top_p: float,
        top_k: int,
        guidance: float,
        constrained: bool,
    ) -> DecodeConfig:
        if mode != "text" and self.image_tokenizer is None:
            raise ValueError(f"mode {mode!r} draws, but this model has no image tokenizer: use mode 'text'")
        default = self.token_space.layout.span + (1 if mode == "image" else 32)
        sampling = SamplingConfig(temperature=temperature, top_p=top_p, top_k=top_k)
        return DecodeConfig(
            mode=mode,
            max_new_tokens=default if max_new_tokens is None else max_new_tokens,
            sampling=sampling,
            guidance=guidance,
            constrained=constrained,
        )

    def save(self, folder: Path) -> None:
        """Write the bundle: everything that is needed after training."""
        save_transformer(self.transformer, self.token_space, folder)
        self.text_tokenizer.save(folder / TEXT_TOKENIZER)
        if self.image_tokenizer is not None:
            self.image_tokenizer.save(folder / IMAGE_TOKENIZER)


def load(path: str | Path) -> Pipeline:
    """Open a model bundle. Raises ValueError that names the file and the reason where it cannot."""
    folder = Path(path)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: give a model bundle, as training leaves it")
    transformer, space = open_transformer(folder)
    text, image = open_tokenizers(folder, space)
    return Pipeline(transformer, space, text, image, path=folder)


def open_tokenizers(folder: Path, space: TokenSpace) -> tuple[TextTokenizer, ImageTokenizer | None]:
    """The tokenizers of a bundle or a folder of shards, checked against the token space."""
    text = TextTokenizer.open(folder / TEXT_TOKENIZER)
    _check_hash("text", text.hash, space.text_hash, folder)
    if not (folder / IMAGE_TOKENIZER).is_dir():
        return text, None
    image = ImageTokenizer.open(folder / IMAGE_TOKENIZER)
    _check_hash("image", image.hash, space.image_hash, folder)
    return text, image


def _check_hash(kind: str, found: str, expected: str, folder: Path) -> None:
    if found != expected:
        raise ValueError(
            f"{folder}: the {kind} tokenizer is not the one of its token space ({found[:12]} and {expected[:12]})"
        )


def bundle(transformer: Transformer, space: TokenSpace, tokenizers: Path) -> Pipeline:
    """A pipeline of a transformer in training and the tokenizers kept in a folder."""
    text, image = open_tokenizers(tokenizers, space)
    return Pipeline(transformer, space, text, image)


def describe(pipeline: Pipeline) -> dict[str, Any]:
    """What a results file says about the model."""
    return {"path": str(pipeline.path or ""), "sha256": pipeline.sha256}
