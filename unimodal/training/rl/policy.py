"""The policy is the sampler: log-probabilities of sampled tokens under the model as it is now, differentiable.

Guidance, the modality machine, grammars, temperature, top-k and top-p all count. Whoever leaves out guidance trains
another distribution than the one that drew the pictures: with scale w, the gradient of a sampled code's probability is
w times that of its logit under the prompt less (w - 1) times that of its logit without it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from unimodal.generation.guidance import RowGuidance, guided_logits
from unimodal.generation.log_probs import TokenLogProbs, token_log_probs
from unimodal.generation.modality import ModalityMachine
from unimodal.generation.sampling import exact
from unimodal.model.token_head import TokenHead
from unimodal.training.rl.trajectories import IMAGES, MAIN, NULL, PolicyBatch

# Shapes: M tokens of all answers, D model width, V vocabulary.

LOGITS_AT_ONCE = 2**22
"""Logits of one part; what a part needs besides is made again in the backward pass."""


def policy_log_probs(
    head: TokenHead, features: Tensor, batch: PolicyBatch, machine: ModalityMachine, at_once: int = LOGITS_AT_ONCE
) -> TokenLogProbs:
    """Features (B, T, D) of the batch's packed rows -> log-probabilities and entropies of its tokens (M,).

    `machine` is on the device of the features.
    """
    flat = features.flatten(0, 1)
    rows = max(at_once // head.out_features, 1)
    found = []
    for part in _parts(batch, rows):
        if torch.is_grad_enabled() and len(batch.tokens) > rows:
            found.append(checkpoint(_log_probs, head, flat, part, machine, use_reentrant=False))
        else:
            found.append(_log_probs(head, flat, part, machine))
    return TokenLogProbs(*(torch.cat(values) for values in zip(*found, strict=True)))


def _log_probs(head: TokenHead, flat: Tensor, part: PolicyBatch, machine: ModalityMachine) -> TokenLogProbs:
    logits = exact(head(flat[part.index[:, MAIN]]))
    where = part.guided.nonzero().squeeze(-1)
    if len(where):
        null, image = (exact(head(flat[part.index[where, role]])) for role in (NULL, IMAGES))
        rows = RowGuidance(*(column[where] for column in part.guidance))
        progress = part.states.progress[where]
        logits = logits.index_copy(0, where, guided_logits(logits[where], image, null, rows, progress))
    logits = logits + machine.bias(part.states, part.left)
    if part.text_bias is not None:
        rules = torch.nn.functional.pad(part.text_bias, (0, logits.shape[-1] - part.text_bias.shape[-1]))
        logits = logits + rules
    return token_log_probs(logits, part.tokens, part.sampling, sampled=True)


def _parts(batch: PolicyBatch, rows: int) -> Iterator[PolicyBatch]:
    """Some tokens at a time; a batch without any is one part, so that every weight has a gradient."""
    for start in range(0, max(len(batch.tokens), 1), rows):
        yield batch.map(partial(_some, chosen=slice(start, start + rows)))


def _some(tensor: Tensor, chosen: slice) -> Tensor:
    return tensor[chosen]


def moved(batch: PolicyBatch, device: torch.device) -> PolicyBatch:
    """The same batch on a device."""
    if device.type == "cpu":
        return batch
    found = batch.map(lambda tensor: tensor.to(device, non_blocking=True))
    return replace(found, packed=batch.packed.to(device, non_blocking=True))
