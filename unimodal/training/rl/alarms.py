"""Alarms: what goes wrong in reinforcement learning without an error, each by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from unimodal.terminal import say

NOISE_FLOORS = 10.0
"""Log-probabilities of sampling and training may differ by so many times their usual difference."""
CLIP_FLOORS = 3.0
"""A clip lies at least so many noise floors from 1."""
COLLAPSED = 0.1
"""The share of its first entropy below which a modality has collapsed."""
APART = 0.1
"""How much a held-out reward may fall while the reward rises by as much."""


@dataclass
class Alarms:
    """Looks at the metrics of each rollout. An alarm is said once when it begins, and counted while it holds."""

    narrowest: float = 0.2
    """The distance from 1 at which ratios are clipped."""
    first_entropy: dict[str, float] = field(default_factory=dict)
    first_rewards: tuple[float, float] | None = None
    """Of training and held out, at the first validation."""
    floor: float | None = None
    """The usual difference of log-probabilities between sampling and training: the smallest that was measured."""
    holding: set[str] = field(default_factory=set)
    loud: bool = True
    """Whether this rank says them; all ranks look at the same metrics and come to the same end."""

    def check(self, metrics: Mapping[str, float]) -> list[str]:
        """Names of the alarms that hold. `metrics` as the run logs them. Raises ValueError for a clip within noise."""
        found = {
            "no_gradient": metrics.get("grad_norm", 1.0) == 0.0,
            "equal_groups": metrics.get("zero_std_groups", 0.0) == 1.0,
            "reward_lost": metrics.get("rewards_lost", 0.0) > 0.0,
            "log_prob_gap": self._gap(metrics),
            "picture_cut_off": metrics.get("pictures_cut_off", 0.0) > 0.0,
            **self._entropies(metrics),
        }
        return self._report(found, metrics)

    def compare(self, reward: float, held_out: float) -> list[str]:
        """After a validation: whether the held-out reward parts from the reward (reward hacking)."""
        if self.first_rewards is None:
            self.first_rewards = (reward, held_out)
        gained, fallen = reward - self.first_rewards[0], self.first_rewards[1] - held_out
        return self._report({"reward_hacking": gained > APART and fallen > APART}, {"reward": reward, "held": held_out})

    def _gap(self, metrics: Mapping[str, float]) -> bool:
        gap = metrics.get("log_prob_gap")
        if gap is None:
            return False
        if self.floor is None:
            self.floor = max(gap, 1e-9)
            if self.narrowest < CLIP_FLOORS * self.floor:
                raise ValueError(
                    f"ratios are clipped at a distance of {self.narrowest:g}, and log-probabilities of sampling and "
                    f"training differ by {gap:.2g} by rounding alone: train with trainer.precision 32-true, or widen "
                    f"the clip to {CLIP_FLOORS * self.floor:.2g} at least"
                )
            return False
        alarm = gap > NOISE_FLOORS * self.floor
        self.floor = min(self.floor, max(gap, 1e-9))
        return alarm

    def _entropies(self, metrics: Mapping[str, float]) -> dict[str, bool]:
        found = {}
        for name in ("entropy_text", "entropy_image"):
            if name in metrics:
                first = self.first_entropy.setdefault(name, metrics[name])
                found[f"{name}_collapsed"] = first > 0.05 and metrics[name] < COLLAPSED * first
        return found

    def _report(self, found: Mapping[str, bool], metrics: Mapping[str, float]) -> list[str]:
        names = [name for name, holds in found.items() if holds]
        for name in names:
            if self.loud and name not in self.holding:
                say(f"alarm {name}: {MEANING[name]} ({_figures(metrics)})")
        self.holding = (self.holding - found.keys()) | set(names)
        return names

    def state_dict(self) -> dict[str, object]:
        """For a checkpoint."""
        return {"entropy": dict(self.first_entropy), "rewards": self.first_rewards, "floor": self.floor}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """The inverse of `state_dict`."""
        self.first_entropy, self.floor = dict(state["entropy"]), state["floor"]  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue, reportArgumentType]
        self.first_rewards = state["rewards"] and tuple(state["rewards"])  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]


MEANING = {
    "no_gradient": "the gradient is exactly zero: no reward reaches the loss",
    "equal_groups": "all answers of every prompt are worth the same, so nothing is learnt from them",
    "reward_lost": "some rewards could not be had; their answers are not learnt",
    "log_prob_gap": "sampling and training see different probabilities of the same answers",
    "picture_cut_off": "pictures do not fit max_new_tokens: their answers end before they are whole",
    "entropy_text_collapsed": "answers in words have become all the same",
    "entropy_image_collapsed": "pictures have become all the same",
    "reward_hacking": "the reward rises while the held-out reward falls",
}
"""What each alarm says."""


def _figures(metrics: Mapping[str, float]) -> str:
    shown = ("reward", "held", "log_prob_gap", "entropy_text", "entropy_image", "grad_norm")
    return ", ".join(f"{name} {metrics[name]:.4g}" for name in shown if name in metrics) or "no figures"
