"""Trains the decoder with Lightning: moves data, logs, steps. What is computed lives in model and losses."""

from __future__ import annotations

import logging
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from torch import Tensor

from data_pipelines.batch import MIN_WEIGHT, PackedBatch
from data_pipelines.spec import DataSpec, data_spec
from tokenizers_vq.media import LATENTS, PATCHES
from tokenizers_vq.token_space import TokenSpace
from unimodal.generation.flow_context import to_patch_tokens
from unimodal.model.compiling import compiled_features, sizes_vary
from unimodal.model.config import TransformerConfig
from unimodal.model.masks import training_mask
from unimodal.model.transformer import Transformer
from unimodal.model.vision import Seen, no_patches
from unimodal.training.code_init import CodebookInitConfig, begin_with_codebook, open_beside
from unimodal.training.flow import FlowTrainingConfig, Noised, begin, flow_sums, noise
from unimodal.training.losses import LossSums, next_token_losses
from unimodal.training.optim import MuonConfig, OptimizerConfig, build_optimizer
from unimodal.training.schedule import ScheduleConfig
from unimodal.training.vision import VisionTrainingConfig, begin_vision

log = logging.getLogger(__name__)


class TransformerModule(L.LightningModule):
    """The loss of a step is the sum over all its tokens (ranks, accumulated batches) over their summed weight."""

    def __init__(
        self,
        dim: int = 256,
        num_layers: int = 6,
        num_heads: int = 2,
        num_kv_heads: int = 1,
        hidden_dim: int = 704,
        max_length: int = 512,
        dropout: float = 0.0,
        norm_placement: str = "pre",
        z_weight: float = 1e-5,
        optimizer: OptimizerConfig | None = None,
        schedule: ScheduleConfig | None = None,
        codebook_init: CodebookInitConfig | None = None,
        flow: FlowTrainingConfig | None = None,
        vision: VisionTrainingConfig | None = None,
        compile: bool = True,
    ) -> None:
        super().__init__()
        self.shape: dict[str, Any] = {
            "dim": dim,
            "num_layers": num_layers,
            "num_heads": num_heads,
            "num_kv_heads": num_kv_heads,
            "hidden_dim": hidden_dim,
            "max_length": max_length,
            "dropout": dropout,
            "norm_placement": norm_placement,
        }
        TransformerConfig(vocab_size=1, **self.shape)  # say now what is wrong with it
        self.flow, self.vision = flow, vision
        self.z_weight, self.compile_model, self.codebook_init = z_weight, compile, codebook_init
        self.optimizer_config = optimizer or MuonConfig()
        self.schedule = schedule or ScheduleConfig()
        self.transformer: Transformer | None = None
        self._features: Any = None
        self._step_weight, self._batches_of_step = torch.zeros(()), 0
        self._random_state: Tensor | None = None

    def configure_model(self) -> None:
        """Build the transformer once the data has told the size of the vocabulary."""
        if self.transformer is None:
            vocab_size = self.space.vocab_size
            media = self.data.media
            if (self.flow is None) != (LATENTS not in media):
                raise ValueError("model.flow and data.templates.drawn: latents go together: set both, or neither")
            if (self.vision is None) != (PATCHES not in media):
                raise ValueError("model.vision and data.templates.seen: patches go together: set both, or neither")
            if self.vision is not None and self.flow is None:
                raise ValueError("a ViT goes with the flow branch: set model.flow and data.templates.drawn: latents")
            if self.flow is not None and self.flow.freeze_understanding and self.vision is not None:
                raise ValueError(
                    "freeze_understanding would freeze a ViT that nothing has trained: leave out one of them"
                )
            branch = self.flow.shape(media) if self.flow else {}
            branch |= {"vision": self.vision.shape(media)} if self.vision else {}
            config = TransformerConfig(vocab_size=vocab_size, **self.shape, **branch)
            self.transformer = Transformer(config)
            if self.codebook_init is not None:
                tokenizer = open_beside(self.data.tokenizers_folder)
                begin_with_codebook(self.transformer, self.space, tokenizer, self.codebook_init)
            if self.flow is not None:
                begin(self.transformer, self.flow, self.space.fingerprint)
            if self.vision is not None:
                begin_vision(self.transformer, self.vision)
            self._features = compiled_features(self.transformer) if self.compile_model else self.transformer.features

    @property
    def data(self) -> DataSpec:
        """What the data module of the run tells of itself."""
        return data_spec(self.trainer)

    @property
    def space(self) -> TokenSpace:
        """The token space of the data."""
        return self.data.space

    def configure_optimizers(self) -> Any:
        """Optimizer and schedule of the config, stepped once an optimizer step."""
        assert self.transformer is not None
        optimizer = build_optimizer(self.transformer, self.optimizer_config)
        total = max(self.trainer.max_steps, 1)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.schedule.factor(step, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def losses(self, batch: PackedBatch, generator: torch.Generator | None = None) -> LossSums:
        """Forward pass and sums of a batch; the generator draws the noise of the flow branch, torch's own if None."""
        assert self.transformer is not None
        features, given = self._read(batch, generator)
        sums = next_token_losses(
            features, self.transformer.head, batch.targets, batch.loss_weights, batch.modality, self.z_weight
        )
        if given is None or self.transformer.flow is None:
            return sums
        velocity = self.transformer.flow.velocity(features.flatten(0, 1)[given.media.index])
        return sums._replace(flow=flow_sums(velocity, given))

    def _read(self, batch: PackedBatch, generator: torch.Generator | None = None) -> tuple[Tensor, Noised | None]:
        """Features (B, T, D) before the head, and with the flow branch what entered it."""
        if self.flow is None or self.transformer is None or self.transformer.flow is None:
            mask = training_mask(batch.documents, batch.branches)
            return self._features(batch.tokens, batch.positions, mask), None
        branch, spans = self.transformer.flow, batch.spans
        given = noise(batch.media.get(LATENTS), branch.config, self.flow.shift, batch.tokens, generator)
        mask, seen = training_mask(batch.documents, batch.branches, spans), self._see(batch)
        sizes_vary([*given.media, *(seen or ())])
        return self._features(batch.tokens, batch.positions, mask, media=given.media, seen=seen), given

    def _see(self, batch: PackedBatch) -> Seen | None:
        """What the ViT makes of the pictures of a batch, which may hold none."""
        assert self.transformer is not None
        tower, weight = self.transformer.vision, self.transformer.embedding.weight
        if tower is None:
            return None
        if PATCHES not in batch.media:
            return tower(no_patches(tower.config, weight))
        return tower(to_patch_tokens(batch.media[PATCHES], weight.dtype))

    def _total(self, sums: LossSums) -> Tensor:
        total = sums.text + sums.image + sums.z
        return total if sums.flow is None or self.flow is None else total + self.flow.weight * sums.flow.weighted

    def _noise_of_batch(self) -> torch.Generator | None:
        """Noise is a function of the batch's number in the run, however ranks and accumulation share the batches."""
        if self.flow is None:
            return None
        rounds = self.trainer.global_step * self.trainer.accumulate_grad_batches + self._batches_of_step
        number = rounds * self.trainer.world_size + self.trainer.global_rank
        return torch.Generator().manual_seed(self.flow.seed * 2**32 + number)

    def training_step(self, batch: PackedBatch, batch_index: int) -> Tensor:
        """The sum over this batch's tokens; `on_before_optimizer_step` divides by the step's weight.

        Random numbers go on where the last step left them, whatever validation, samples or a restart drew in between.
        """
        del batch_index
        if self._random_state is not None:
            _set_random_state(self._random_state, self.device)
        sums = self.losses(batch, self._noise_of_batch())
        self._batches_of_step += 1
        self._random_state = _get_random_state(self.device)
        self._step_weight = self._step_weight.to(sums.weight.device) + sums.weight.detach()
        self._log("train", sums, batch)
        return self._total(sums) * self.trainer.accumulate_grad_batches

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Gradient of the sum -> gradient of the weighted mean over the whole step, then log its norm."""
        del optimizer
        weight, ranks = self._step_weight.clone(), 1
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(weight)
            ranks = dist.get_world_size()
        self._step_weight, self._batches_of_step = torch.zeros(()), 0
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        for gradient in gradients:
            gradient.mul_(ranks / max(float(weight), MIN_WEIGHT))
        norm = torch.nn.utils.get_total_norm(gradients)
        if not torch.isfinite(norm):
            raise FloatingPointError(f"the gradient norm is {float(norm)} at step {self.trainer.global_step}")
        self.log("train/grad_norm", norm)

    def on_train_epoch_end(self) -> None:
        """The stream of a mixture that is to stop ends once; without this, Lightning would begin it again for ever."""
        if self.data.ends:
            self.trainer.should_stop = True

    def validation_step(self, batch: PackedBatch, batch_index: int) -> None:
        """Losses on held-out documents."""
        self._log("val", self.losses(batch, torch.Generator().manual_seed(batch_index)), batch)

    def test_step(self, batch: PackedBatch, batch_index: int) -> None:
        """Losses on all documents of the data."""
        self._log("test", self.losses(batch, torch.Generator().manual_seed(batch_index)), batch)

    def predict_step(self, batch: PackedBatch, batch_index: int) -> Tensor:
        """The most likely next token everywhere: (B, T)."""
        assert self.transformer is not None
        features, _ = self._read(batch, torch.Generator().manual_seed(batch_index))
        return self.transformer.head(features).argmax(-1)

    def _log(self, stage: str, sums: LossSums, batch: PackedBatch) -> None:
        values = {
            "loss": self._total(sums) / sums.weight.clamp_min(MIN_WEIGHT),
            "loss_text": sums.text / sums.text_weight.clamp_min(1e-8),
            "loss_image": sums.image / sums.image_weight.clamp_min(1e-8),
            "z_loss": sums.z / sums.weight.clamp_min(1e-8),
        }
        if sums.flow is not None:
            values["loss_flow"] = sums.flow.plain / sums.flow.count.clamp_min(1)
        for name, value in values.items():
            bar = name != "z_loss"
            self.log(
                f"{stage}/{name}",
                value.detach(),
                prog_bar=bar,
                batch_size=len(batch.tokens),
                sync_dist=stage != "train",
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Random state and token space travel with the weights."""
        checkpoint["random_state"] = self._random_state
        checkpoint["token_space"] = self.space.to_dict()
        checkpoint["autoencoder"] = self.data.media[LATENTS].source if self.flow else None

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the same random numbers; refuse another token space."""
        saved = TokenSpace.from_dict(checkpoint["token_space"])
        saved.check_same(self.space, "the checkpoint", "the data")
        if self.flow is not None and autoencoder_hash(checkpoint) != self.data.media[LATENTS].source:
            raise ValueError("the checkpoint was trained on latents of another autoencoder than the data's")
        self._random_state = checkpoint["random_state"]


def autoencoder_hash(checkpoint: dict[str, Any]) -> str | None:
    """Of the latents that a checkpoint was trained on; older ones hold a dict."""
    saved = checkpoint.get("autoencoder")
    return saved.get("hash") if isinstance(saved, dict) else saved


def _get_random_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _set_random_state(state: Tensor, device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state.cpu(), device)
    else:
        torch.set_rng_state(state.cpu())
