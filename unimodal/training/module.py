"""Trains a model with Lightning: moves data, logs, steps. What is computed lives in the model and the objectives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from data_pipelines.batch import MIN_WEIGHT, PackedBatch
from data_pipelines.spec import DataSpec, data_spec
from tokenizers_vq.identity import IDENTITY, check_identity, check_weights, plain
from tokenizers_vq.run_length import planned_steps
from tokenizers_vq.token_space import TokenSpace
from unimodal.model.branches.base import MediaBatch
from unimodal.model.config import ModelConfig, MultiTokenConfig, TransformerConfig
from unimodal.model.inference.compiling import compile_blocks
from unimodal.model.model import UnifiedModel
from unimodal.training.branches import FlowBranchConfig, VisionBranchConfig, check_branches
from unimodal.training.checkpointing import SOUND
from unimodal.training.gradients import clip, gradients_of, to_means
from unimodal.training.lora import LORA_SCALE
from unimodal.training.objectives.base import EXPERTS, Objective, Terms, check_objectives, total
from unimodal.training.objectives.usual import usual_objectives
from unimodal.training.old_names import upgrade_checkpoint
from unimodal.training.optimizers.build import MuonConfig, OptimizerConfig, build_optimizer
from unimodal.training.packed_pass import clean_media, packed_features
from unimodal.training.parallel.activations import checkpoint_activations
from unimodal.training.parallel.admission import check_memory
from unimodal.training.parallel.sharding import ParallelConfig, first_weights, rank_mesh, shard
from unimodal.training.parallel.strategy import ShardedStrategy
from unimodal.training.precision import gathered_dtype, loss_scale
from unimodal.training.random_state import (
    get_random_state,
    part_from_other_ranks,
    set_random_state,
    states_of_ranks,
)
from unimodal.training.schedule import ScheduleConfig
from unimodal.training.skipped import SkippedSteps, is_sound
from unimodal.training.start import StartConfig, bundle_config, frozen_names, space_with_ends, start
from unimodal.training.steps import LEARNT_TERMS, StepSums
from unimodal.training.trained_rows import check_rows, keep_gradients_from


class TransformerModule(L.LightningModule):
    """The loss of a step is the sum over all its tokens (ranks, accumulated batches) over their summed weight.

    Without `trunk` the architecture is that of the bundle the run starts from, or TransformerConfig's defaults. Without
    `objectives` a model learns the next token, and with a flow branch the velocity of noised latents.
    """

    def __init__(
        self,
        trunk: TransformerConfig | None = None,
        flow: FlowBranchConfig | None = None,
        vision: VisionBranchConfig | None = None,
        multi_token: MultiTokenConfig | None = None,
        objectives: list[Objective] | None = None,
        optimizer: OptimizerConfig | None = None,
        schedule: ScheduleConfig | None = None,
        start: StartConfig | None = None,
        compile: bool = True,
        parallel: ParallelConfig | None = None,
    ) -> None:
        super().__init__()
        self.trunk, self.flow, self.vision, self.multi_token = trunk, flow, vision, multi_token
        self.objectives: Sequence[Objective] = objectives or ()
        self.optimizer_config, self.schedule = optimizer or MuonConfig(), schedule or ScheduleConfig()
        self.start, self.compile_model, self.parallel = start or StartConfig(), compile, parallel or ParallelConfig()
        check_rows(self.start, self.optimizer_config)
        self.model: UnifiedModel | None = None
        self.skipped, self._sums = SkippedSteps(), StepSums()
        self._norm: Tensor | None = None
        self._random_state: Tensor | None = None

    # -- building

    def configure_model(self) -> None:
        """Build the model once the data's token space and media are known."""
        if self.model is not None:
            return
        spec, strategy = self.spec, self.trainer.strategy
        with torch.device("meta"):
            model = UnifiedModel(self.architecture(spec, bundle_config(self.start)))
        experts = {EXPERTS} if model.config.trunk.moe else set()
        has = {"flow": self.flow is not None, "multi_token": self.multi_token is not None, "experts": bool(experts)}
        self.objectives = self.objectives or usual_objectives(**has)
        check_objectives(self.objectives, {*model.branches, *model.heads, *experts})
        check_memory(model, self.optimizer_config, self.parallel, frozen_names(model, self.start), self.trainer)
        checkpoint_activations(model, self.parallel.activation_checkpointing)
        if self.compile_model:
            compile_blocks(model)
        if isinstance(strategy, ShardedStrategy):
            mesh = rank_mesh(self.parallel, strategy.root_device)
            shard(model, mesh, strategy.root_device, gathered_dtype(self.trainer.precision))
            first_weights(model)
        else:
            model.to_empty(device="cpu")
            model.init_weights()
        start(model, self.start, spec.space, spec.tokenizers)
        self.model = model

    def architecture(self, spec: DataSpec, source: ModelConfig | None) -> ModelConfig:
        """The model's config: what the user chose, that of the bundle the run starts from, and the data's facts."""
        trunk = self.trunk or (source.trunk if source else TransformerConfig())
        flow = self.flow.to_model_config(spec.media) if self.flow else source and source.flow
        vision = self.vision.to_model_config(spec.media, self.start.vision) if self.vision else source and source.vision
        trunk = replace(trunk, mixture=self.flow.mixture) if self.flow else trunk
        trunk = replace(trunk, moe=trunk.moe and replace(trunk.moe, image_ids_from=spec.space.image_offset))
        parts = {"flow": flow, "vision": vision, "multi_token": self.multi_token or (source and source.multi_token)}
        config = ModelConfig(vocab_size=spec.space.vocab_size, trunk=trunk, **parts)
        check_branches(config, spec.media)
        return config

    @property
    def spec(self) -> DataSpec:
        """What the data module of the run tells of itself."""
        return data_spec(self._trainer)

    @property
    def space(self) -> TokenSpace:
        """The token space of the data."""
        return space_with_ends(self.spec.space, self.start.bundle)

    @property
    def trained(self) -> UnifiedModel:
        """The model, once it is built."""
        assert self.model is not None
        return self.model

    def optimized(self) -> nn.Module:
        """Whose parameters the optimizer gets."""
        return self.trained

    def configure_optimizers(self) -> Any:
        """Optimizer and schedule of the config, stepped once an optimizer step."""
        optimizer = build_optimizer(self.optimized(), self.optimizer_config)
        steps = 1 if self.schedule.decay == "constant" else planned_steps(self.trainer)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.schedule.factor(step, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # -- the loss

    def terms(self, batch: PackedBatch, number: int) -> Terms:
        """Forward pass and the terms of all objectives; noise is a function of the batch's number."""
        features, states = self._forward(batch, number)
        terms: Terms = {}
        for objective, state in zip(self.objectives, states, strict=True):
            terms |= objective.terms(self.trained, features, batch, state)
        return terms

    def _forward(self, batch: PackedBatch, number: int) -> tuple[Tensor, list[Any]]:
        """Features (B, T, D) before the heads, and what each objective prepared."""
        media, states = self.entering(batch, number)
        return packed_features(self.trained, batch, media), states

    def entering(self, batch: PackedBatch, number: int) -> tuple[MediaBatch, list[Any]]:
        """Media as they enter the model, and what each objective prepared."""
        media, states = clean_media(self.trained, batch), list[Any]()
        for objective in self.objectives:
            media, state = objective.prepare(self.trained, batch, media, number)
            states.append(state)
        return media, states

    def _batch_number(self) -> int:
        """The batch's number in the run, however ranks and accumulation share the batches."""
        rounds = self.trainer.global_step * self.trainer.accumulate_grad_batches + self._sums.batches
        return rounds * self.trainer.world_size + self.trainer.global_rank

    # -- steps

    def training_step(self, batch: PackedBatch, batch_index: int) -> Tensor:
        """The sum over this batch's tokens; `on_before_optimizer_step` divides by the step's weight.

        Random numbers resume where the last step left them, whatever validation, samples or a restart drew in between.
        """
        del batch_index
        if self._random_state is None:
            part_from_other_ranks(self.trainer.global_rank)
        else:
            set_random_state(self._random_state, self.device)
        terms = self.terms(batch, self._batch_number())
        self._random_state = get_random_state(self.device)
        self._sums.add(terms, batch.facts.counted.weights.sum())
        self.skipped.last_batch = batch
        return total(terms) * self.trainer.accumulate_grad_batches

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Gradient of the sum -> gradient of the weighted mean over the whole step; logs of the step.

        A step whose loss or gradient is not finite leaves weights and optimizer as they are. Raises Diverged after
        SKIPPED_IN_A_ROW of them.
        """
        losses = self._sums.reduced()
        if self.start.trainable_rows == "image":
            keep_gradients_from(self.trained, self.space.image_offset)
        self._norm = to_means(gradients_of(optimizer), losses.weight)
        self.log("train/loss", losses.loss, prog_bar=True)
        for name, value in losses.terms.items():
            self._log_term("train", name, value)
        self.log_dict({f"train/share_{name}": value for name, value in losses.shares.items()})
        self.log("train/grad_norm", self._norm)
        scale = loss_scale(self.trainer)
        skips = self.skipped.skips(self._norm, losses.loss, scaled=scale is not None)
        for objective in self.objectives:
            for name, value in objective.end_step(self.trained, self.trainer.global_step, sound=not skips).items():
                self.log(f"train/{name}", value.float())
        if skips:
            optimizer.zero_grad(set_to_none=True)
            self.skipped.report(self.trainer, self.trained, self._norm, losses.loss)
        self.log("train/skipped_steps", float(self.skipped.total))
        if scale is not None:
            self.log_dict({"train/loss_scale": scale, "train/overflows": float(self.skipped.overflows)})

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by the norm that `on_before_optimizer_step` took."""
        if gradient_clip_val and gradient_clip_algorithm in (None, "norm"):
            assert self._norm is not None
            clip(gradients_of(optimizer), gradient_clip_val, self._norm)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_train_epoch_end(self) -> None:
        """The stream of a mixture that is to stop ends once; without this, Lightning would restart it for ever."""
        self.trainer.should_stop |= self.spec.ends

    def validation_step(self, batch: PackedBatch, batch_index: int) -> None:
        """Losses on held-out documents."""
        self._evaluate("val", batch, batch_index)

    def test_step(self, batch: PackedBatch, batch_index: int) -> None:
        """Losses on all documents of the data."""
        self._evaluate("test", batch, batch_index)

    def _evaluate(self, stage: str, batch: PackedBatch, batch_index: int) -> None:
        """The loss by the weight of all tokens, and each term by its own; a batch of padding counts as none."""
        number = batch_index * self.trainer.world_size + self.trainer.global_rank
        terms, weight = self.terms(batch, number), batch.facts.counted.weights.sum()
        settings = {"batch_size": len(batch.tokens) if batch.num_tokens else 0, "sync_dist": True}
        self.log(f"{stage}/loss", total(terms) / weight.clamp_min(MIN_WEIGHT), prog_bar=True, **settings)
        for name, term in terms.items():
            self._log_term(stage, name, term.weighted / term.weight.clamp_min(MIN_WEIGHT), **settings)

    def predict_step(self, batch: PackedBatch, batch_index: int) -> Tensor:
        """The most likely next token everywhere: (B, T)."""
        features, _ = self._forward(batch, batch_index)
        return self.trained.token_head(features).argmax(-1)

    def _log_term(self, stage: str, name: str, value: Tensor, **settings: Any) -> None:
        shown = name in LEARNT_TERMS
        self.log(f"{stage}/loss_{name}" if shown else f"{stage}/{name}", value, prog_bar=shown, **settings)

    # -- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Random state, token space and media travel with the weights."""
        checkpoint[SOUND] = is_sound(self.trained, self.skipped)
        checkpoint["random_states"] = states_of_ranks(self._random_state)
        checkpoint["model_config"] = self.trained.config.to_dict()
        checkpoint["token_space"] = self.space.to_dict()
        checkpoint["media"] = {name: spec.source for name, spec in self.spec.media.items()}
        checkpoint[IDENTITY] = self._identity()
        if self.start.lora is not None:
            checkpoint[LORA_SCALE] = self.start.lora.scale

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Resume with the same random numbers; refuse another token space or another autoencoder's latents."""
        upgrade_checkpoint(checkpoint, self.trained)
        saved = TokenSpace.from_dict(checkpoint["token_space"])
        saved.check_same(self.space, "the checkpoint", "the data")
        found, wanted = checkpoint["media"], {name: spec.source for name, spec in self.spec.media.items()}
        if found.keys() != wanted.keys():
            trained, given = (" and ".join(sorted(names)) or "no media" for names in (found, wanted))
            raise ValueError(f"the checkpoint was trained on {trained}, the data's templates give {given}")
        for name, source in found.items():
            if wanted[name] != source:
                raise ValueError(f"the checkpoint was trained on {name} of another autoencoder than the data's")
        states = checkpoint["random_states"] if "random_states" in checkpoint else [checkpoint["random_state"]]
        rank = self.trainer.global_rank
        self._random_state = states[rank] if rank < len(states) else None
        check_identity(checkpoint.get(IDENTITY), self._identity(), "the checkpoint")
        check_weights(checkpoint["state_dict"], self.state_dict(), "the checkpoint")

    def _identity(self) -> dict[str, Any]:
        """What cannot change between a checkpoint and its resumption: shapes, objectives and kind of optimizer."""
        config = self.trained.config.to_dict()
        del config["trunk"]["dropout"]
        names = {"optimizer": type(self.optimizer_config).__name__}
        return plain({**config, **names, "objectives": [type(objective).__name__ for objective in self.objectives]})
