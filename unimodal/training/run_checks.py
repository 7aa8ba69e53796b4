"""What is wrong with the config of a run before anything is built: counts that are divided by, folders in use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data_pipelines.outputs import check_apart, check_folder
from tokenizers_vq.bundle_files import AUTOENCODER, IMAGE_TOKENIZER, TEXT_TOKENIZER
from tokenizers_vq.token_space import TOKEN_SPACE_FILE
from unimodal.training.callbacks.bundle import LAST
from unimodal.training.callbacks.held_out import BEST
from unimodal.training.precision import check_precision

ABOVE_ZERO = ("val_check_interval", "accumulate_grad_batches", "log_every_n_steps", "check_val_every_n_epoch")
STRATEGIES = ("auto", "sharded")
READ = ("path", "tokenizers", "bundle", "vision", "codebook")
"""Settings that name a folder or file that is read."""
WEIGHTS = {"config.json", "model.safetensors"}
BUNDLE = {*WEIGHTS, TOKEN_SPACE_FILE, TEXT_TOKENIZER, IMAGE_TOKENIZER, AUTOENCODER}
"""Names that a training writes."""


def check_run(config: Any) -> None:
    """Raise ValueError, in one line, for a run that cannot be made or would overwrite what it reads.

    `config`: sections `trainer`, `model`, `data` and `bundle`, as LightningCLI parses them.
    """
    values: Mapping[str, Any] = config.as_dict() if hasattr(config, "as_dict") else config
    trainer = values["trainer"]
    for name in ABOVE_ZERO:
        value = trainer.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and value <= 0:
            raise ValueError(f"trainer.{name} is above 0, got {value}")
    name = str((values.get("model") or {}).get("class_path", ""))
    check_precision(trainer.get("precision"), trainer.get("accelerator"), name)
    _check_strategy(trainer.get("strategy", "auto"), name)
    _check_background(values)
    start = ((values.get("model") or {}).get("init_args") or {}).get("start") or {}
    if name.endswith("PolicyModule") and start.get("trainable_rows", "all") != "all":
        raise ValueError("start.trainable_rows is for training on data; in reinforcement learning all rows move")
    if start.get("lora"):
        _check_adapters(trainer.get("strategy"), name)
    _check_average(values, name)
    root = Path(trainer["default_root_dir"])
    check_folder(root)
    read = [Path(path) for path in _folders_read({name: values.get(name) for name in ("model", "data")})]
    model = values.get("model") or {}
    out = (model.get("init_args") or {}).get("out")
    bundle = (values.get("bundle") or {}).get("out") or root / "model"
    _check_place(Path(bundle if out is None else out), BUNDLE if out is None else WEIGHTS, read)
    if out is None:
        for kept in (BEST, LAST):
            _check_place(root / kept, BUNDLE, read)


def _check_strategy(strategy: Any, model: str) -> None:
    """One device, DDP or our own sharding: under others ranks would train apart, each with a model of its own."""
    name = strategy.get("class_path", "") if isinstance(strategy, Mapping) else str(strategy or "auto")
    known = name.rpartition(".")[2] in (*STRATEGIES, "DDPStrategy", "SingleDeviceStrategy", "ShardedStrategy")
    if not known and not name.startswith("ddp"):
        raise ValueError(f"trainer.strategy: training runs on one device, under ddp or sharded, not under {name}")
    if name.endswith(("sharded", "ShardedStrategy")) and not model.endswith(("TransformerModule", "PolicyModule")):
        raise ValueError("trainer.strategy: sharded is for the transformer; image tokenizers train under ddp")


def _check_background(values: Mapping[str, Any]) -> None:
    """Only a sharded run writes in the background, and a link would name a checkpoint that is not there yet."""
    parallel = ((values.get("model") or {}).get("init_args") or {}).get("parallel") or {}
    if not parallel.get("async_checkpoints"):
        return
    strategy = values["trainer"].get("strategy")
    name = strategy.get("class_path", "") if isinstance(strategy, Mapping) else str(strategy)
    if not name.endswith(("sharded", "ShardedStrategy")):
        raise ValueError(
            "parallel.async_checkpoints is for trainer.strategy sharded: other checkpoints are written at once"
        )
    if (values.get("checkpoint") or {}).get("save_last") == "link":
        raise ValueError("parallel.async_checkpoints writes checkpoint.save_last itself: set it to true, not to link")


def _check_adapters(strategy: Any, model: str) -> None:
    kind = strategy.get("class_path", "") if isinstance(strategy, Mapping) else str(strategy)
    if model.endswith("PolicyModule"):
        raise ValueError("start.lora is for training on data: an engine decodes without adapters")
    if kind.endswith(("sharded", "ShardedStrategy")):
        raise ValueError("start.lora is for one device or ddp: sharded weights take no adapters yet")


def _check_average(values: Mapping[str, Any], model: str) -> None:
    """An average is of a transformer's float32 weights that learn from data."""
    if not (values.get("ema") or {}).get("decay"):
        return
    if not model.endswith("TransformerModule"):
        raise ValueError("ema.decay is for training the transformer on data: leave it at 0")
    precision = str(values["trainer"].get("precision"))
    if precision.endswith("-true") and not precision.startswith(("32", "64")):
        raise ValueError(f"ema.decay: an average of {precision} weights would not move; train with bf16-mixed")


def _check_place(place: Path, writes: set[str], read: list[Path]) -> None:
    """A place for weights is free, or holds what an earlier run wrote, whole or not."""
    check_folder(place)
    check_apart(place, read)
    names = {path.name for path in place.iterdir()} if place.exists() else set()
    foreign = sorted(names - writes)
    if not foreign and TOKEN_SPACE_FILE in writes and names == WEIGHTS:
        foreign = ["a model without a token space"]
    if foreign:
        raise ValueError(f"{place} holds other things than an earlier result, {foreign[0]} first: give another folder")


def _folders_read(value: Any, name: str = "") -> Iterator[str]:
    """Every path under a setting of READ, and every folder of shards on this machine."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from _folders_read(each, str(key))
    elif isinstance(value, list) and name == "shards":
        yield from (str(each) for each in value if "://" not in str(each))
    elif name in READ and isinstance(value, str | Path):
        yield str(value)
