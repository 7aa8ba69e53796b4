"""Which figures are worth a warning, and what to do then."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

OF_MODALITY = "grad_norm_"
SPACED = 1.05
"""Steps that are kept are so far apart."""
LOWER_RATE = "lower the learning rate or lengthen the warm-up"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a figure may reach before it is warned of; 0 leaves it unwatched (docs/stability.md has their reasons).

    after: optimizer steps that are not judged, since everything moves fast in the first ones.
    output_growth: `output_norm` by what it was at half of the steps: sound runs reach a level, others do not.
    attention_logit, qk_gain, update: largest values.
    log_z: by absolute value.
    loss_rise: nats by which `train/loss` is above the mean of the last measured ones.
    grad_norm_rise: `train/grad_norm` by the mean of the last measured ones.
    grad_norm_apart: the larger gradient norm of two modalities by the smaller, means of the last measured ones.
    code_entropy: the least entropy of the expected image codes, by that of the data.
    dead_codes: the largest share of the data's codes that are hardly ever expected.
    """

    after: int = 100
    output_growth: float = 4.0
    attention_logit: float = 100.0
    qk_gain: float = 10.0
    log_z: float = 30.0
    update: float = 0.5
    loss_rise: float = 1.0
    grad_norm_rise: float = 10.0
    grad_norm_apart: float = 30.0
    code_entropy: float = 0.5
    dead_codes: float = 0.5

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value < math.inf:
                raise ValueError(f"monitors.limits.{name} is finite and not negative, got {value}")


@dataclass(kw_only=True)
class History:
    """What warnings compare with; a checkpoint holds it."""

    outputs: list[tuple[int, float]] = field(default_factory=list)
    """(step, norm of the output), from half of the steps on, each step 5% after the one before."""
    loss: float = math.nan
    grad_norm: float = math.nan
    of_modalities: dict[str, float] = field(default_factory=dict)
    """Gradient norms by their names, means that forget."""
    warned: list[str] = field(default_factory=list)

    def state(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def output_before(self, step: int) -> tuple[int, float] | None:
        """The norm of the output at half of the steps; None where nothing was measured then."""
        early = [one for one in self.outputs if 2 * one[0] <= step]
        return early[-1] if early else None

    def follow(self, figures: Mapping[str, float], step: int) -> None:
        """Means that forget, and norms of the output."""
        if "output_norm" in figures and (not self.outputs or step >= SPACED * self.outputs[-1][0]):
            self.outputs.append((step, figures["output_norm"]))
        while len(self.outputs) > 1 and 2 * self.outputs[1][0] <= step:
            del self.outputs[0]
        for name in ("loss", "grad_norm"):
            value, mean = figures.get(name, math.nan), getattr(self, name)
            if math.isfinite(value):
                setattr(self, name, 0.9 * mean + 0.1 * value if math.isfinite(mean) else value)
        self.of_modalities |= self.modalities_with(figures)

    def modalities_with(self, figures: Mapping[str, float]) -> dict[str, float]:
        """Means of the gradient norms of modalities, those of figures among them."""
        found = {name: value for name, value in figures.items() if name.startswith(OF_MODALITY)}
        return {name: 0.8 * self.of_modalities.get(name, value) + 0.2 * value for name, value in found.items()}


def warnings(figures: Mapping[str, float], history: History, limits: Limits, step: int) -> Iterator[tuple[str, str]]:
    """(name of a limit, what is to be said) for each limit that is passed. Figures are named without their prefixes."""
    found = dict((*_above(figures, limits), *_apart(history.modalities_with(figures), limits)))
    output, before = figures.get("output_norm", 0.0), history.output_before(step)
    if limits.output_growth and before and output > limits.output_growth * before[1]:
        found["output_growth"] = (
            f"the norm of the last layer's output grew from {before[1]:.3g} at step {before[0]} to {output:.3g}, which "
            "comes before a loss diverges: keep QK-norm and z-loss on, add dropout or norm_placement: swin, or "
            f"{LOWER_RATE}"
        )
    loss, mean = figures.get("loss", math.nan), history.loss
    if limits.loss_rise and loss > mean + limits.loss_rise:
        found["loss_rise"] = (
            f"the loss rose from {mean:.3f} to {loss:.3f}: if it stays there, resume from the checkpoint before, and "
            f"{LOWER_RATE}"
        )
    norm, mean = figures.get("grad_norm", math.nan), history.grad_norm
    if limits.grad_norm_rise and norm > mean * limits.grad_norm_rise:
        found["grad_norm_rise"] = (
            f"the gradient norm rose from {mean:.3g} to {norm:.3g}: set trainer.gradient_clip_val, or {LOWER_RATE}"
        )
    yield from found.items()


def _above(figures: Mapping[str, float], limits: Limits) -> Iterator[tuple[str, str]]:
    """Figures that are compared with a limit alone."""
    score, gain, log_z = (figures.get(name, 0.0) for name in ("attention_logit", "qk_gain", "log_z"))
    if limits.attention_logit and score > limits.attention_logit:
        yield (
            "attention_logit",
            f"the largest score of attention is {score:.3g}: it attends to single tokens. Set model.trunk.qk_norm, or "
            f"{LOWER_RATE}",
        )
    if limits.qk_gain and gain > limits.qk_gain:
        yield "qk_gain", f"a gain of QK-norm is {gain:.3g}, and scores of attention grow with it: {LOWER_RATE}"
    if limits.log_z and abs(log_z) > limits.log_z:
        yield "log_z", f"the mean log Z of the next token is {log_z:.3g}: raise NextToken's z_weight (Chameleon: 1e-5)"
    update = max((value for name, value in figures.items() if name.startswith("update_")), default=0.0)
    if limits.update and update > limits.update:
        yield "update", f"a step moves weights by {update:.2g} of their norm: {LOWER_RATE}"
    yield from _codes(figures, limits)


def _apart(norms: Mapping[str, float], limits: Limits) -> Iterator[tuple[str, str]]:
    if limits.grad_norm_apart and norms and max(norms.values()) > limits.grad_norm_apart * min(norms.values()):
        large, small = (choose(norms, key=norms.__getitem__) for choose in (max, min))
        yield (
            "grad_norm_apart",
            f"{large} is {norms[large]:.3g} and {small} {norms[small]:.3g}: one modality leads the other; change their "
            "shares in the data, or data.templates.drawn_image_weight",
        )


def _codes(figures: Mapping[str, float], limits: Limits) -> Iterator[tuple[str, str]]:
    entropy, of_data = (figures.get(name, math.nan) for name in ("code_entropy", "code_entropy_data"))
    if limits.code_entropy and entropy < limits.code_entropy * of_data:
        yield (
            "code_entropy",
            f"the expected image codes have {entropy:.2f} nats, those of the data {of_data:.2f}: drawings will look "
            f"alike; {LOWER_RATE}, or give pictures a larger share",
        )
    dead = figures.get("dead_codes", 0.0)
    if limits.dead_codes and dead > limits.dead_codes:
        yield (
            "dead_codes",
            f"{dead:.0%} of the image codes of the data are hardly ever expected: train longer, or take a smaller "
            "codebook",
        )
