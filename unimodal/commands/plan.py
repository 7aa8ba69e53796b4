"""`unimodal plan`: what a run of a config needs of memory on so many devices, and which setting to take."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser
from rich.table import Table

from unimodal.model.config import ModelConfig, TransformerConfig
from unimodal.terminal import open_console, say
from unimodal.training.module import TransformerModule
from unimodal.training.optimizers.build import MuonConfig, OptimizerConfig
from unimodal.training.parallel.admission import GIB
from unimodal.training.parallel.estimate import Memory, PlannedSetting, estimate_memory, packed_text
from unimodal.training.parallel.sharding import CHECKPOINTING
from unimodal.training.precision import gathered_dtype

DOCUMENT = 1100
"""Tokens of a document of the traced batch: an image of 1,024 codes and its text."""
SPARE = 0.1
"""The share of a device that its allocator, its libraries and the largest kernels' workspaces may take."""


def run(config: Path, devices: int, memory_gib: float, vocab_size: int, rows: int | None = None) -> int:
    """Print a table of settings; 0 where one of them fits, 1 where none does.

    Raises ValueError for a config that is none, or whose model cannot be built.
    """
    if devices < 1 or memory_gib <= 0:
        raise ValueError(f"a plan is for at least one device with some memory, got {devices} of {memory_gib} GiB")
    trunk, optimizer, values = read_config_file(config)
    stream = ((values.get("data") or {}).get("init_args") or {}).get("stream") or {}
    precision = str((values.get("trainer") or {}).get("precision") or "bf16-mixed")
    base = PlannedSetting(
        ranks=devices,
        rows=rows or stream.get("rows", 32),
        length=stream.get("length", 256),
        dtype=gathered_dtype(precision),
    )
    model = ModelConfig(vocab_size=vocab_size, trunk=trunk)
    batch = f"{base.rows} rows of {base.length:,} tokens each"
    table = Table(title=f"{config}: {devices} devices of {memory_gib:g} GiB, {batch}")
    for name in ("setting", "GiB a device", "weights", "gradients", "optimizer", "activations", "gathered", "fits"):
        table.add_column(name, justify="left" if name == "setting" else "right")
    if branches := [name for name in ("flow", "vision") if values["model"].get("init_args", {}).get(name)]:
        say(f"the branches {' and '.join(branches)} of this config are not traced: its run needs more than this")
    chosen: tuple[PlannedSetting, Memory] | None = None
    for setting in settings(base):
        found = estimated(model, optimizer, setting)
        fits = found.peak <= (1 - SPARE) * memory_gib * GIB
        chosen = chosen or ((setting, found) if fits else None)
        table.add_row(setting.title, *_row(found), "yes" if fits else "no")
    open_console().print(table)
    if chosen is None:
        say(f"none fits with {SPARE:.0%} to spare: take fewer rows (--rows), shorter ones, or more devices")
        return 1
    setting, found = chosen
    strategy = setting.layout if devices > 1 else "auto"
    checkpointing = setting.activation_checkpointing
    gib = {name: f"{getattr(found, name) / GIB:.1f} GiB" for name in ("peak", "checkpoint", "host_load")}
    say(f"take --trainer.strategy {strategy} --model.init_args.parallel.activation_checkpointing {checkpointing}:")
    say(f"{gib['peak']} a device, {gib['checkpoint']} a checkpoint, {gib['host_load']} of a host for each rank's start")
    return 0


def read_config_file(config: Path) -> tuple[TransformerConfig, OptimizerConfig, dict[str, Any]]:
    """Trunk and optimizer of a config of `train.py fit`, and all its values."""
    try:
        values = yaml.safe_load(config.read_text(encoding="utf-8"))
        parser = ArgumentParser(exit_on_error=False)
        parser.add_subclass_arguments(TransformerModule, "model")
        found = parser.instantiate_classes(parser.parse_object({"model": values["model"]}))["model"]
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise ValueError(f"{config} is not a config of a training of the transformer: {error}") from error
    except Exception as error:
        raise ValueError(f"{config}: {' '.join(str(error).split())[:300]}") from error
    return found.trunk or TransformerConfig(), found.optimizer_config or MuonConfig(), values


def settings(base: PlannedSetting) -> list[PlannedSetting]:
    """From what costs least time to what takes least memory; on one device there is nothing to share."""
    layouts = ("ddp", "sharded") if base.ranks > 1 else ("ddp",)
    by_layout = [replace(base, layout=layout) for layout in layouts]
    order = ("none", "selective", "block")
    assert set(order) == set(CHECKPOINTING)
    return [replace(one, activation_checkpointing=kind) for one in by_layout for kind in order]


def estimated(model: ModelConfig, optimizer: OptimizerConfig, setting: PlannedSetting) -> Memory:
    """The estimate for packed documents of an image and its text."""
    batch = packed_text(setting.rows, setting.length, min(DOCUMENT, setting.length), model.vocab_size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return estimate_memory(model, optimizer, setting, batch)


def _row(found: Memory) -> list[str]:
    parts = found.parts
    activations = parts.get("activations", 0) + parts.get("temporaries", 0) + parts.get("other", 0)
    columns = [found.peak, *(parts.get(name, 0) for name in ("parameters", "gradients", "optimizer"))]
    return [f"{size / GIB:.1f}" for size in (*columns, activations, parts.get("collectives", 0))]
