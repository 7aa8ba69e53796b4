"""What a run trains on: a table of the folders of shards, printed and logged when it starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import lightning as L
from rich.table import Table

from data_pipelines.mixture import MixtureConfig
from data_pipelines.spec import FolderTotals, data_spec
from unimodal.terminal import open_console
from unimodal.training.module import TransformerModule


@dataclass(frozen=True, kw_only=True)
class SourceShare:
    """A folder's share of the documents drawn and of their tokens, and how often a run goes through it."""

    draws: float
    tokens: float
    epochs: float


def shares(totals: Sequence[FolderTotals], mixture: MixtureConfig | None, run_tokens: float) -> list[SourceShare]:
    """Over both stages of a run of `run_tokens` tokens, by the mean length of each folder's documents.

    Templates leave some of a document's questions out, so epochs are rather too few than too many.
    """
    draws = _draws(totals, mixture)
    lengths = [folder.tokens / max(folder.documents, 1) for folder in totals]
    per_draw = sum(share * length for share, length in zip(draws, lengths, strict=True))
    drawn = run_tokens / max(per_draw, 1e-9)
    return [
        SourceShare(
            draws=share,
            tokens=share * length / max(per_draw, 1e-9),
            epochs=drawn * share / max(folder.documents, 1),
        )
        for folder, share, length in zip(totals, draws, lengths, strict=True)
    ]


def _draws(totals: Sequence[FolderTotals], mixture: MixtureConfig | None) -> list[float]:
    """Each folder's share of all draws of a run."""
    if mixture is None:
        documents = sum(folder.documents for folder in totals)
        return [folder.documents / max(documents, 1) for folder in totals]
    first = [weight / sum(mixture.weights) for weight in mixture.weights]
    if mixture.second_weights is None:
        return first
    second = [weight / sum(mixture.second_weights) for weight in mixture.second_weights]
    early = mixture.second_from
    return [early * a + (1 - early) * b for a, b in zip(first, second, strict=True)]


class SourceTable(L.Callback):
    """Prints the table, and logs its figures as `data/FOLDER/...` of step 0."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero or not isinstance(pl_module, TransformerModule):
            return
        spec = data_spec(trainer)
        if not spec.totals:
            return
        steps = max(trainer.max_steps, 0) * trainer.accumulate_grad_batches * trainer.world_size
        found = shares(spec.totals, spec.mixture, steps * spec.batch_tokens)
        table = Table("shards", "documents", "text tokens", "image tokens", "of draws", "of tokens", "epochs, about")
        for folder, share in zip(spec.totals, found, strict=True):
            counts = (folder.documents, folder.text_tokens, folder.image_tokens)
            epochs = f"{share.epochs:.1f}" if steps else "-"
            table.add_row(folder.name, *(f"{n:,}" for n in counts), f"{share.draws:.1%}", f"{share.tokens:.1%}", epochs)
            self._log(trainer, folder, share)
        open_console().print(table)

    def _log(self, trainer: L.Trainer, folder: FolderTotals, share: SourceShare) -> None:
        figures = {"text_tokens": folder.text_tokens, "image_tokens": folder.image_tokens, "epochs": share.epochs}
        for logger in trainer.loggers:
            logger.log_metrics({f"data/{folder.name}/{name}": float(value) for name, value in figures.items()}, step=0)
