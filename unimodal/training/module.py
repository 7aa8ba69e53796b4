"""Trains the decoder with Lightning: moves data, logs, steps. What is computed lives in model and losses."""

from __future__ import annotations

import logging
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from torch import Tensor

from data_pipelines.batch import LEAST_WEIGHT, PackedBatch
from data_pipelines.datamodule import TokenDataModule
from tokenizers_vq.token_space import TokenSpace
from unimodal.generation.batch_media import media_of
from unimodal.model.branches.base import MediaTokens
from unimodal.model.branches.flow import FlowBranch
from unimodal.model.config import ModelConfig, TransformerConfig
from unimodal.model.inference.compiling import compile_blocks, sizes_vary
from unimodal.model.masks import training_mask
from unimodal.model.model import LATENTS, PATCHES, VELOCITY, UnifiedModel
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
        TransformerConfig(**self.shape)  # say now what is wrong with it
        self.flow, self.vision = flow, vision
        self.z_weight, self.compile_model, self.codebook_init = z_weight, compile, codebook_init
        self.optimizer_config = optimizer or MuonConfig()
        self.schedule = schedule or ScheduleConfig()
        self.model: UnifiedModel | None = None
        self._step_weight, self._batches_of_step = torch.zeros(()), 0
        self._random_state: Tensor | None = None

    def configure_model(self) -> None:
        """Build the transformer once the data has told the size of the vocabulary."""
        if self.model is None:
            vocab_size = self.space.vocab_size
            if (self.flow is None) != (self.data.templates.latents is None):
                raise ValueError("model.flow and data.templates.latents go together: set both, or neither")
            if (self.vision is None) != (self.data.templates.vit_patch is None):
                raise ValueError("model.vision and data.templates.latents.vit_patch go together: set both, or neither")
            if self.flow is not None and self.flow.freeze_understanding and self.vision is not None:
                raise ValueError(
                    "freeze_understanding would freeze a ViT that nothing has trained: leave out one of them"
                )
            branch = self.flow.shape(self.data.autoencoder) if self.flow else {}
            branch |= {"vision": self.vision.shape(self.data.patches)} if self.vision else {}
            trunk = TransformerConfig(**self.shape, mixture=branch.pop("mixture", False))
            config = ModelConfig(vocab_size=vocab_size, trunk=trunk, **branch)
            self.model = UnifiedModel(config)
            if self.codebook_init is not None:
                tokenizer = open_beside(self.data.folders[0])
                begin_with_codebook(self.model, self.space, tokenizer, self.codebook_init)
            if self.flow is not None:
                begin(self.model, self.flow, self.space.fingerprint)
            if self.vision is not None:
                begin_vision(self.model, self.vision)
            if self.compile_model:
                compile_blocks(self.model)

    @property
    def data(self) -> TokenDataModule:
        """The data module of the run."""
        return self.trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def space(self) -> TokenSpace:
        """The token space of the data."""
        space = getattr(getattr(self.trainer, "datamodule", None), "space", None)
        if space is None:
            raise ValueError("this module trains on a TokenDataModule, which knows the token space")
        return space

    def configure_optimizers(self) -> Any:
        """Optimizer and schedule of the config, stepped once an optimizer step."""
        assert self.model is not None
        optimizer = build_optimizer(self.model, self.optimizer_config)
        total = max(self.trainer.max_steps, 1)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.schedule.factor(step, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def losses(self, batch: PackedBatch, generator: torch.Generator | None = None) -> LossSums:
        """Forward pass and sums of a batch; the generator draws the noise of the flow branch, torch's own if None."""
        assert self.model is not None
        features, given = self._read(batch, generator)
        head = self.model.token_head
        sums = next_token_losses(features, head, batch.targets, batch.loss_weights, batch.modality, self.z_weight)
        if not given:
            return sums
        velocity = self.model.heads[VELOCITY](features.flatten(0, 1)[given.media.index])
        return sums._replace(flow=flow_sums(velocity, given))

    def _read(self, batch: PackedBatch, generator: torch.Generator | None = None) -> tuple[Tensor, Noised | None]:
        """Features (B, T, D) before the heads, and with the flow branch what entered it."""
        assert self.model is not None
        media: dict[str, MediaTokens] = {}
        given = None
        if self.flow and (branch := self.model.branches[LATENTS]):
            assert isinstance(branch, FlowBranch)
            given = noise(batch, branch, self.flow.shift, generator)
            media[LATENTS] = given.media
        if PATCHES in self.model.branches:
            empty = self.model.branches[PATCHES].empty(self.model.trunk.embedding.weight)  # pyright: ignore
            media[PATCHES] = media_of(batch).get(PATCHES, empty)
        sizes_vary(tensor for each in media.values() for tensor in each if isinstance(tensor, Tensor))
        mask = training_mask(batch.documents, batch.branches, batch.spans if media else None)
        return self.model(batch.tokens, batch.positions, mask, media=media), given

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
            gradient.mul_(ranks / max(float(weight), LEAST_WEIGHT))
        norm = torch.nn.utils.get_total_norm(gradients)
        if not torch.isfinite(norm):
            raise FloatingPointError(f"the gradient norm is {float(norm)} at step {self.trainer.global_step}")
        self.log("train/grad_norm", norm)

    def on_train_epoch_end(self) -> None:
        """The stream of a mixture that is to stop ends once; without this, Lightning would begin it again for ever."""
        mixture = getattr(getattr(self.trainer, "datamodule", None), "mixture", None)
        if mixture is not None and mixture.when_dry == "stop":
            self.trainer.should_stop = True

    def validation_step(self, batch: PackedBatch, batch_index: int) -> None:
        """Losses on held-out documents."""
        self._log("val", self.losses(batch, torch.Generator().manual_seed(batch_index)), batch)

    def test_step(self, batch: PackedBatch, batch_index: int) -> None:
        """Losses on all documents of the data."""
        self._log("test", self.losses(batch, torch.Generator().manual_seed(batch_index)), batch)

    def predict_step(self, batch: PackedBatch, batch_index: int) -> Tensor:
        """The most likely next token everywhere: (B, T)."""
        assert self.model is not None
        features, _ = self._read(batch, torch.Generator().manual_seed(batch_index))
        return self.model.token_head(features).argmax(-1)

    def _log(self, stage: str, sums: LossSums, batch: PackedBatch) -> None:
        values = {
            "loss": self._total(sums) / sums.weight.clamp_min(LEAST_WEIGHT),
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
        checkpoint["autoencoder"] = self.data.autoencoder if self.flow else None

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the same random numbers; refuse another token space."""
        saved = TokenSpace.from_dict(checkpoint["token_space"])
        saved.check_same(self.space, "the checkpoint", "the data")
        if self.flow is not None and checkpoint.get("autoencoder") != self.data.autoencoder:
            raise ValueError("the checkpoint was trained on latents of another autoencoder than the data's")
        self._random_state = checkpoint["random_state"]


def _get_random_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _set_random_state(state: Tensor, device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state.cpu(), device)
    else:
        torch.set_rng_state(state.cpu())
