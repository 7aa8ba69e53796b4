"""The Lightning data module of the transformer: packed token documents. Image tokenizers have image_datamodule.py."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from data_pipelines.batch import PackedBatch
from data_pipelines.forms.form import REMEDIES
from data_pipelines.image_datamodule import ImageDataModule
from data_pipelines.mixture import MixtureConfig
from data_pipelines.planning import StreamConfig
from data_pipelines.shards.cache import ShardCache
from data_pipelines.shards.documents import Documents, Keyed
from data_pipelines.shards.format import MANIFEST_FILE, Manifest, TokenDocument
from data_pipelines.shards.reader import open_manifest
from data_pipelines.shards.remote import (
    DEFAULT_CACHE,
    DEFAULT_CACHE_GIB,
    check_cache,
    folder_of,
    is_remote,
    local_folder,
    open_shards,
)
from data_pipelines.spec import Contents, DataSpec, Described, FolderTotals, rank_of
from data_pipelines.stream import FixedBatches, PackedStream
from data_pipelines.templates import TemplateConfig
from tokenizers_vq.identity import IDENTITY, check_identity, plain
from tokenizers_vq.media import PATCHES, MediaSpec, PatchSpec
from tokenizers_vq.token_space import TokenSpace

__all__ = ["ImageDataModule", "TokenDataModule"]


class TokenDataModule(Described, L.LightningDataModule):
    """Token shards as packed batches; `validation_share` of the documents, picked by their key, is held out.

    shards: folders, or addresses that fsspec knows (s3://, hf://, ...), whose shards are fetched into `cache` when they
    are read. The processes of a machine share it; beyond `max_cache_gib` the least recently used are evicted.
    validation_batches: of the held-out documents, as many batches as these, all ranks' together; all where it is None.
    mixture: how often each folder is drawn from; None takes every document of all folders once an epoch.
    """

    def __init__(
        self,
        shards: list[str],
        stream: StreamConfig | None = None,
        templates: TemplateConfig | None = None,
        mixture: MixtureConfig | None = None,
        validation_share: float = 0.02,
        num_workers: int = 0,
        cache: Path = DEFAULT_CACHE,
        validation_batches: int | None = None,
        max_cache_gib: float = DEFAULT_CACHE_GIB,
    ) -> None:
        super().__init__()
        if validation_batches is not None and validation_batches < 1:
            raise ValueError(f"validation takes at least 1 batch, got {validation_batches}")
        if not 0 < max_cache_gib < math.inf:
            raise ValueError(f"max_cache_gib is a finite number above 0, got {max_cache_gib}")
        if not 0 <= validation_share < 1:
            raise ValueError(f"the validation share lies in [0, 1), got {validation_share}")
        self.shards, self.mixture, self.cache = [str(folder) for folder in shards], mixture, cache
        self.stream, self.templates = stream or StreamConfig(), templates or TemplateConfig()
        self.validation_share, self.num_workers = validation_share, num_workers
        self.validation_batches, self.max_cache_gib = validation_batches, max_cache_gib
        self.train_sources: list[Documents] = []
        self.val_documents = Documents([])
        self.contents: list[Contents] = []

    def prepare_data(self) -> None:
        """Fetch manifests and tokenizers of remote shards, in one process of each machine.

        Where that fails `setup` tries again, so that every rank ends with the reason and none waits for another.
        """
        for address in filter(is_remote, self.shards):
            try:
                local_folder(address, self.cache)
            except ValueError:
                (folder_of(address, self.cache) / MANIFEST_FILE).unlink(missing_ok=True)

    def setup(self, stage: str) -> None:
        """Open and verify the shards once."""
        del stage
        if self.train_sources:
            return
        if not self.shards:
            raise ValueError("name at least one folder of token shards")
        folders = [self._folder(address) for address in self.shards]
        manifests = [open_manifest(folder) for folder in folders]
        space, media = manifests[0].space, self._checked_media(manifests[0], self.shards[0])
        for address, manifest in zip(self.shards[1:], manifests[1:], strict=True):
            space.check_same(manifest.space, self.shards[0], address)
            for name, spec in self._checked_media(manifest, address).items():
                if spec != media[name]:
                    raise ValueError(f"{self.shards[0]} and {address} hold {name} that were not made alike")
        cache = ShardCache.of_gib(self.cache, self.max_cache_gib)
        parts = zip(self.shards, folders, manifests, strict=True)
        opened = [open_shards(address, folder, manifest, cache) for address, folder, manifest in parts]
        groups = opened if self.mixture else [[shard for shards in opened for shard in shards]]
        check_cache(groups, self.stream.shards_together, cache)
        self.train_sources = [self.split_documents(shards, held_out=False) for shards in groups]
        self.val_documents = self.split_documents([shard for shards in opened for shard in shards], held_out=True)
        self.contents = [Contents.of(manifest) for manifest in manifests]
        totals = [FolderTotals.of(address, m.shards) for address, m in zip(self.shards, manifests, strict=True)]
        self.describe(space, media, folders[0], totals)

    def _folder(self, address: str) -> Path:
        """Of an address, brought up to date by `prepare_data` where there is a trainer, which calls it."""
        folder = folder_of(address, self.cache)
        prepared = self.trainer is not None and (folder / MANIFEST_FILE).is_file()
        return folder if prepared else local_folder(address, self.cache)

    def describe(
        self, space: TokenSpace, media: Mapping[str, MediaSpec], tokenizers: Path, totals: Sequence[FolderTotals] = ()
    ) -> None:
        """Make the spec, once documents are there; pictures that are resampled take the templates' number of tokens."""
        tokens = self.templates.resampled_tokens
        media = {name: spec.resampled(tokens) if name == PATCHES else spec for name, spec in media.items()}
        self._spec = DataSpec(
            space=space,
            media=media,
            tokenizers=tokenizers,
            ends=self.mixture is not None and self.mixture.when_dry == "stop",
            held_out=self.val_documents,
            totals=totals,
            mixture=self.mixture,
            batch_tokens=self.stream.rows * self.stream.length,
        )

    def train_dataloader(self) -> StatefulDataLoader[PackedBatch]:
        """Packed batches with an exact position, without end unless the mixture says so."""
        rank, world_size = rank_of(self.trainer)
        stream = PackedStream(
            self.train_sources,
            self.spec.space,
            self.templates,
            self.stream,
            self.mixture,
            names=self.shards if self.mixture else [", ".join(self.shards)],
            second_stage_round=self._second_stage_round(),
            rounds_per_step=self.trainer.accumulate_grad_batches if self.trainer else 1,
            rank=rank,
            world_size=world_size,
        )
        start: Any = "fork" if self.num_workers else None  # shards are mapped memory, which no other start hands on
        return StatefulDataLoader(stream, batch_size=None, num_workers=self.num_workers, multiprocessing_context=start)

    def state_dict(self) -> dict[str, Any]:
        """What the position of the stream belongs to: shards, order of documents, templates."""
        return {IDENTITY: self.identity()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Raises ValueError, with the first difference, for a position in other data."""
        check_identity(state_dict.get(IDENTITY), self.identity(), "the checkpoint's position in the data")

    def identity(self) -> dict[str, Any]:
        """What decides which document comes when; folders count by what they hold, not by their names."""
        stream = {name: value for name, value in vars(self.stream).items() if name != "rows"}
        chosen = {"stream": stream, "templates": self.templates, "mixture": self.mixture}
        return plain({"shards": self.contents, **chosen, "validation_share": self.validation_share})

    def val_dataloader(self) -> DataLoader[PackedBatch]:
        """The held-out documents, the same batches every time."""
        return self._fixed(self.val_documents, self.validation_batches)

    def test_dataloader(self) -> DataLoader[PackedBatch]:
        """All documents of the shards."""
        return self._fixed([*self.val_documents, *itertools.chain(*self.train_sources)])

    predict_dataloader = test_dataloader

    def split_documents(self, shards: Sequence[Keyed], *, held_out: bool) -> Documents:
        """The documents of some shards that are trained on, or those that are held out."""
        share = self.validation_share
        chosen = [[i for i, key in enumerate(s.keys) if _held_out(key, share) == held_out] for s in shards]
        return Documents(shards, chosen)

    def _checked_media(self, manifest: Manifest, address: str) -> dict[str, MediaSpec]:
        """The media that the templates need. Raises ValueError, with the remedy, where a folder does not hold them."""
        for name in self.templates.media:
            if name not in manifest.media:
                raise ValueError(f"{address} holds no {name}, which the templates need: {REMEDIES[name]}")
            sizing, size = manifest.media[name].sizing, self.templates.patch_size
            if isinstance(sizing, PatchSpec) and size not in (None, sizing.size):
                raise ValueError(
                    f"a ViT with patches of {size} pixels is asked for, and {address} holds those for patches of "
                    f"{sizing.size}: tokenize with --patch {size}"
                )
        return {name: manifest.media[name] for name in self.templates.media}

    def _second_stage_round(self) -> float:
        if self.mixture is None or self.mixture.second_weights is None:
            return math.inf
        if self.trainer is None or self.trainer.max_steps < 1:
            raise ValueError("a mixture of two stages needs trainer.max_steps, of which the second is a share")
        return self.mixture.second_from * self.trainer.max_steps * self.trainer.accumulate_grad_batches

    def _fixed(self, documents: Sequence[TokenDocument], count: int | None = None) -> DataLoader[PackedBatch]:
        config = replace(self.stream, seed=0)
        rank, world_size = rank_of(self.trainer)
        batches = FixedBatches(documents, self.spec.space, self.templates, config, count, rank, world_size)
        return DataLoader(batches, batch_size=None)


def _held_out(key: str, share: float) -> bool:
    """Copies of a document (key, key+1, ...) belong to the same split."""
    digest = hashlib.sha256(key.split("+")[0].encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64
