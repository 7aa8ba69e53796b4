"""Rollouts: the model that trains answers prompts, and rewards say how good its answers are."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random

import torch
from torch import Tensor

from data_pipelines.failures import SAMPLES_BEFORE_JUDGING, FailureLog, TooMuchDamage
from unimodal.generation.answer_rows import SampledAnswer
from unimodal.generation.pipeline import Pipeline
from unimodal.generation.requests import DecodeConfig, Request
from unimodal.generation.settings import chosen
from unimodal.generation.stochastic_flow import NoiseWindow
from unimodal.training.rl.advantages.base import Advantage, is_equal
from unimodal.training.rl.data import DrawnPrompt
from unimodal.training.rl.overlong import OverlongConfig
from unimodal.training.rl.prompts.base import Prompts
from unimodal.training.rl.rewards.base import Answered, Reward, scored
from unimodal.training.rl.statistics import gathered, largest_of_ranks, sum_over_ranks

# Shapes: P prompts, G answers of each, K rewards.


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """How much is sampled before each update, and how it is packed.

    `prompts` of all ranks get `group` answers each, `at_once` answers are decoded side by side. The answers are
    learnt in `mini_batches` optimizer steps, `epochs` times; 1 and 1 is strictly on-policy. They are packed into
    batches of `rows` rows of `length` tokens. With `dynamic_rounds` above 1 prompts whose answers are all worth the
    same are replaced by others, in so many rounds at most (DAPO's dynamic sampling). Past `bad_rewards`, a share, of
    rewards that could not be had the run ends. Pictures of one prompt that a flow draws differ by the noise of
    `flow_steps` steps, chosen at random, which are what is learnt. `seed` is that of prompts and answers.
    """

    prompts: int = 24
    group: int = 16
    at_once: int = 128
    mini_batches: int = 1
    epochs: int = 1
    rows: int = 8
    length: int = 288
    dynamic_rounds: int = 1
    bad_rewards: float = 0.1
    flow_steps: int = 2
    seed: int = 0
    overlong: OverlongConfig | None = None

    def __post_init__(self) -> None:
        for name in "prompts group at_once mini_batches epochs rows length dynamic_rounds flow_steps".split():
            if getattr(self, name) < 1:
                raise ValueError(f"rollouts.{name} is at least 1, got {getattr(self, name)}")
        if self.mini_batches > self.prompts:
            raise ValueError(f"{self.prompts} prompts cannot be learnt in {self.mini_batches} mini-batches")

    def check_checkpoints(self, callbacks: Sequence[object]) -> None:
        """Raise ValueError for checkpoints that would fall into the middle of a rollout, where none is written."""
        steps = self.mini_batches * self.epochs
        for callback in callbacks:
            every = getattr(callback, "_every_n_train_steps", 0)
            if every % steps:
                raise ValueError(
                    f"a rollout is learnt in {steps} optimizer steps, and checkpoints are written every {every}: set "
                    f"checkpoint.every_n_train_steps to a multiple of {steps}"
                )


@dataclass(kw_only=True)
class Rollout:
    """Answers of groups, by prompt and then by member, with the rewards of each."""

    trajectories: list[SampledAnswer]
    answers: list[Answered]
    rewards: Tensor
    """(P, G, K) float64; NaN where a reward could not be had, 0 where the prompt does not have it."""
    weights: Tensor
    """(P, K) of each prompt's rewards."""
    kinds: list[int]
    """Of each prompt."""
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def valid(self) -> Tensor:
        """(P, G) bool: whether all rewards of an answer are there."""
        return ~self.rewards.isnan().any(-1)

    @property
    def totals(self) -> Tensor:
        """(P, G) weighted sums of rewards, 0 where one is missing."""
        return (self.rewards.nan_to_num() * self.weights[:, None]).sum(-1) * self.valid

    @property
    def unequal(self) -> list[int]:
        """Groups whose answers are not all worth the same."""
        return (~is_equal(self.totals, self.valid)).nonzero().flatten().tolist()

    def select(self, groups: Sequence[int]) -> Rollout:
        """Some of the groups."""
        size = self.rewards.shape[1]
        members = [number * size + member for number in groups for member in range(size)]
        return Rollout(
            trajectories=[
                replace(self.trajectories[number], group=place // size) for place, number in enumerate(members)
            ],
            answers=[self.answers[number] for number in members],
            rewards=self.rewards[list(groups)],
            weights=self.weights[list(groups)],
            kinds=[self.kinds[number] for number in groups],
            seconds=self.seconds,
        )

    def joined(self, other: Rollout) -> Rollout:
        """This one's groups and then the other's."""
        both = Rollout(
            trajectories=self.trajectories + other.trajectories,
            answers=self.answers + other.answers,
            rewards=torch.cat([self.rewards, other.rewards]),
            weights=torch.cat([self.weights, other.weights]),
            kinds=self.kinds + other.kinds,
            seconds={name: self.seconds[name] + other.seconds[name] for name in self.seconds},
        )
        return both.select(range(len(both.kinds)))


Draw = Callable[[int], tuple[Sequence[DrawnPrompt], int, int]]
"""The number of an attempt -> a rank's prompts, the number of their rollout, and the place of the first of them."""


class Sampler:
    """Answers prompts with a pipeline and scores the answers."""

    def __init__(
        self,
        kinds: Sequence[Prompts],
        rewards: Mapping[str, Reward],
        config: RolloutConfig,
        pictures: torch.dtype = torch.float32,
    ) -> None:
        """pictures: the type of the products that decode them."""
        self.kinds, self.rewards, self.config, self.pictures = kinds, dict(rewards), config, pictures
        self.max_new_tokens = 1
        """Of any kind of prompts, once they were answered; the same on all ranks."""
        self.failures = FailureLog(limit=1.0)  # `judge_together` ends all ranks, and not one of them

    @property
    def names(self) -> list[str]:
        """Of the columns of a rollout's rewards; the last is `overlong` where that is punished."""
        return [*self.rewards, *(["overlong"] if self.config.overlong else [])]

    def check(self, opened: Sequence[Sequence[object]]) -> None:
        """Prepare the rewards. Raises ValueError for those that there are not, or whose facts the prompts lack."""
        for prompts, some in zip(self.kinds, opened, strict=True):
            for name in prompts.rewards:
                if name not in self.rewards:
                    known = ", ".join(self.rewards) or "none"
                    raise ValueError(f"{prompts.kind} ask for the reward {name!r}; the run has {known}")
                facts = getattr(some[0], "facts", {})
                if missing := [fact for fact in self.rewards[name].facts if fact not in facts]:
                    raise ValueError(f"the reward {name!r} reads {missing[0]!r}, which {prompts.kind} do not have")
        for name in dict.fromkeys(name for prompts in self.kinds for name in prompts.rewards):
            self.rewards[name].prepare()

    def collect(self, pipeline: Pipeline, draw: Draw, share: int, device: torch.device) -> Rollout:
        """Rollouts until `share` groups are there whose answers differ in worth, or `dynamic_rounds` are over; the
        last one is taken as it is. Ranks decide together, and groups beyond the share are dropped."""
        kept: Rollout | None = None
        for attempt in range(self.config.dynamic_rounds):
            found = self.roll(pipeline, *draw(attempt))
            self.judge_together(device)
            if attempt + 1 < self.config.dynamic_rounds:
                found = found.select(found.unequal)
            kept = found if kept is None else kept.joined(found)
            if not largest_of_ranks(int(len(kept.kinds) < share), device):
                break
        assert kept is not None
        return kept.select(range(min(share, len(kept.kinds))))

    def judge_together(self, device: torch.device) -> None:
        """Raise TooMuchDamage on all ranks where too large a share of all their rewards could not be had."""
        good, bad = sum_over_ranks([float(self.failures.good), float(len(self.failures.bad))], device)
        if good + bad >= SAMPLES_BEFORE_JUDGING and bad > self.config.bad_rewards * (good + bad):
            name, reason = self.failures.bad[-1] if self.failures.bad else ("another rank", "its log names them")
            raise TooMuchDamage(
                f"{bad:.0f} of {good + bad:.0f} rewards could not be had, more than {self.config.bad_rewards:.0%}; "
                f"the last: {name}: {reason}"
            )

    def roll(self, pipeline: Pipeline, drawn: Sequence[DrawnPrompt], number: int, first: int = 0) -> Rollout:
        """`group` answers to each prompt. Seeds are functions of the rollout's number and the prompt's place in it,
        counted from `first` on, so ranks together sample what one would."""
        began = time.perf_counter()
        requests = self._requests(pipeline, drawn, number, first)
        decoded = pipeline.engine.decode(requests, rows=self.config.at_once)
        sampled = time.perf_counter()
        group = self.config.group
        trajectories = [
            SampledAnswer(
                request=request,
                ids=each.ids,
                log_probs=each.log_probs,
                finish=each.finish,
                steps=tuple(step for path in each.steps for step in path),
                group=place // group,
            )
            for place, (request, each) in enumerate(zip(requests, decoded, strict=True))
        ]
        halved = self.pictures != torch.float32
        with torch.autocast(pipeline.model.device.type, self.pictures if halved else None, enabled=halved):
            finished = pipeline.finished(decoded)
        answers = [
            Answered(prompt=drawn[place // group].prompt, parts=answer, finish=decoded[place].finish)
            for place, answer in enumerate(finished)
        ]
        rewards, weights = self._rewards(drawn, answers, trajectories)
        ended = time.perf_counter()
        return Rollout(
            trajectories=trajectories,
            answers=answers,
            rewards=rewards,
            weights=weights,
            kinds=[each.kind for each in drawn],
            seconds={"seconds_sampling": sampled - began, "seconds_rewards": ended - sampled},
        )

    def _requests(self, pipeline: Pipeline, drawn: Sequence[DrawnPrompt], number: int, first: int) -> list[Request]:
        configs = [pipeline.decode_config(**chosen(each.settings)) for each in self.kinds]
        self.max_new_tokens = max(config.max_new_tokens for config in configs)
        for kind in dict.fromkeys(each.kind for each in drawn):
            asked = [each.prompt for each in drawn if each.kind == kind]
            refused = pipeline.refused([each.prompt for each in asked], **chosen(self.kinds[kind].settings))
            for place, reason in refused.items():
                raise ValueError(f"{asked[place].name} cannot be answered: {reason}")
        requests = pipeline.requests([each.prompt.prompt for each in drawn], configs[0])
        found = []
        for place, (each, request) in enumerate(zip(drawn, requests, strict=True)):
            window = self._window(configs[each.kind], f"{self.config.seed} {number} {first + place} window")
            for member in range(self.config.group):
                seed = Random(f"{self.config.seed} {number} {first + place} {member}").getrandbits(62)
                found.append(replace(request, config=configs[each.kind], seed=seed, window=window))
        return found

    def _window(self, config: DecodeConfig, seed: str) -> NoiseWindow | None:
        """Which steps of a prompt's pictures have noise, where a flow draws them with any."""
        if not config.flow.noise:
            return None
        random, noisy = Random(seed), config.flow.steps - 1
        count = min(self.config.flow_steps, noisy)
        return NoiseWindow(random.getrandbits(62), random.randrange(noisy - count + 1), count)

    def _rewards(
        self, drawn: Sequence[DrawnPrompt], answers: Sequence[Answered], trajectories: Sequence[SampledAnswer]
    ) -> tuple[Tensor, Tensor]:
        group, columns = self.config.group, len(self.names)
        rewards = torch.zeros(len(drawn) * group, columns, dtype=torch.float64)
        weights = torch.zeros(len(drawn), columns, dtype=torch.float64)
        for column, name in enumerate(self.rewards):
            asked = [place for place, each in enumerate(drawn) if name in self.kinds[each.kind].rewards]
            members = [place * group + member for place in asked for member in range(group)]
            found = scored(name, self.rewards[name], [answers[member] for member in members], self.failures)
            rewards[members, column] = torch.tensor(found, dtype=torch.float64)
            for place in asked:
                weights[place, column] = self.kinds[drawn[place].kind].rewards[name]
        if self.config.overlong is not None:
            rewards[:, -1], weights[:, -1] = self._overlong(answers, trajectories), 1.0
        return rewards.view(len(drawn), group, columns), weights

    def _overlong(self, answers: Sequence[Answered], trajectories: Sequence[SampledAnswer]) -> Tensor:
        """What answers of words alone lose for their length: (P * G,)."""
        assert self.config.overlong is not None
        penalties = [
            0.0 if answer.pictures else self.config.overlong.penalty(len(each), each.request.config.max_new_tokens)
            for answer, each in zip(answers, trajectories, strict=True)
        ]
        return torch.tensor(penalties, dtype=torch.float64)


def mini_batches(rollout: Rollout, config: RolloutConfig, number: int, epoch: int, first: int) -> Iterator[list[int]]:
    """Numbers of trajectories, whole groups together, in an order of the rollout's and the epoch's own.

    `first` is the place of this rank's first group among those of all ranks, which are shuffled together.
    """
    groups, size = list(range(config.prompts)), config.group
    if config.mini_batches > 1:
        Random(f"{config.seed} mini-batches {number} {epoch}").shuffle(groups)
    for part in range(config.mini_batches):
        held = [place - first for place in groups[part :: config.mini_batches]]
        yield [group * size + member for group in held if 0 <= group < len(rollout.kinds) for member in range(size)]


def advantages_of(rollout: Rollout, advantage: Advantage) -> Tensor:
    """(P * G,) of this rank's answers; what an advantage does over a whole batch it does over that of all ranks."""
    parts, rank = gathered((rollout.rewards.nan_to_num(), rollout.weights, rollout.valid))
    rewards, weights, valid = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    first = sum(len(part[0]) for part in parts[:rank])
    return advantage.of(rewards, weights, valid)[first : first + len(rollout.kinds)].flatten()
