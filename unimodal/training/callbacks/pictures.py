"""Pictures and answers during training, for people who look rather than read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data_pipelines.images import join_patches, to_image
from data_pipelines.shards.format import TokenDocument
from data_pipelines.spec import DataSpec, data_spec
from tokenizers_vq.media import PATCHES, PatchSpec
from unimodal.bundle import Bundle
from unimodal.generation.pipeline import Pipeline
from unimodal.generation.requests import DecodeConfig, Request
from unimodal.generation.sampling import SamplingConfig
from unimodal.model.model import UnifiedModel
from unimodal.training.averaging import averaged_weights
from unimodal.training.module import TransformerModule
from unimodal.training.parallel.gathering import whole_model

FOLDER = "samples"


def picture_grid(rows: Sequence[Sequence[Image.Image]], gap: int = 2) -> Image.Image:
    """Pictures in rows, on white; each has a cell as large as the largest."""
    width, height = (max(sizes) for sizes in zip(*(picture.size for row in rows for picture in row), strict=True))
    columns = max(len(row) for row in rows)
    canvas = Image.new("RGB", (columns * (width + gap) - gap, len(rows) * (height + gap) - gap), "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            canvas.paste(picture, (x * (width + gap), y * (height + gap)))
    return canvas


def save_picture(trainer: L.Trainer, name: str, picture: Image.Image) -> None:
    """Into the run's samples folder, and to TensorBoard where it is on."""
    folder = Path(trainer.default_root_dir) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    picture.save(folder / f"{name}-{trainer.global_step:06d}.png")
    for logger in trainer.loggers:
        experiment: Any = getattr(logger, "experiment", None)
        if hasattr(experiment, "add_image"):
            pixels = np.asarray(picture)
            experiment.add_image(name, pixels, trainer.global_step, dataformats="HWC")


class ReconstructionPictures(L.Callback):
    """After every validation: originals above, reconstructions below."""

    def __init__(self, count: int = 12) -> None:
        super().__init__()
        self.count = count

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        del pl_module, dataloader_idx
        if batch_idx == 0 and trainer.is_global_zero and isinstance(outputs, Tensor):
            rows = [[to_image(pixels) for pixels in images[: self.count]] for images in (batch, outputs.float())]
            save_picture(trainer, "reconstructions", picture_grid(rows))


class Samples(L.Callback):
    """Every `every` optimizer steps: held-out captions drawn, held-out pictures captioned and asked about."""

    def __init__(self, every: int = 500, count: int = 8) -> None:
        super().__init__()
        self.every, self.count = every, count
        self._last = 0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        del outputs, batch, batch_idx
        step = trainer.global_step
        due = self.every and step and step % self.every == 0 and step != self._last
        if not due or not isinstance(pl_module, TransformerModule) or pl_module.model is None:
            return
        self._last, spec = step, data_spec(trainer)
        if spec.tokenizers is None:
            return
        with averaged_weights(pl_module.model, trainer.optimizers):
            model = whole_model(pl_module.model, keep=trainer.is_global_zero)  # all ranks give their rows of it
            if model is not None:
                state, training = torch.get_rng_state(), model.training
                self._write(trainer, model.eval(), spec)
                model.train(training)
                torch.set_rng_state(state)

    def _write(self, trainer: L.Trainer, model: UnifiedModel, spec: DataSpec) -> None:
        documents = [document for document in spec.held_out if document.layout == "sample"][: self.count]
        pipeline = Pipeline(Bundle.beside(model, spec.space, spec.tokenizers_folder))
        captions = [_text(pipeline, document, "caption") for document in documents]
        captions = [caption for caption in captions if caption]
        if captions and pipeline.image_tokenizer is not None:
            drawn = pipeline.generate(captions, mode="image")
            pictures = [part for answer in drawn for part in answer if isinstance(part, Image.Image)]
            save_picture(trainer, "drawn", picture_grid([pictures]))
        self._write_answers(trainer, pipeline, documents, captions, spec)

    def _write_answers(
        self,
        trainer: L.Trainer,
        pipeline: Pipeline,
        documents: Sequence[TokenDocument],
        captions: Sequence[str],
        spec: DataSpec,
    ) -> None:
        asked = [document for document in documents if _text(pipeline, document, "question")]
        config = DecodeConfig(mode="text", max_new_tokens=16, sampling=SamplingConfig(temperature=0))
        lines = [f"step {trainer.global_step}", "drawn: " + "; ".join(captions)]
        if asked:
            answers = pipeline.answers([_question(pipeline, document, config, spec) for document in asked])
            for document, answer in zip(asked, answers, strict=True):
                question, reference = (_text(pipeline, document, role) for role in ("question", "answer"))
                lines.append(f"{question} -> {''.join(map(str, answer))} ({reference})")
        folder = Path(trainer.default_root_dir) / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"answers-{trainer.global_step:06d}.txt").write_text("\n".join(lines) + "\n")


def _text(pipeline: Pipeline, document: TokenDocument, role: str) -> str:
    found = [s for s in document.segments if s.kind == "text" and s.role == role]
    return pipeline.text_tokenizer.decode(found[0].ids.tolist()) if found else ""


def _question(pipeline: Pipeline, document: TokenDocument, config: DecodeConfig, spec: DataSpec) -> Request:
    specials = pipeline.token_space.specials
    image = next(segment for segment in document.segments if segment.kind == "image")
    question = next(segment for segment in document.segments if segment.role == "question")
    codes = np.asarray(image.ids).tolist()
    prompt = [specials.bos, specials.boi, *codes, specials.eoi, *question.ids.tolist(), specials.sep]
    pixels = []
    if PATCHES in spec.media and isinstance(sizing := spec.media[PATCHES].sizing, PatchSpec):
        pixels = [join_patches(np.asarray(image.media[PATCHES]), sizing.size)]
    return Request(prompt=prompt, config=config, pixels=pixels)
