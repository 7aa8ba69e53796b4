"""`python train.py predict`: a prompt file through a model bundle, with Lightning's devices and ranks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader

from unimodal.generation.drafts.usual import Drafts
from unimodal.generation.pipeline import load
from unimodal.generation.prompt_file import ANSWERS, AnswerFolder, PromptLine, read_prompts
from unimodal.progress import progress_bar

AT_ONCE = 512
"""Prompts whose pictures and answers are held in memory together; the engine's queue runs over them."""


class PromptFile(L.LightningDataModule):
    """The lines of a prompt file that have no answer yet; rank r of w takes lines r, r + w, ..."""

    def __init__(self, path: Path, out: Path, settings: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.path, self.out, self.settings = path, out, settings or {}
        self.all_lines: list[PromptLine] = []
        self.lines: list[PromptLine] = []
        self.answers: AnswerFolder | None = None

    def setup(self, stage: str) -> None:
        """Read the prompts, and what answers there are."""
        if stage != "predict":
            raise ValueError("a prompt file is for `predict`")
        assert self.trainer is not None
        rank, ranks = self.trainer.global_rank, self.trainer.world_size
        name = ANSWERS if ranks == 1 else f"answers.{rank}-of-{ranks}.jsonl"
        self.all_lines = read_prompts(self.path, self.settings)[rank::ranks]
        pipeline: Any = getattr(self.trainer.lightning_module, "pipeline", None)
        self.answers = AnswerFolder(self.out, name, "" if pipeline is None else pipeline.sha256)
        self.lines = self.answers.left_over(self.all_lines)

    def predict_dataloader(self) -> DataLoader[list[PromptLine]]:
        """Lists of lines."""
        groups = [self.lines[start : start + AT_ONCE] for start in range(0, len(self.lines), AT_ONCE)]
        return DataLoader(groups, batch_size=None)  # pyright: ignore[reportArgumentType]


class Answerer(L.LightningModule):
    """Answers prompts with a model bundle; `compile` pays for long files on CUDA, `drafts` (`auto`, or a number of
    later tokens that are guessed before each pass) for few rows of a model that memory bounds."""

    def __init__(self, bundle: Path, batch_size: int = 64, compile: bool = False, drafts: Drafts = 0) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"the batch size is at least 1, got {batch_size}")
        if drafts != "auto" and drafts < 0:
            raise ValueError(f"drafts are auto, or at least 0, got {drafts}")
        self.pipeline, self.batch_size, self.compile_steps = (
            load(bundle, device="cpu", packed=False),
            batch_size,
            compile,
        )
        self.drafts: Drafts = drafts
        self.model = self.pipeline.model  # so that Lightning moves it to its device, and what goes with it
        self.image_tokenizer, self.autoencoder = self.pipeline.image_tokenizer, self.pipeline.autoencoder
        self._tell: Callable[[int], None] = lambda done: None

    def on_predict_start(self) -> None:
        """Say what there is to do."""
        data: Any = self.trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        if not isinstance(data, PromptFile):
            raise ValueError("an Answerer predicts on a PromptFile")
        if self.compile_steps:
            self.pipeline.use_compiled_steps()
        else:
            self.pipeline.use_prepacked_weights()
        if self.drafts != 0:
            self.pipeline.use_drafts(self.drafts)
        self._bar = progress_bar("answers", len(data.lines), unit="answers")
        self._tell = self._bar.__enter__()

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Lines of a prompt file stay where they are."""
        del device, dataloader_idx
        return batch

    def predict_step(self, batch: list[PromptLine], batch_index: int) -> int:
        """Answer some lines and write them as they end, in the precision of the bundle's weights; returns how many."""
        del batch_index
        folder: AnswerFolder = self.trainer.datamodule.answers  # pyright: ignore[reportAttributeAccessIssue]
        requests = [line.request(self.pipeline) for line in batch]
        with torch.autocast(self.device.type, enabled=False):
            for update in self.pipeline.engine.stream(requests, rows=self.batch_size, pieces=False):
                if update.decoded is not None:
                    folder.write(batch[update.request], self.pipeline.finished([update.decoded])[0])
                    self._tell(1)
        return len(batch)

    def on_predict_end(self) -> None:
        """Close the bar and bring the answers into order."""
        self._bar.__exit__(None, None, None)
        data: PromptFile = self.trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        assert data.answers is not None
        data.answers.put_in_order(data.all_lines)
