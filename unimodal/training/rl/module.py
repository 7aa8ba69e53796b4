"""Reinforcement learning with Lightning: the batches are rollouts of the very model that trains."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tokenizers_vq.identity import plain
from unimodal.generation.answer_rows import AnswerPacker
from unimodal.generation.modality import ModalityMachine
from unimodal.model.checkpoint import open_model
from unimodal.model.model import UnifiedModel
from unimodal.training.gradients import clip, gradients_of, to_means
from unimodal.training.module import TransformerModule
from unimodal.training.optimizers.build import AdamWConfig, OptimizerConfig
from unimodal.training.packed_pass import clean_media, packed_features
from unimodal.training.parallel.sharding import ParallelConfig
from unimodal.training.rl.advantages.base import Advantage
from unimodal.training.rl.advantages.generalized import ValueConfig
from unimodal.training.rl.advantages.group_relative import GroupRelative
from unimodal.training.rl.alarms import Alarms
from unimodal.training.rl.data import HELD_OUT_ROUND, DrawnPrompt, PromptDataModule, PromptStream, Round
from unimodal.training.rl.decoding import PolicyDecoder, as_saved
from unimodal.training.rl.losses.aggregation import Aggregation
from unimodal.training.rl.losses.base import PolicyLoss
from unimodal.training.rl.losses.clipped import ClippedRatio
from unimodal.training.rl.losses.divergence import KLConfig
from unimodal.training.rl.metrics import log_lengths, log_rewards
from unimodal.training.rl.rewards.base import Reward
from unimodal.training.rl.rollouts import Rollout, RolloutConfig, Sampler, advantages_of, mini_batches
from unimodal.training.rl.statistics import Sums, largest_of_ranks, sum_over_ranks
from unimodal.training.rl.updates.base import RolloutUpdate, UpdateConfig
from unimodal.training.rl.updates.flow import FlowPacker, FlowUpdate, draws_by_flow, flow_velocities
from unimodal.training.rl.updates.tokens import TokenUpdate, new_value_head
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
        if value is None:
            self.advantage.check_group(self.rollouts.group)
        self.rewards, self.clip_gradients_at = rewards, clip_gradients_at
        self.value_head: nn.Module | None = None
        self.alarms = Alarms(narrowest=self.update_config.loss.narrowest)
        self.stream: PromptStream | None = None
        self.round = 0
        self.last_rollout: Rollout | None = None
        self._reference: list[UnifiedModel] = []
        self._by_flow = False
        self._last_reward = float("nan")

    # -- building

    def configure_model(self) -> None:
        """The bundle's model, a value head where one is asked for, and the reference where its distance counts."""
        if self.model is not None:
            return
        data, world = self._data, self.trainer.world_size
        if self.rollouts.prompts % world:
            raise ValueError(f"rollouts.prompts of {self.rollouts.prompts} cannot be shared by {world} ranks")
        self.alarms.loud = self.trainer.is_global_zero
        if self.start.bundle is None:
            self.start = replace(self.start, bundle=data.bundle)
        super().configure_model()
        if self.trained.config.trunk.dropout:
            raise ValueError("dropout would make the policy that trains another than the one that samples: set it to 0")
        self.decoder = PolicyDecoder(self.space, self.spec.tokenizers_folder)
        half = torch.bfloat16 if str(self.trainer.precision).startswith("bf16") else torch.float32
        self.sampler = Sampler(data.prompts, self.rewards, self.rollouts, half)
        self.held_out = Sampler(data.held_out, self.rewards, self.rollouts, half)
        self._by_flow = draws_by_flow(self.trained.branches, data.prompts, self.update_config)
        with torch.device("cpu"), as_saved(torch.device("cpu")):
            self.sampler.check(data.opened)
            self.held_out.check(data.opened_held_out)
        self.stream = PromptStream.of(data.opened, [each.weight for each in data.prompts], self.rollouts.seed)
        if self.update_config.value is not None:
            self.value_head = new_value_head(self.trained)
        if self.update_config.kl is not None:
            assert self.start.bundle is not None
            self._reference = [open_model(self.start.bundle)[0].requires_grad_(False)]

    @property
    def _data(self) -> PromptDataModule:
        data = getattr(self._trainer, "datamodule", None)
        if not isinstance(data, PromptDataModule):
            raise ValueError("reinforcement learning takes its prompts from a PromptDataModule")
        return data

    def optimized(self) -> nn.Module:
        """The model, and the value head where there is one."""
        return self.trained if self.value_head is None else nn.ModuleList([self.trained, self.value_head])

    # -- sampling

    def roll(self) -> Rollout:
        """Answers to this rank's share of the next prompts, with their rewards."""
        with as_saved(self.device):
            pipeline = self.decoder.pipeline(self.trained)
            rollout = self.sampler.collect(pipeline, self._drawn, self._share, self.device)
        self.trained.train()
        return rollout

    @property
    def _share(self) -> int:  # prompts of a rank
        return self.rollouts.prompts // self.trainer.world_size

    @property
    def _first_group(self) -> int:  # the place of this rank's first prompt among those of all ranks
        return self._share * self.trainer.global_rank

    def _drawn(self, attempt: int) -> tuple[list[DrawnPrompt], int, int]:
        """This rank's prompts of a round, the number of the round, and the place of the first of them."""
        assert self.stream is not None
        drawn, first = self.stream.draw(self.rollouts.prompts), self._first_group
        number = self.round * self.rollouts.dynamic_rounds + attempt
        return drawn[first : first + self._share], number, first

    def on_train_start(self) -> None:
        """Raises ValueError for checkpoints that would fall into the middle of a rollout."""
        self.rollouts.check_checkpoints(self.trainer.checkpoint_callbacks)

    # -- a training step: one rollout and its updates

    def training_step(self, batch: Round, batch_index: int) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Sample, score, update; logs of all of it."""
        del batch_index
        began = time.perf_counter()
        rollout = self.last_rollout = self.roll()
        batch.answers = len(rollout.trajectories)
        rolled, sums = time.perf_counter(), Sums()
        log_rewards(rollout, self.sampler.names, [each.kind for each in self._data.prompts], sums)
        log_lengths(rollout, self.space, sums)
        update = self._update(rollout, advantages_of(rollout, self.advantage))
        update.prepare(self.trained, self.device)
        for epoch in range(self.rollouts.epochs):
            for numbers in mini_batches(rollout, self.rollouts, self.round, epoch, self._first_group):
                self._step(update, numbers, sums)
        self.round += 1
        ended = time.perf_counter()
        sums.put("rollouts_per_second", len(rollout.trajectories) / (rolled - began))
        sums.put("rollout_share", (rolled - began) / (ended - began))
        for name, value in {"seconds": ended - began, **rollout.seconds}.items():
            sums.put(name, value)
        self._log_all(sums)

    def _update(self, rollout: Rollout, advantages: Tensor) -> RolloutUpdate:
        space, reading = self.space, self.decoder.reading
        sizes = {"rows": self.rollouts.rows, "length": self.rollouts.length}
        shared: dict[str, Any] = {
            "config": self.update_config,
            "rollout": rollout,
            "advantages": advantages,
            "max_length": self.rollouts.flow_steps if self._by_flow else self.sampler.max_new_tokens,
            "reference": self._reference[0].to(self.device, self.trained.dtype) if self._reference else None,
        }
        if self._by_flow:
            packer = FlowPacker(space, reading, self.decoder.grid, **sizes)
            media_of = partial(clean_media, self.trained)
            return FlowUpdate(packer=packer, velocities=flow_velocities(media_of, packed_features), **shared)
        return TokenUpdate(
            packer=AnswerPacker(space, reading, context=self.trained.config.trunk.max_length, **sizes),
            machine=ModalityMachine(space, self.device),
            forward=lambda model, batch: packed_features(model, batch.packed, clean_media(self.trained, batch.packed)),
            head=self.trained.token_head,
            value_head=self.value_head,
            **shared,
        )

    def _step(self, update: RolloutUpdate, numbers: Sequence[int], sums: Sums) -> None:
        """One optimizer step on some trajectories, batch by batch."""
        optimizer: Any = self.optimizers()
        numbers = update.counted(numbers)
        [divisor] = sum_over_ranks([update.divisor(numbers)], self.device)
        batches = [batch.to(self.device) for batch in update.batches(numbers)]
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for number in range(largest_of_ranks(len(batches), self.device)):
            batch = batches[number] if number < len(batches) else update.empty_batch().to(self.device)
            self.skipped.last_batch = batch.packed
            loss = update.loss(self.trained, batch, sums)
            self.manual_backward(loss)
            total += loss.detach().double()
        gradients = gradients_of(optimizer)
        if not gradients:
            return
        norm = to_means(gradients, torch.tensor(divisor, device=self.device))
        [summed] = sum_over_ranks([float(total)], self.device)
        sums.put("loss", summed / max(divisor, 1e-8))
        if self.skipped.skips(norm, total):
            optimizer.zero_grad(set_to_none=True)
            self.skipped.report(self.trainer, self.trained, norm, total)
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

    def _log_all(self, sums: Sums) -> None:
        metrics = sums.reduced(self.device)
        self._last_reward = metrics.get("reward", float("nan"))
        held = self.alarms.check(metrics)
        metrics |= {"alarms": float(len(held)), "skipped_steps": float(self.skipped.total)}
        metrics["weights_refreshed"] = float(self.decoder.refreshed)
        for name, value in metrics.items():
            self.log(f"train/{name}", value, prog_bar=name in ("loss", "reward"))

    def validation_step(self, batch: Round, batch_index: int) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Rewards of held-out prompts, the same answers' seeds each time."""
        del batch, batch_index
        data, first, sums = self._data, self._first_group, Sums()
        stream = PromptStream.of(data.opened_held_out, [each.weight for each in data.held_out], self.rollouts.seed)
        drawn = stream.draw(self.rollouts.prompts)[first : first + self._share]
        with as_saved(self.device):
            rollout = self.held_out.roll(self.decoder.pipeline(self.trained), drawn, HELD_OUT_ROUND, first)
        log_rewards(rollout, self.held_out.names, [each.kind for each in data.held_out], sums)
        metrics = sums.reduced(self.device)
        if not math.isnan(self._last_reward):
            metrics["alarms"] = float(len(self.alarms.compare(self._last_reward, metrics["reward"])))
        for name, value in metrics.items():
            self.log(f"val/{name}", value, batch_size=1)

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
