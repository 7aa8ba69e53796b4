"""`unimodal replay`: the batch of a skipped step again, to name the first module whose numbers are not finite."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from data_pipelines.batch import PackedBatch
from unimodal.generation.batch_media import media_tokens
from unimodal.model.branches.base import Branch, MediaTokens
from unimodal.model.checkpoint import WEIGHTS_FILE, opened_weights, read_config
from unimodal.model.masks import dense_mask
from unimodal.model.model import UnifiedModel
from unimodal.model.sharded import write_rows
from unimodal.terminal import say
from unimodal.training.objectives.base import Objective, total
from unimodal.training.objectives.flow_matching import FlowMatching
from unimodal.training.objectives.next_token import NextToken
from unimodal.training.skipped import kept_batch


def run(folder: Path, model: Path | None = None) -> int:
    """0 where all numbers are finite, 1 where some are not; the line says where that begins.

    Of sharded training the weights are not kept: `model` is then a bundle made of its last checkpoint.
    """
    batch = kept_batch(folder)
    fault = first_fault(batch, _opened(folder if model is None else model))
    say(fault or "weights, data, losses and gradients are all finite: the step went wrong on another rank or device")
    return int(fault is not None)


def _opened(folder: Path) -> UnifiedModel:
    if not (folder / WEIGHTS_FILE).is_file():
        raise ValueError(f"{folder} holds no weights: name a bundle made of the run's last checkpoint with --model")
    model = UnifiedModel(read_config(folder))
    with opened_weights(folder) as weights:
        for name, tensor in model.state_dict().items():
            write_rows(tensor, weights[name])
    return model.train()


def first_fault(batch: PackedBatch, model: UnifiedModel) -> str | None:
    """Where the first number that is not finite stands: in weights, in the data, going forward or going back."""
    for name, parameter in model.named_parameters():
        if not _finite(parameter):
            return f"the weight {name} is not finite before the step"
    given = {"loss_weights": batch.loss_weights, **{name: packed.values for name, packed in batch.media.items()}}
    for name, tensor in given.items():
        if not _finite(tensor):
            return f"the batch's {name} are not finite: the fault is in the data"
    found: list[str] = []
    for name, module in model.named_modules():
        module.register_forward_hook(_watching(found, name, "gives"))  # of the inner ones first
        if not any(module.children()):
            module.register_full_backward_hook(_watching(found, name, "sends back"))
    loss = _loss(batch, model)
    if not found and not _finite(loss):
        return "the loss is not finite, though all that the modules give is"
    if not found:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*Full backward hook.*")  # of the embedding, whose input has no gradient
            loss.backward()
    return found[0] if found else None


def _loss(batch: PackedBatch, model: UnifiedModel) -> Tensor:
    objectives: list[Objective] = [NextToken(), *([FlowMatching()] if model.config.flow else [])]
    media: dict[str, MediaTokens] = {name: media_tokens(packed) for name, packed in batch.media.items()}
    for name, branch in model.branches.items():
        assert isinstance(branch, Branch)
        media.setdefault(name, branch.empty(model.trunk.embedding.weight.detach()))
    states, given = [], dict[str, Any](media)
    for objective in objectives:
        prepared = objective.prepare(model, batch, given, 0)
        given = dict(prepared.media)
        states.append(prepared.state)
    mask = dense_mask(batch.documents, batch.branches, batch.spans)
    features = model(batch.tokens, batch.positions, mask, media=given)
    pairs = zip(objectives, states, strict=True)
    return sum((total(o.terms(model, features, batch, state)) for o, state in pairs), torch.zeros(()))


def _watching(found: list[str], name: str, verb: str) -> Callable[..., None]:
    def hook(module: nn.Module, given: Any, result: Any) -> None:
        inputs, outputs = ([t for t in tree_leaves(each) if isinstance(t, Tensor)] for each in (given, result))
        if verb == "sends back":
            inputs, outputs = outputs, inputs  # of a backward hook, the second are the gradients that came in
        if all(map(_finite, inputs)) and not all(map(_finite, outputs)):
            kind = type(module).__name__
            found.append(f"{name} ({kind}) {verb} numbers that are not finite, of inputs that are")

    return hook


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())
