"""The policy's own decoding: a pipeline of the weights as they are now."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from tokenizers_vq.bundle_files import Tokenizers
from tokenizers_vq.token_space import TokenSpace
from unimodal.bundle import Bundle
from unimodal.generation.context import Reading
from unimodal.generation.pipeline import Pipeline
from unimodal.model.model import UnifiedModel
from unimodal.training.parallel.gathering import whole_model


class PolicyDecoder:
    """Pipelines of a model that changes between rollouts.

    On a GPU the compiled steps share its weights. On a CPU their prepacked copy is made anew for each rollout, and a
    sharded model is gathered: `refreshed` counts how often.
    """

    def __init__(self, space: TokenSpace, folder: Path) -> None:
        """folder: where the tokenizers lie."""
        self.space, self.folder = space, folder
        self.refreshed = 0
        self._tokenizers: Tokenizers | None = None
        self._pipeline: Pipeline | None = None

    def pipeline(self, model: UnifiedModel) -> Pipeline:
        """A pipeline of its weights as they are, in evaluation mode. All ranks call it."""
        model.eval()
        gathered = whole_model(model, keep=True)
        assert gathered is not None
        gathered = gathered.to(model.device).eval()
        if self._tokenizers is None:
            self._tokenizers = Bundle.beside(gathered, self.space, self.folder).tokenizers
        if self._pipeline is None or self._pipeline.model is not gathered:
            self._pipeline = Pipeline(Bundle(gathered, self.space, self._tokenizers))
            if gathered.device.type == "cuda":
                self._pipeline.use_compiled_steps()
        if gathered.device.type == "cpu":
            self._pipeline.use_prepacked_weights()
        self.refreshed += 1
        return self._pipeline

    @property
    def reading(self) -> Reading:
        """How the policy reads images."""
        assert self._pipeline is not None
        return self._pipeline.reading

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of latents of a picture that a flow draws."""
        assert self._tokenizers is not None and self._tokenizers.autoencoder is not None
        side = self._tokenizers.autoencoder.grid
        return side, side


@contextmanager
def as_saved(device: torch.device) -> Iterator[None]:
    """Sampling and rewards run in the types that weights have, whatever a step trains in: without autocast, and with
    torch's own default type, which Lightning's `64-true` and `bf16-true` change."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_default_dtype(default)
