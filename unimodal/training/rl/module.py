"""Reinforcement learning with Lightning: the batches are rollouts of the very model that trains."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from random import Random
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tokenizers_vq.bundle_files import Tokenizers
from tokenizers_vq.identity import plain
from unimodal.bundle import Bundle
from unimodal.generation.modality import ModalityMachine
from unimodal.generation.pipeline import Pipeline
from unimodal.model.linear import BoundaryLinear
from unimodal.model.model import UnifiedModel
from unimodal.training.gradients import clip, gradients_of, to_means
from unimodal.training.module import TransformerModule
from unimodal.training.optimizers.build import AdamWConfig, OptimizerConfig
from unimodal.training.parallel.gathering import whole_model
from unimodal.training.parallel.sharding import ParallelConfig
from unimodal.training.rl.advantages.base import Advantage, is_equal
from unimodal.training.rl.advantages.generalized import ValueConfig
from unimodal.training.rl.advantages.group_relative import GroupRelative
from unimodal.training.rl.alarms import Alarms
from unimodal.training.rl.data import DrawnPrompt, PromptDataModule, PromptStream, Round
from unimodal.training.rl.losses.aggregation import Aggregation
from unimodal.training.rl.losses.base import PolicyLoss
from unimodal.training.rl.losses.clipped import ClippedRatio
from unimodal.training.rl.losses.divergence import KLConfig
from unimodal.training.rl.policy import moved
from unimodal.training.rl.rewards.base import Reward
from unimodal.training.rl.rollouts import Rollout, RolloutConfig, Sampler, mean_reward
from unimodal.training.rl.statistics import Sums, largest_of_ranks, sum_over_ranks
from unimodal.training.rl.trajectories import PolicyBatch, TrajectoryPacker
from unimodal.training.rl.update import Update, UpdateConfig
from unimodal.training.schedule import ScheduleConfig
from unimodal.training.start import StartConfig

POLICY_STATE = "policy"
"""Where a checkpoint keeps the position among the prompts and what alarms remember."""


class PolicyModule(TransformerModule):
    """Each training step samples groups of answers, scores them and updates the model on them.

    `rewards` by name, as prompts ask for them. `advantage`, `loss`, `aggregation`, `kl` and `value` make the algorithm:
    docs/rl.md names those of PPO, GRPO, DAPO and others. `entropy` weighs a bonus. The run starts from the bundle of
    the data, unless `start` names another; that model is also the reference of `kl`. `clip_gradients_at` is the largest
    norm of a gradient.
    """

    automatic_optimization = False  # pyright: ignore[reportAssignmentType]

    def __init__(
        self,
        rewards: dict[str, Reward],
        rollouts: RolloutConfig | None = None,
        advantage: Advantage | None = None,
        loss: PolicyLoss | None = None,
        aggregation: Aggregation = "token-mean",
        kl: KLConfig | None = None,
        value: ValueConfig | None = None,
        entropy: float = 0.0,
        clip_gradients_at: float = 1.0,
        optimizer: OptimizerConfig | None = None,
        schedule: ScheduleConfig | None = None,
        start: StartConfig | None = None,
        compile: bool = True,
        parallel: ParallelConfig | None = None,
    ) -> None:
        super().__init__(
            optimizer=optimizer or AdamWConfig(learning_rate=1e-4, weight_decay=0.0),
            schedule=schedule or ScheduleConfig(warmup_steps=0, decay="constant"),
            start=start,
            compile=compile,
            parallel=parallel,
        )
        self.automatic_optimization = False
        self.rollouts, self.advantage = rollouts or RolloutConfig(), advantage or GroupRelative()
        self.update_config = UpdateConfig(
            loss=loss or ClippedRatio(), aggregation=aggregation, kl=kl, value=value, entropy=entropy
        )
        if value is None and self.rollouts.group < self.advantage.smallest_group:
            raise ValueError(
                f"a group of {self.rollouts.group} leaves nothing to compare an answer with: its advantage would be "
                f"its reward; set rollouts.group to {self.advantage.smallest_group} at least"
            )
        self.rewards, self.clip_gradients_at = rewards, clip_gradients_at
        self.value_head: nn.Module | None = None
        self.alarms = Alarms(narrowest=self.update_config.loss.narrowest)
        self.stream: PromptStream | None = None
        self.round, self.refreshed = 0, 0
        self.last_rollout: Rollout | None = None
        self._reference: list[UnifiedModel] = []
        self._tokenizers: Tokenizers | None = None
        self._pipeline: Pipeline | None = None
        self._last_reward = float("nan")

    # -- building

    def configure_model(self) -> None:
        """The bundle's model, a value head where one is asked for, and the reference where its distance counts."""
        if self.model is not None:
            return
        data, world = self._data, self.trainer.world_size
        if self.rollouts.prompts % world:
            raise ValueError(f"rollouts.prompts of {self.rollouts.prompts} cannot be shared by {world} ranks")
        if self.start.bundle is None:
            self.start = replace(self.start, bundle=data.bundle)
        super().configure_model()
        assert self.model is not None
        if self.model.config.trunk.dropout:
            raise ValueError("dropout would make the policy that trains another than the one that samples: set it to 0")
        self.sampler = Sampler(data.prompts, self.rewards, self.rollouts)
        self.sampler.check(data.opened)
        self.held_out = Sampler(data.held_out, self.rewards, self.rollouts)
        self.held_out.check(data.opened_held_out)
        self.stream = PromptStream.of(data.opened, [each.weight for each in data.prompts], self.rollouts.seed)
        if self.update_config.value is not None:
            self.value_head = BoundaryLinear(self.model.config.trunk.dim, 1)
            for parameter in self.value_head.parameters():
                nn.init.zeros_(parameter)
        if self.update_config.kl is not None:
            assert self.start.bundle is not None
            self._reference = [Bundle.open(self.start.bundle).model.requires_grad_(False)]

    @property
    def trained_model(self) -> UnifiedModel:
        """The model, once it is there."""
        assert self.model is not None
        return self.model

    @property
    def _data(self) -> PromptDataModule:
        data = getattr(self._trainer, "datamodule", None)
        if not isinstance(data, PromptDataModule):
            raise ValueError("reinforcement learning takes its prompts from a PromptDataModule")
        return data

    @property
    def trained(self) -> nn.Module:
        """The model, and the value head where there is one."""
        model = super().trained
        return model if self.value_head is None else nn.ModuleList([model, self.value_head])

    # -- sampling

    def _pipeline_now(self) -> Pipeline | None:
        """A pipeline of the weights as they are; under sharding they are gathered once a rollout."""
        assert self.model is not None
        model = whole_model(self.model, keep=True)
        assert model is not None
        if self._tokenizers is None:
            self._tokenizers = Bundle.beside(model, self.space, self.spec.tokenizers_folder).tokenizers
        if self._pipeline is None or self._pipeline.model is not model:
            self._pipeline = Pipeline(Bundle(model, self.space, self._tokenizers))
            if model.device.type == "cuda":
                self._pipeline.use_compiled_steps()
        if model.device.type == "cpu":
            self._pipeline.use_prepacked_weights()
        self.refreshed += 1
        return self._pipeline

    def roll(self) -> Rollout:
        """Answers to this rank's share of the next prompts, with their rewards."""
        assert self.stream is not None and self.model is not None
        share = self.rollouts.prompts // self.trainer.world_size
        pipeline, kept = self._decoding(), None
        with torch.autocast(self.device.type, enabled=False):
            for attempt in range(self.rollouts.dynamic_rounds):
                found = self.sampler.roll(pipeline, *self._drawn(attempt))
                if self.rollouts.dynamic_rounds > 1 and attempt + 1 < self.rollouts.dynamic_rounds:
                    found = found.select(_unequal(found))
                kept = found if kept is None else kept.joined(found)
                full = len(kept.kinds) >= share
                if not largest_of_ranks(int(not full), self.device):
                    break
        assert kept is not None
        self.model.train()
        return kept.select(range(min(share, len(kept.kinds))))

    def _decoding(self) -> Pipeline:
        assert self.model is not None
        self.model.eval()
        pipeline = self._pipeline_now()
        assert pipeline is not None
        return pipeline

    def _drawn(self, attempt: int) -> tuple[list[DrawnPrompt], int, int]:
        """This rank's prompts of a round, the number of the round, and the place of the first of them."""
        assert self.stream is not None
        drawn, rank = self.stream.draw(self.rollouts.prompts), self.trainer.global_rank
        share = self.rollouts.prompts // self.trainer.world_size
        number = self.round * self.rollouts.dynamic_rounds + attempt
        return drawn[rank * share : (rank + 1) * share], number, rank * share

    # -- a training step: one rollout and its updates

    def training_step(self, batch: Round, batch_index: int) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Sample, score, update; logs of all of it."""
        del batch_index
        began = time.perf_counter()
        rollout = self.last_rollout = self.roll()
        batch.answers = len(rollout.trajectories)
        rolled, sums = time.perf_counter(), Sums()
        advantages = self.advantage.of(rollout.rewards.nan_to_num(), rollout.weights, rollout.valid)
        self._log_rollout(rollout, sums)
        update = self._update(rollout, advantages.flatten())
        if self.update_config.value is not None:
            everything = update.counted(range(len(rollout.trajectories)))
            batches = update.packer.batches(rollout.trajectories, everything)
            update.estimate_values(self.trained_model, [moved(batch, self.device) for batch in batches])
        for epoch in range(self.rollouts.epochs):
            for numbers in self._mini_batches(rollout, epoch):
                self._step(update, numbers, sums)
        self.round += 1
        ended = time.perf_counter()
        sums.put("rollouts_per_second", len(rollout.trajectories) / (rolled - began))
        sums.put("rollout_share", (rolled - began) / (ended - began))
        sums.put("seconds", ended - began)
        self._log_all(sums)

    def _update(self, rollout: Rollout, advantages: Tensor) -> Update:
        assert self.model is not None
        context = self.model.config.trunk.max_length
        packer = TrajectoryPacker(
            self.space,
            self._decoding_reading(),
            rows=self.rollouts.rows,
            length=self.rollouts.length,
            context=context,
        )
        return Update(
            config=self.update_config,
            packer=packer,
            machine=ModalityMachine(self.space, self.device),
            rollout=rollout,
            advantages=advantages,
            forward=self._read,
            head=self.model.token_head,
            value_head=self.value_head,
            reference=self._reference[0].to(self.device) if self._reference else None,
        )

    def _decoding_reading(self) -> Any:
        assert self._pipeline is not None
        return self._pipeline.reading

    def _read(self, model: UnifiedModel, batch: PolicyBatch) -> Tensor:
        """Features (B, T, D) of the packed rows under a model."""
        return self._features(model, batch.packed, self._media(batch.packed))

    def _mini_batches(self, rollout: Rollout, epoch: int) -> Iterator[list[int]]:
        """Numbers of trajectories, whole groups together, in an order of the epoch's own."""
        groups, size = list(range(len(rollout.kinds))), self.rollouts.group
        if self.rollouts.mini_batches > 1:
            Random(f"{self.rollouts.seed} mini-batches {self.round} {epoch}").shuffle(groups)
        count = self.rollouts.mini_batches
        for part in range(count):
            chosen = groups[part::count]
            yield [group * size + member for group in chosen for member in range(size)]

    def _step(self, update: Update, numbers: Sequence[int], sums: Sums) -> None:
        """One optimizer step on some trajectories, batch by batch."""
        assert self.model is not None
        optimizer: Any = self.optimizers()
        numbers = update.counted(numbers)
        [divisor] = sum_over_ranks([update.divisor(numbers)], self.device)
        batches = [moved(batch, self.device) for batch in update.packer.batches(update.rollout.trajectories, numbers)]
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for number in range(largest_of_ranks(len(batches), self.device)):
            batch = batches[number] if number < len(batches) else moved(update.empty_batch(), self.device)
            loss = update.loss(self.model, batch, sums)
            self.manual_backward(loss)
            total += loss.detach().double()
        gradients = gradients_of(optimizer)
        if not gradients:
            return
        norm = to_means(gradients, torch.tensor(divisor, device=self.device))
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(total)
        self._norm = norm
        sums.put("loss", float(total) / max(divisor, 1e-8))
        if self.skipped.skips(norm, total):
            optimizer.zero_grad(set_to_none=True)
            self.skipped.report(self.trainer, self.model, norm, total)
            return
        sums.put("grad_norm", float(norm))
        clip(gradients, self.clip_gradients_at, norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        scheduler: Any = self.lr_schedulers()
        scheduler.step()

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Nothing: `_step` has made means of the gradients already."""

    # -- logs

    def _log_rollout(self, rollout: Rollout, sums: Sums) -> None:
        valid, totals = rollout.valid, rollout.totals
        sums.add("reward", totals, valid)
        sums.put("rewards_lost", float((~valid).sum()), valid.numel())
        sums.add("zero_std_groups", is_equal(totals, valid).float())
        kinds = [self._data.prompts[kind].kind for kind in rollout.kinds]
        for column, name in enumerate(self.sampler.names):
            asked = rollout.weights[:, column] != 0
            values = rollout.rewards[asked][..., column]
            sums.add(f"reward_{name}", values, ~values.isnan())
        for kind in dict.fromkeys(each.kind for each in self._data.prompts):
            chosen = torch.tensor([each == kind for each in kinds])[:, None] & valid
            sums.add(f"reward_of_{kind}", totals, chosen)
        image = self.space.text_size
        lengths = torch.tensor([len(each) for each in rollout.trajectories])
        codes = torch.tensor([sum(token >= image for token in each.ids) for each in rollout.trajectories])
        sums.add("length_text", lengths - codes)
        sums.add("length_image", codes)
        cut = [each.finish == "length" for each in rollout.trajectories]
        drawing = [each.request.config.mode == "image" for each in rollout.trajectories]
        sums.put("cut_off", sum(c and not d for c, d in zip(cut, drawing, strict=True)), len(cut))
        sums.put("pictures_cut_off", sum(c and d for c, d in zip(cut, drawing, strict=True)), len(cut))

    def _log_all(self, sums: Sums) -> None:
        metrics = sums.reduced(self.device)
        self._last_reward = metrics.get("reward", float("nan"))
        held = self.alarms.look(metrics) if self.trainer.is_global_zero else []
        metrics |= {"alarms": float(len(held)), "skipped_steps": float(self.skipped.total)}
        metrics["weights_refreshed"] = float(self.refreshed)
        for name, value in metrics.items():
            self.log(f"train/{name}", value, prog_bar=name in ("loss", "reward"))

    def validation_step(self, batch: Round, batch_index: int) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Rewards of held-out prompts, the same answers' seeds each time."""
        del batch, batch_index
        data = self._data
        stream = PromptStream.of(data.opened_held_out, [each.weight for each in data.held_out], self.rollouts.seed)
        share, rank = self.rollouts.prompts // self.trainer.world_size, self.trainer.global_rank
        drawn = stream.draw(self.rollouts.prompts)[rank * share : (rank + 1) * share]
        with torch.autocast(self.device.type, enabled=False):
            rollout = self.held_out.roll(self._decoding(), drawn, -1, rank * share)
        sums = Sums()
        sums.add("held_out_reward", rollout.totals, rollout.valid)
        for column, name in enumerate(self.held_out.names):
            asked = rollout.weights[:, column] != 0
            sums.put(f"reward_{name}", mean_reward(rollout.rewards[asked][..., column]) if asked.any() else 0.0)
        metrics = sums.reduced(self.device)
        if self._last_reward == self._last_reward and self.trainer.is_global_zero:
            metrics["alarms"] = float(len(self.alarms.compare(self._last_reward, metrics["held_out_reward"])))
        for name, value in metrics.items():
            self.log(f"val/{name}", value, rank_zero_only=name == "alarms", batch_size=1)

    # -- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The position among the prompts travels with the weights."""
        super().on_save_checkpoint(checkpoint)
        assert self.stream is not None
        state = {"counts": list(self.stream.counts), "round": self.round, "alarms": self.alarms.state_dict()}
        checkpoint[POLICY_STATE] = state

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Resume with the next rollout. Raises ValueError for a checkpoint of another kind of training."""
        if POLICY_STATE not in checkpoint:
            raise ValueError("the checkpoint is of pretraining: start from its bundle instead (data.bundle)")
        super().on_load_checkpoint(checkpoint)
        assert self.stream is not None
        state = checkpoint[POLICY_STATE]
        self.stream.counts, self.round = list(state["counts"]), state["round"]
        self.alarms.load_state_dict(state["alarms"])

    def _identity(self) -> dict[str, Any]:
        """As for pretraining, and the algorithm."""
        algorithm = {"rollouts": self.rollouts, "advantage": type(self.advantage).__name__}
        algorithm |= {"loss": type(self.update_config.loss).__name__, "rewards": sorted(self.rewards)}
        return {**super()._identity(), **plain(algorithm)}


def _unequal(rollout: Rollout) -> list[int]:
    """Groups whose answers are not all worth the same."""
    return [number for number, equal in enumerate(is_equal(rollout.totals, rollout.valid).tolist()) if not equal]
