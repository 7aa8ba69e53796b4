"""What a model predicts: how sure it is, how often right, and which image codes it expects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from tokenizers_vq.token_space import Modality
from unimodal.model.token_head import TokenHead, ToLogits
from unimodal.training.monitors.observed import Observed
from unimodal.training.monitors.sums import MonitorSums

# Shapes: M tokens with a weight, D width, V vocabulary, C image codes.

LOGIT_ROWS = 512
"""Whose logits exist at a time."""

MODALITY_NAMES = {Modality.TEXT: "text", Modality.IMAGE: "image"}


class PredictedTokens(NamedTuple):
    """Of M tokens, in float32."""

    log_z: Tensor
    entropy: Tensor
    """Of the predicted distribution, in nats."""
    right: Tensor
    """bool: the most likely id is the target."""
    codes: Tensor
    """(C,): probabilities of the image codes, summed over the tokens whose target is one."""


def predict(head: TokenHead, features: Tensor, targets: Tensor, image_offset: int) -> PredictedTokens:
    """features (M, D), targets (M,); ids from `image_offset` on are image codes."""

    def read(x: Tensor, to_logits: ToLogits) -> PredictedTokens:
        parts = [
            _predicted(to_logits(x[start : start + LOGIT_ROWS]), targets[start : start + LOGIT_ROWS])
            for start in range(0, max(len(x), 1), LOGIT_ROWS)
        ]
        log_z, entropy, right, codes = zip(*parts, strict=True)
        return PredictedTokens(torch.cat(log_z), torch.cat(entropy), torch.cat(right), torch.stack(codes).sum(0))

    def _predicted(logits: Tensor, of: Tensor) -> PredictedTokens:
        logits = logits.float()
        log_z = logits.logsumexp(-1)
        chances = (logits - log_z[:, None]).exp_()
        entropy = log_z - (chances * logits).sum(-1)
        codes = (chances[:, image_offset:] * (of >= image_offset)[:, None]).sum(0)
        return PredictedTokens(log_z, entropy, logits.argmax(-1) == of, codes)

    found: Any = head(features, within=read)
    return found


def prediction_sums(observed: Observed, predicted: PredictedTokens, index: Tensor) -> MonitorSums:
    """`log_z`, and `accuracy` and `entropy` of text and of image codes: means over tokens with a loss (M,)."""
    modality = observed.batch.modality.flatten()[index]
    ones = torch.ones_like(predicted.log_z)
    means = {"log_z": (predicted.log_z.sum(), ones.sum())}
    for kind, name in MODALITY_NAMES.items():
        of_kind = (modality == int(kind)).float()
        means[f"accuracy_{name}"] = ((predicted.right * of_kind).sum(), of_kind.sum())
        means[f"entropy_{name}"] = ((predicted.entropy * of_kind).sum(), of_kind.sum())
    return MonitorSums(means=means)


@dataclass(kw_only=True)
class CodeUse:
    """How often each image code is expected, and how often it is the target: averages that forget at `decay`."""

    decay: float = 0.9
    expected: Tensor | None = None
    """(C,) float32."""
    targets: Tensor | None = None

    def add(self, predicted: PredictedTokens, targets: Tensor, image_offset: int) -> None:
        """One pass; ranks add theirs, and all call it."""
        codes = targets[targets >= image_offset] - image_offset
        counts = torch.bincount(codes, minlength=len(predicted.codes)).to(predicted.codes)
        both = torch.stack([predicted.codes, counts])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(both)
        if not bool(both[1].any()):
            return
        found = (both / both[1].sum()).cpu()
        known = [each for each in (self.expected, self.targets) if each is not None]
        both = torch.stack(known).mul(self.decay).add(found, alpha=1 - self.decay) if known else found
        self.expected, self.targets = both

    def figures(self) -> dict[str, float]:
        """`code_entropy` of what is expected and `code_entropy_data` of the targets, in nats; `dead_codes`, the share
        of the targets' codes that are expected less than a hundredth as often."""
        if self.expected is None or self.targets is None:
            return {}
        there = self.targets > 0
        dead = (self.expected[there] < self.targets[there] / 100).float().mean()
        entropies = {"code_entropy": self.expected, "code_entropy_data": self.targets}
        return {**{name: _entropy(each) for name, each in entropies.items()}, "dead_codes": float(dead)}


def _entropy(shares: Tensor) -> float:
    shares = shares / shares.sum()
    return float(torch.special.entr(shares).sum())
