"""The pipeline: text and pictures in, text and pictures out. What `unimodal.load` returns."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, overload

import torch
from PIL import Image
from torch import Tensor

from tokenizers_vq.media import LATENTS
from unimodal.bundle import Bundle
from unimodal.devices import usable_device
from unimodal.generation.checks import check_number
from unimodal.generation.context import Reading
from unimodal.generation.drafts.usual import Drafts, usual_drafting
from unimodal.generation.engine import Engine
from unimodal.generation.events import Event, Narrator
from unimodal.generation.flow_sampling import FlowSamplingConfig
from unimodal.generation.forward import EagerForward, Forward, compiled_forward
from unimodal.generation.grammars import AnyGrammar, CompiledGrammar, GrammarCompiler, as_grammar
from unimodal.generation.painters.flow import FlowPainter
from unimodal.generation.prompts import Answer, Prompt, PromptCoder
from unimodal.generation.refusals import refused
from unimodal.generation.requests import DecodeConfig, Decoded, Request, Update
from unimodal.generation.resolve import decode_config
from unimodal.generation.scheduler import ROWS
from unimodal.generation.settings import DecodeSettings, Mode
from unimodal.generation.thinking import ThinkingConfig, instructed, think_then_draw
from unimodal.model.inference.prepacked import prepacked
from unimodal.model.model import UnifiedModel


class Pipeline:
    """Talks with the model of a bundle: prompts in strings and pictures become answers in strings and pictures."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle, self.model, self.token_space = bundle, bundle.model, bundle.space
        tokenizers = bundle.tokenizers
        self.text_tokenizer, self.image_tokenizer = tokenizers.text, tokenizers.image
        self.autoencoder = tokenizers.autoencoder
        self.coder = PromptCoder(self.token_space, self.text_tokenizer, self.image_tokenizer, self.autoencoder)
        self._drafts: Drafts = 0
        self._decode_with(EagerForward(self.model), self.model)

    def use_drafts(self, drafts: Drafts = "auto") -> None:
        """Guess so many later tokens before each pass, which checks them; the answers stay the same.

        `auto` measures how many pay. Raises ValueError for a number that makes no sense.
        """
        self._drafts = drafts
        self.engine.drafting = usual_drafting(self.engine.model, drafts)

    def use_prepacked_weights(self) -> None:
        """Decode with a copy of the weights in the order that the CPU likes; elsewhere nothing changes."""
        rest = prepacked(self.model)
        self._decode_with(EagerForward(rest), rest)

    def use_compiled_steps(self, *, packed: bool = True) -> None:
        """Decode through torch.compile, on CUDA as CUDA graphs; compiling takes a while.

        What stays uncompiled has prepacked weights where `packed` says so.
        """
        rest = prepacked(self.model) if packed else self.model
        self._decode_with(compiled_forward(self.model, rest), rest)

    def _decode_with(self, forward: Forward, rest: UnifiedModel) -> None:
        """`forward` makes the steps, and `rest` reads prompts where they are ids alone."""
        reads = self.model if self.model.branches else rest
        drafting = usual_drafting(reads, self._drafts)
        self.engine = Engine(reads, self.token_space, forward, self._painter(), self.reading, drafting)

    @property
    def reading(self) -> Reading:
        """How the model reads the images of its context."""
        vision = self.model.config.vision
        return Reading(
            LATENTS in self.model.branches and self.autoencoder is not None, vision.patches if vision else None
        )

    def _painter(self) -> FlowPainter | None:
        if not (self.reading.latents and self.autoencoder):
            return None
        size, patches = self.autoencoder.image_size, self.reading.patches
        seen = math.prod(patches.grid(size, size)) + 2 if patches else self.token_space.layout.span
        grid = (self.autoencoder.grid, self.autoencoder.grid)
        return FlowPainter(self.model, self.token_space, grid, self.reading, self._read, seen)

    def _read(self, latents: Tensor) -> tuple[Tensor, list[list[int]]]:
        """Latents that were drawn (B, R, K, C) -> pictures (B, 3, H, W), and the ids of each."""
        assert self.autoencoder and self.image_tokenizer
        pictures = self.autoencoder.decode(latents.permute(0, 3, 1, 2))
        codes = self.token_space.to_image_ids(self.image_tokenizer.encode(pictures)).tolist()
        return pictures, [self.token_space.image_body(ids, self.token_space.layout.sizes[0]) for ids in codes]

    @overload
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
        stream: Literal[False] = ...,
        *,
        batch_size: int = ...,
        progress: Callable[[int], None] = ...,
        think: bool | ThinkingConfig | None = ...,
        **settings: Any,
    ) -> list[Answer]: ...
    @overload
    def generate(self, prompts: Sequence[Prompt], *, stream: Literal[True], **settings: Any) -> Iterator[Event]: ...
    def generate(
        self,
        prompts: Sequence[Prompt],
        mode: Mode = DecodeSettings.mode,
        max_new_tokens: int | None = DecodeSettings.max_new_tokens,
        temperature: float = DecodeSettings.temperature,
        top_p: float = DecodeSettings.top_p,
        top_k: int = DecodeSettings.top_k,
        guidance: float = DecodeSettings.guidance,
        seed: int = 0,
        stream: bool = False,
        *,
        batch_size: int = ROWS,
        progress: Callable[[int], None] = lambda done: None,
        think: bool | ThinkingConfig | None = False,
        **settings: Any,
    ) -> list[Answer] | Iterator[Event]:
        """An answer for each prompt: a list of strings and PIL images, with `finish`, `ids` and `log_probs`.

        A prompt is a string, or a list of strings and PIL images; a list inside that list is an earlier answer of
        the model. `mode` is `text`, `image` (one picture) or `mixed` (the model chooses). Prompt i is sampled with
        seed + i. `batch_size` answers are made side by side, and `progress` is called with how many more are done. The
        other settings are those of `decode_config`. With `think` a plan in words comes before the picture of mode
        `image` (generation/thinking.py). With `stream` events come instead, as they happen (generation/events.py).
        Raises ValueError for settings that make no sense.
        """
        if not isinstance(prompts, list | tuple):
            raise ValueError("prompts is a list of prompts; for a single one write [prompt]")
        config = self.decode_config(mode, max_new_tokens, temperature, top_p, top_k, guidance, **settings)
        if think:
            if stream:
                raise ValueError("a picture that was thought about comes as a whole: think does not go with stream")
            thinking = ThinkingConfig() if think is True else think
            plan = replace(self.decode_config("text", thinking.token_budget, thinking.temperature), until_image=True)
            requests = self.requests(instructed(prompts, thinking), plan, seed)
            return self.finished(
                think_then_draw(self.engine, requests, config, batch_size=batch_size, progress=progress)
            )
        requests = self.requests(prompts, config, seed)
        return self.events(requests, batch_size) if stream else self.answers(requests, batch_size, progress)

    def requests(self, prompts: Sequence[Prompt], config: DecodeConfig, seed: int = 0) -> list[Request]:
        """Requests to the engine; prompt i is sampled with seed + i."""
        check_number("a seed", seed, -(2**63), 2**63 - 1, whole=True)
        pixels = self.coder.pixels(prompts, self.reading.patches)
        given = zip(self.coder.encode(prompts), self.coder.latents(prompts), pixels, strict=True)
        return [
            Request(prompt=ids, config=config, seed=seed + number, latents=latents, pixels=seen)
            for number, (ids, latents, seen) in enumerate(given)
        ]

    def refused(self, prompts: Sequence[Prompt], mode: Mode = DecodeSettings.mode, **settings: Any) -> dict[int, str]:
        """Number -> reason of every prompt that `generate` would refuse under these settings, one that is too long say.

        Raises ValueError for settings that make no sense.
        """
        settings = {name: value for name, value in settings.items() if name not in ("seed", "batch_size")}
        return refused(self.engine, self.coder, prompts, self.decode_config(mode, **settings))

    def answers(
        self,
        requests: Sequence[Request],
        batch_size: int = ROWS,
        progress: Callable[[int], None] = lambda done: None,
    ) -> list[Answer]:
        """As `generate`, for requests that each have settings of their own."""
        decoded = self.engine.decode(requests, rows=batch_size, progress=progress)
        return self.finished(decoded)

    def finished(self, decoded: Sequence[Decoded]) -> list[Answer]:
        """Answers in ids -> in text and pictures."""
        parts = self.coder.decode([answer.ids for answer in decoded], [answer.pictures for answer in decoded])
        return [
            Answer(each, finish=answer.finish, ids=answer.ids, log_probs=answer.log_probs)
            for each, answer in zip(parts, decoded, strict=True)
        ]

    def log_likelihoods(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[float]:
        """Logarithm of the probability of each answer in text, its end included, at temperature 1, in nats.

        Raises ValueError for an answer that does not fit after its prompt.
        """
        config = self.decode_config("text", temperature=1.0)
        ends = [[*self.text_tokenizer.encode(answer), self.token_space.specials.eos] for answer in answers]
        return [float(score.sum()) for score in self.engine.score(self.requests(prompts, config), ends)]

    def events(self, requests: Sequence[Request], batch_size: int = ROWS) -> Iterator[Event]:
        """As `answers`, as it happens."""
        return self._narrate(self.engine.stream(requests, rows=batch_size), len(requests))

    def _narrate(self, updates: Iterator[Update], count: int) -> Iterator[Event]:
        narrators = [Narrator(self.coder, number) for number in range(count)]
        for update in updates:
            yield from narrators[update.request].push(update.ids, update.pictures)
            if update.decoded is not None:
                yield from narrators[update.request].end(update.decoded.finish)

    def decode_config(self, *settings: Any, flow: FlowSamplingConfig | None = None, **named: Any) -> DecodeConfig:
        """How this model decodes under what a user says: the fields of DecodeSettings (generation/settings.py).

        `flow` stands for those fields of it that are not named. Raises ValueError for what makes no sense or what this
        model cannot do.
        """
        drawing = {} if flow is None else vars(flow)
        return decode_config(DecodeSettings(*settings, **{**drawing, **_given(**named)}), self.bundle, self._compiled)

    def _compiled(self, grammar: AnyGrammar) -> CompiledGrammar:
        return self.grammars.compile(as_grammar(grammar))

    @cached_property
    def grammars(self) -> GrammarCompiler:
        """Compiles grammars for this model's text tokenizer."""
        return GrammarCompiler(self.text_tokenizer, self.token_space)

    def logits(self, ids: Tensor) -> Tensor:
        """ids (B, T) int64 -> logits (B, T, V) float32."""
        if ids.ndim != 2 or ids.shape[1] > self.model.config.trunk.max_length:
            raise ValueError(
                f"ids have shape (B, T) with T up to {self.model.config.trunk.max_length}, got {tuple(ids.shape)}"
            )
        with torch.inference_mode():
            return self.model.token_head(self.model(ids)).float()

    def preprocess(self, image: Image.Image) -> Tensor:
        """A shown picture -> (3, S, S) in [-1, 1]."""
        return self.coder.preprocess(image)

    @property
    def path(self) -> Path | None:
        """The folder of the bundle; None for a model that was never saved."""
        return self.bundle.path

    @property
    def sha256(self) -> str:
        """Hash of the bundle's weights."""
        return self.bundle.sha256

    def save(self, folder: Path) -> None:
        """Write the bundle."""
        self.bundle.save(folder)


def _given(**values: Any) -> dict[str, Any]:
    """What is not None."""
    return {name: value for name, value in values.items() if value is not None}


def load(
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    compile: bool = False,
    packed: bool = True,
    drafts: Drafts = 0,
) -> Pipeline:
    """Open a model bundle. Raises ValueError that names the file and the reason where it cannot.

    `device` is CUDA's first one if it is None and there is one, else the CPU; all parts of the bundle go there. `dtype`
    is that of the weights while decoding, bfloat16 say; as they were saved if it is None. With `packed` the engine
    decodes with a second copy of them that is faster on CPUs; with `compile` steps go through torch.compile, for long
    work on CUDA and for answers one at a time on a CPU. `drafts` guesses later tokens, so many or as many as pay
    (`auto`): answers are the same, and those of few rows come sooner.
    """
    pipeline = Pipeline(Bundle.open(Path(path), dtype, usable_device(device)))
    if compile:
        pipeline.use_compiled_steps(packed=packed)
    elif packed:
        pipeline.use_prepacked_weights()
    if drafts != 0:
        pipeline.use_drafts(drafts)
    return pipeline
