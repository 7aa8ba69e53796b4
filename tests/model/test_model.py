"""The whole model: every weight is used through `__call__` of its module, and media need their branch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from tests.oracles.passes import logits, media_at, velocity
from tests.oracles.tiny import tiny_model
from tokenizers_vq.media import PatchSpec
from unimodal.model.branches.base import MediaTokens, grid_positions
from unimodal.model.cache import KVCache
from unimodal.model.config import FlowConfig, QKNormConfig, VisionConfig
from unimodal.model.model import LATENTS, PATCHES

FLOW = FlowConfig(latent_dim=3, grid_size=2, time_channels=8, axial_rope_max=1.5)
VISION = VisionConfig(
    patches=PatchSpec(size=2, max_patches=9, max_side=3), grid_size=2, dim=8, num_layers=2, hidden_dim=12
)


class Watch(TorchFunctionMode):
    """Which module was in its `__call__` when a parameter entered an operation.

    Whatever a sharded model does to its weights hangs on hooks, and only `__call__` runs hooks.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.owners: dict[int, set[str]] = {}
        self.running: list[tuple[str, int]] = []
        self.entries: Counter[str] = Counter()
        self.used: set[tuple[str, int]] = set()
        self.astray: list[str] = []
        for name, module in model.named_modules():
            own = dict(module.named_parameters(recurse=False))
            for parameter in own.values():
                self.owners.setdefault(id(parameter), set()).add(name)
            if own:
                self._follow(name, module)

    def _follow(self, name: str, module: nn.Module) -> None:
        def enter(*_: Any) -> None:
            self.entries[name] += 1
            self.running.append((name, self.entries[name]))

        def leave(*_: Any) -> None:
            assert self.running.pop()[0] == name

        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave)

    def __torch_function__(
        self, function: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        if getattr(function, "__name__", "") != "__get__":  # a type or a shape is no use of a weight
            for leaf in tree_leaves((args, kwargs or {})):
                if isinstance(leaf, Tensor) and id(leaf) in self.owners:
                    self._note(self.owners[id(leaf)])
        return function(*args, **(kwargs or {}))

    def _note(self, owners: set[str]) -> None:
        inside = [entry for entry in self.running if entry[0] in owners]
        self.used.update(inside[-1:])
        if not inside:
            self.astray += owners


def tokens_of(branch: str, *standing: int) -> MediaTokens:
    """Four tokens of an image in a row of 12."""
    where = torch.zeros(1, 12, dtype=torch.bool)
    where[0, list(standing)] = True
    if branch == PATCHES:
        return media_at(where, torch.randint(256, (4, 12), dtype=torch.uint8), grid_positions(2, 2))
    return media_at(where, torch.randn(4, 3, dtype=torch.float64), grid_positions(2, 2), torch.full((4,), 0.5))


KINDS: dict[str, dict[str, Any]] = {
    "discrete": {},
    "swin without QK-norm": {"norm_placement": "swin", "qk_norm": None},
    "tied head": {"tied_head": True},
    "flow": {"flow": FLOW},
    "mixture, flow, vision": {"mixture": True, "flow": FLOW, "vision": VISION},
    "the same with RMS QK-norm": {
        "mixture": True,
        "qkv_bias": True,
        "qk_norm": QKNormConfig(kind="rms"),
        "flow": FLOW,
        "vision": VISION,
    },
}


@pytest.mark.parametrize("changes", KINDS.values(), ids=list(KINDS))
def test_every_parameter_is_used_inside_calls_of_its_own_module(changes: dict[str, Any]) -> None:
    model = tiny_model(**changes)
    media = {LATENTS: tokens_of(LATENTS, 1, 2, 3, 4)} if model.config.flow else {}
    media |= {PATCHES: tokens_of(PATCHES, 7, 8, 9, 10)} if model.config.vision else {}
    tokens, watch = torch.randint(24, (1, 12)), Watch(model)
    with watch:
        features = model(tokens, media=media)
        model.token_head(features)
        if LATENTS in media:
            velocity(model, features, media[LATENTS])
    assert watch.astray == []
    assert watch.entries == Counter(name for name, _ in watch.used), "each call uses the weights, each use has its call"
    assert set(watch.entries) == set().union(*watch.owners.values())
    assert set(watch.entries.values()) == {1}


def test_cached_steps_use_every_weight_inside_calls_too() -> None:
    model = tiny_model()
    cache, watch = KVCache(model.config.trunk, 1, 12, torch.float64), Watch(model)
    with watch:
        for position in range(3):
            cache.reserve(position + 1)
            logits(model, torch.tensor([[5]]), torch.tensor([[position]]), cache=cache)
    assert watch.astray == [] and set(watch.entries.values()) == {3}
    assert watch.entries == Counter(name for name, _ in watch.used)


def test_a_weight_used_behind_its_modules_back_is_noticed() -> None:
    """The watch itself."""
    model = tiny_model()
    features = model(torch.randint(24, (1, 12)))
    watch = Watch(model)
    with watch:
        model.token_head.forward(features)
        _ = features @ model.token_head.weight.T
    assert set(watch.astray) == {"heads.tokens"} and not watch.entries


@pytest.mark.parametrize(
    ("changes", "takes"),
    [({}, "ids"), ({"vision": VISION}, "ids, patches"), ({"vision": VISION, "flow": FLOW}, "ids, latents, patches")],
)
def test_media_of_a_branch_that_the_model_lacks_are_refused_in_one_line(changes: dict[str, Any], takes: str) -> None:
    model, tokens = tiny_model(**changes), torch.randint(24, (1, 12))
    lacking = "sounds" if "flow" in changes else LATENTS
    with pytest.raises(ValueError) as error:
        model(tokens, media={lacking: tokens_of(LATENTS, 1, 2, 3, 4)})
    assert str(error.value) == f"this model has no branch for {lacking}: it takes {takes}"


def test_a_model_says_the_type_and_place_of_its_weights() -> None:
    model = tiny_model(dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16 and model.device == torch.device("cpu")
    assert model.token_head is model.heads["tokens"]
