"""How fast a run is: tokens a second, operations and their share of the device's peak, waiting for data, memory."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
import torch
import torch.distributed as dist

from data_pipelines.batch import PackedBatch
from tokenizers_vq.media import LATENTS
from unimodal.devices import known_peak
from unimodal.model.flops import active_parameters
from unimodal.model.model import UnifiedModel
from unimodal.training.module import TransformerModule


class Throughput(L.Callback):
    """Logs, at the trainer's log interval, what the steps since the last time came to.

    `train/tokens_per_second` counts tokens of all ranks without padding, `train/tflops` operations of a rank by the
    weights each token passes and the pairs that its mask allows (a ViT's are not counted), `train/mfu` their share of
    the peak where that is known, `train/data_wait` the share of time between two batches, `train/memory_gib` the peak
    of a GPU, `lr/...` the rate of each group. peak_tflops: of one device; None knows some GPUs by name.
    """

    def __init__(self, peak_tflops: float | None = None) -> None:
        super().__init__()
        if peak_tflops is not None and peak_tflops <= 0:
            raise ValueError(f"throughput.peak_tflops is above 0, got {peak_tflops}")
        self.peak_tflops = peak_tflops
        self._tokens = self._flops = self._waited = 0.0
        self._since = self._ended = 0.0
        self._step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        del pl_module
        self._since = self._ended = time.perf_counter()
        self._step = trainer.global_step

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        del trainer, pl_module, batch, batch_idx
        self._waited += time.perf_counter() - self._ended

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        del outputs, batch_idx
        self._ended = time.perf_counter()
        if not (isinstance(pl_module, TransformerModule) and isinstance(batch, PackedBatch) and pl_module.model):
            return
        self._tokens += batch.num_tokens
        self._flops += batch_flops(pl_module.model, batch)
        interval: int = getattr(trainer, "log_every_n_steps", 1)
        if trainer.global_step > self._step and trainer.global_step % interval == 0:
            self._step = trainer.global_step
            for name, value in self._figures(trainer, pl_module.device).items():
                pl_module.log(name, value)

    def _figures(self, trainer: L.Trainer, device: torch.device) -> dict[str, float]:
        now = time.perf_counter()
        seconds, tokens = max(now - self._since, 1e-9), torch.tensor(self._tokens, device=device)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(tokens)
        tflops = self._flops / seconds / 1e12
        figures = {"train/tokens_per_second": float(tokens) / seconds, "train/tflops": tflops}
        figures["train/data_wait"] = self._waited / seconds
        if (peak := self.peak_tflops or known_peak(device)) is not None:
            figures["train/mfu"] = tflops / peak
        if device.type == "cuda":
            figures["train/memory_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
        for number, group in enumerate(trainer.optimizers[0].param_groups):
            figures[f"lr/{group.get('name', number)}"] = float(group["lr"])
        self._tokens = self._flops = self._waited = 0.0
        self._since = now
        return figures


def batch_flops(model: UnifiedModel, batch: PackedBatch) -> float:
    """Operations of forward and backward: 6 for each weight that a token passes, 12 x heads x width x layers for each
    pair of tokens that the mask allows (PaLM, arXiv 2204.02311, appendix B, with the mask's true pairs)."""
    trunk, head = model.config.trunk, model.token_head.weight.numel()
    generated = len(batch.media[LATENTS].index) if LATENTS in batch.media else 0
    of_understanding = active_parameters(model) - head
    of_generation = active_parameters(model, "generation") if generated else 0
    passed = of_understanding * (batch.num_tokens - generated) + of_generation * generated
    passed += head * len(batch.facts.counted.index)
    return 6 * passed + 12 * trunk.num_layers * trunk.num_heads * trunk.head_dim * batch.facts.num_pairs
