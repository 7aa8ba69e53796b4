"""Where a run's weights come from, and which of them are trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from tokenizers_vq.identity import check_finite
from tokenizers_vq.media import LATENTS, PATCHES
from tokenizers_vq.token_space import TokenSpace
from unimodal.interop.architectures.vision import load_vit
from unimodal.model.branches.vision.branch import VisionBranch
from unimodal.model.checkpoint import opened_weights, read_config
from unimodal.model.config import ModelConfig
from unimodal.model.mixture import expert_names
from unimodal.model.model import MULTI_TOKEN, VELOCITY, UnifiedModel
from unimodal.model.sharded import local_parts, write_rows
from unimodal.training.codebook_init import CodebookInitConfig, init_from_codebook, open_beside
from unimodal.training.lora import LoraSettings, add_adapters, lora_targets, opened_peft
from unimodal.training.upcycling import UpcyclingConfig, expert_layers, upcycle

NEW_WITH_A_BRANCH = (f"branches.{LATENTS}.", f"branches.{PATCHES}.", f"heads.{VELOCITY}.", f"heads.{MULTI_TOKEN}.")
MAY_DIFFER = ("mixture", "dropout", "max_length")
"""Fields that may differ from those of the bundle that a run starts from."""


@dataclass(frozen=True, kw_only=True)
class StartConfig:
    """`bundle` is a model whose weights a run starts from; a mixture takes a dense model's for both experts.

    `vision` is a local folder of SigLIP or MoonViT for the ViT. `codebook` initialises the image rows of embedding
    and head from the image tokenizer. `upcycling` makes experts of the feed-forward parts of a dense bundle. `freeze`
    are patterns of parameter names that are not trained, such as `*.understanding.*` or `branches.patches.encoder.*`;
    `trainable` are those that alone are. With `trainable_rows: image`, embedding and head train the rows of image codes
    alone (Anole, arXiv 2407.06135). With `lora`, adapters are trained and, of the bundle, what `trainable` names.
    `dropout` takes the place of the bundle's.
    """

    bundle: Path | None = None
    vision: Path | None = None
    codebook: CodebookInitConfig | None = None
    upcycling: UpcyclingConfig | None = None
    freeze: tuple[str, ...] = ()
    trainable: tuple[str, ...] = ()
    trainable_rows: Literal["all", "image"] = "all"
    lora: LoraSettings | None = None
    dropout: float | None = None

    def __post_init__(self) -> None:
        if self.freeze and self.trainable:
            raise ValueError("start.freeze names what is not trained, start.trainable what alone is: leave out one")
        if (self.freeze or self.trainable) and not (self.bundle or self.vision):
            raise ValueError("start.freeze would keep random weights: name a bundle or a SigLIP folder to start from")
        if self.trainable_rows != "all" and not self.bundle:
            raise ValueError("start.trainable_rows would keep random rows: name a bundle to start from")
        if self.lora and (not self.bundle or self.freeze):
            raise ValueError("start.lora adapts a bundle that stays as it is: name start.bundle, and no start.freeze")
        if self.dropout is not None and not (self.bundle and 0 <= self.dropout < 1):
            raise ValueError(f"start.dropout, from 0 to 1, is for a run that starts from a bundle, got {self.dropout}")
        if self.upcycling and not self.bundle:
            raise ValueError("start.upcycling makes experts of a dense model: name it in start.bundle")
        if self.bundle and self.codebook:
            raise ValueError("start.codebook would overwrite the bundle's embedding: leave out one of them")


def start(model: UnifiedModel, config: StartConfig, space: TokenSpace, tokenizers: Path | None) -> None:
    """Load and freeze what the config says. `tokenizers` is the folder with the image tokenizer.

    Raises ValueError for a bundle of another token space or architecture, for a pattern that matches nothing, and for
    one that freezes weights which nothing has trained.
    """
    check_patterns(model, config)
    loaded: set[str] = set()
    if config.codebook is not None:
        init_from_codebook(model, space, open_beside(tokenizers), config.codebook)
    if config.bundle is not None:
        loaded |= load_bundle(model, config.bundle, space, config.upcycling)
    if config.vision is not None:
        loaded |= _load_vision(model, config.vision)
    freeze(model, config, loaded)
    if config.lora is not None:
        add_adapters(model, config.lora)


def space_with_ends(space: TokenSpace, bundle: Path | None) -> TokenSpace:
    """The data's token space; an answer also ends where the bundle that a run starts from ends one.

    Shards know the ids of an imported chat model, and not at which of them a turn ends.
    """
    if bundle is None or space.also_end:
        return space
    return replace(space, also_end=TokenSpace.open(bundle).also_end)


def bundle_config(config: StartConfig) -> ModelConfig | None:
    """The architecture of the bundle that a run starts from, with the run's dropout; None where there is none."""
    if config.bundle is None:
        return None
    found = read_config(config.bundle)
    return found if config.dropout is None else replace(found, trunk=replace(found.trunk, dropout=config.dropout))


