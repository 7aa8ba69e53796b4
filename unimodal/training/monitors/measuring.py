"""One pass over a sample of a batch, and all figures of it that need no step before or after."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from data_pipelines.batch import PackedBatch
from unimodal.model.branches.base import MediaBatch
from unimodal.training.monitors.activations import activation_sums
from unimodal.training.monitors.observed import Observer
from unimodal.training.monitors.predictions import PredictedTokens, predict, prediction_sums
from unimodal.training.monitors.sums import MonitorSums
from unimodal.training.monitors.weights import gain_sums


class Measured(NamedTuple):
    """Figures, and what the model predicts where `targets` (M,) have a loss."""

    sums: MonitorSums
    predicted: PredictedTokens
    targets: Tensor


def measure_sample(observer: Observer, sample: PackedBatch, media: MediaBatch, image_offset: int) -> Measured:
    """Of a sample and its media as they enter the model; ids from `image_offset` on are image codes."""
    observed = observer.observe(sample, media)
    index = sample.loss_weights.flatten().nonzero().flatten()
    targets = sample.targets.flatten()[index]
    with torch.no_grad(), observer.quietly():
        features = observed.features.flatten(0, 1)[index]
        predicted = predict(observer.model.token_head, features, targets, image_offset)
    sums = activation_sums(observed).add(gain_sums(observer.model)).add(prediction_sums(observed, predicted, index))
    return Measured(sums, predicted, targets)