def load_bundle(
    model: UnifiedModel, folder: Path, space: TokenSpace, upcycling: UpcyclingConfig | None = None
) -> set[str]:
    """Load a bundle's weights; the names of the parameters that were set. A branch that it lacks keeps its own.

    Of a sharded model each rank reads its own rows, one tensor at a time.
    """
    source, found = read_config(folder), TokenSpace.open(folder)
    found.check_same(space, str(folder), "the data")
    if upcycling and (source.trunk.moe or not model.config.trunk.moe):
        raise ValueError(f"start.upcycling: {folder} has to be dense, and this run's model.trunk.moe set")
    _check_same(source, model.config, folder, (*MAY_DIFFER, "moe") if upcycling else MAY_DIFFER)
    grown = tuple(expert_layers(model)) if upcycling else ()
    present = dict(model.state_dict())
    with opened_weights(folder) as weights:
        copies = model.config.trunk.mixture and not source.trunk.mixture
        copied = [name for name in weights if not name.startswith(grown)] if grown else weights
        names = {new: name for name in copied for new in ((copies and expert_names(name)) or (name,))}
        new = (*NEW_WITH_A_BRANCH, *grown)
        missing = [name for name in present if name not in names and not name.startswith(new)]
        if strange := sorted([*missing, *(name for name in names if name not in present)]):
            raise ValueError(f"{folder} holds another model than this run trains: they differ in {strange[0]}")
        for name, stored in names.items():
            _check_shape(folder, name, weights[stored].get_shape(), present[name])
            write_rows(present[name], weights[stored])
        written = upcycle(model, weights, upcycling) if upcycling else set[str]()
    parts = local_parts(present[name] for name in names)
    check_finite(dict(zip(names, parts, strict=True)), str(folder))
    return {*names, *written}


def _check_shape(folder: Path, name: str, found: Sequence[int], present: Tensor) -> None:
    if tuple(found) != tuple(present.shape):
        shapes = f"{tuple(found)} there and {tuple(present.shape)} here"
        raise ValueError(f"{folder} holds another model than this run trains: {name} is {shapes}")


def _check_same(found: ModelConfig, wanted: ModelConfig, folder: Path, may_differ: Sequence[str]) -> None:
    """Weights may fit where the functions differ, so the configs are compared, those of branches too."""
    if found.trunk.mixture and not wanted.trunk.mixture:
        raise ValueError(f"{folder} is a mixture of transformers, and this run trains a dense model: set model.flow")
    for part in ("trunk", "flow", "vision", "multi_token"):
        theirs, ours = (_without_data(getattr(config, part)) for config in (found, wanted))
        fields = vars(theirs) if theirs and ours else {}
        for name, value in fields.items():
            if name not in may_differ and value != getattr(ours, name):
                raise ValueError(
                    f"{folder}: its {name} is {value}, this run's {getattr(ours, name)}: they must be the same"
                )


def _without_data(part: Any) -> Any:
    """A part of a config without what the data says of it: where image codes start, for experts."""
    moe = getattr(part, "moe", None)
    return replace(part, moe=replace(moe, image_ids_from=0)) if moe else part


def _load_vision(model: UnifiedModel, folder: Path) -> set[str]:
    branch = dict(model.branches.items()).get(PATCHES)
    if not isinstance(branch, VisionBranch):
        raise ValueError("start.vision names a ViT, but the model has none: set model.vision")
    loaded = load_vit(branch, folder)
    return {f"branches.{PATCHES}.{name}" for name in loaded}


def check_patterns(model: UnifiedModel, config: StartConfig) -> None:
    """Before anything is loaded: raise ValueError for a pattern that matches nothing, and where nothing is trained."""
    names = [name for name, _ in model.named_parameters()]
    for setting in ("freeze", "trainable"):
        for pattern in getattr(config, setting):
            if not any(fnmatchcase(name, pattern) for name in names):
                raise ValueError(f"start.{setting}: no parameter is called {pattern!r}; there is {names[0]}, ...")
    if config.lora is not None:
        lora_targets(model, config.lora)
        opened_peft()
    elif len(frozen_names(model, config)) == len(names):
        raise ValueError("start.freeze leaves nothing to train")


def frozen_names(model: UnifiedModel, config: StartConfig) -> list[str]:
    """The parameters that patterns take out of training."""
    names = [name for name, _ in model.named_parameters()]
    if config.trainable or config.lora:
        return [name for name in names if not any(fnmatchcase(name, pattern) for pattern in config.trainable)]
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in config.freeze)]


def freeze(model: UnifiedModel, config: StartConfig, loaded: set[str]) -> None:
    """Parameters that match `freeze`, or do not match `trainable`, take no gradient.

    Raises ValueError as `check_patterns`, and for one that is not among `loaded`: nothing trained it.
    """
    check_patterns(model, config)
    names = frozen_names(model, config)
    if untrained := [name for name in names if name not in loaded]:
        raise ValueError(f"start freezes {untrained[0]}, which nothing has trained")
    for name in names:
        model.get_parameter(name).requires_grad_(False)
