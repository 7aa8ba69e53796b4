"""`python train.py fit|validate|test|predict`: LightningCLI with the defaults that this project's runs share."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
import torch
import yaml
from jsonargparse import set_parsing_settings
from lightning.fabric.plugins import CheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException

from data_pipelines import datamodule as _datamodules
from data_pipelines import raw as _raw
from tokenizers_vq import autoencoder_module as _autoencoder_module
from tokenizers_vq import module as _tokenizer_module
from unimodal.devices import flush_denormals
from unimodal.model.config import ModelConfig
from unimodal.terminal import say
from unimodal.training import module as _transformer_module
from unimodal.training import predicting as _predicting
from unimodal.training.callbacks.averaging import ExponentialAverage
from unimodal.training.callbacks.balance import ModalityBalance
from unimodal.training.callbacks.bundle import BundleWriter
from unimodal.training.callbacks.ceiling import Ceiling
from unimodal.training.callbacks.held_out import HeldOut
from unimodal.training.callbacks.monitors import Monitors
from unimodal.training.callbacks.parameters import ParameterTable
from unimodal.training.callbacks.pictures import ReconstructionPictures, Samples
from unimodal.training.callbacks.progress import StepProgress
from unimodal.training.callbacks.settings import HoldSettings
from unimodal.training.callbacks.sources import SourceTable
from unimodal.training.callbacks.stopping import CheckpointOnSigterm
from unimodal.training.callbacks.throughput import Throughput
from unimodal.training.checkpointing import AtomicCheckpointIO
from unimodal.training.continued import changed_settings, changes_line, config_before
from unimodal.training.curriculum import StageRunner, run_curriculum
from unimodal.training.heap import keep_freed_memory
from unimodal.training.objectives import balance as _balance
from unimodal.training.objectives import flow_matching as _flow_matching
from unimodal.training.objectives import multi_token as _multi_token
from unimodal.training.objectives import next_token as _next_token
from unimodal.training.old_names import upgrade_arguments, upgrade_run_config
from unimodal.training.parallel.checkpoint import restore_interrupted
from unimodal.training.precision import trainer_precision
from unimodal.training.quiet import quieten
from unimodal.training.rl.known import RL_BASES, RL_CLASSES
from unimodal.training.rl.samples import RolloutSamples
from unimodal.training.run_checks import check_run
from unimodal.training.skipped import Diverged
from unimodal.training.stages import check_stage, curriculum_of

KNOWN_CLASSES = (
    _datamodules,
    _raw,
    _tokenizer_module,
    _autoencoder_module,
    _transformer_module,
    _predicting,
    _next_token,
    _flow_matching,
    _multi_token,
    _balance,
    RL_CLASSES,
)
"""Imported so that configs may name their classes without a path."""

DIVERGED = 3
"""Exit code of a run that ended because its gradients were no longer finite."""

USER_ERRORS = (ValueError, OSError, FloatingPointError, MisconfigurationException)
"""What a user can mend: settings, files, a run that diverged."""


class OneLineParser(LightningArgumentParser):
    """A mistake is answered with one line and exit code 2."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        del ex
        lines = [line.strip(" -") for line in str(message).splitlines() if line.strip()]
        print(f"train.py: {' '.join(lines)[:600]}", file=sys.stderr)
        raise SystemExit(2)

    def parse_string(self, content: str, *arguments: Any, **settings: Any) -> Any:
        """A config in the words of an earlier version is read in today's (old_names.py)."""
        try:
            values = yaml.safe_load(content)
        except yaml.YAMLError:
            return super().parse_string(content, *arguments, **settings)
        upgraded = upgrade_run_config(values)
        content = content if upgraded == values else yaml.safe_dump(upgraded, sort_keys=False)
        return super().parse_string(content, *arguments, **settings)


class FitConfig(SaveConfigCallback):
    """Keeps the config of what trains; other commands leave nothing behind but what they were asked for."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Write the config before the first step; say what a resumed run changes."""
        if stage != "fit":
            return
        asks = trainer.is_global_zero and self.config.get("ckpt_path")
        before = config_before(Path(trainer.default_root_dir)) if asks else None
        super().setup(trainer, pl_module, stage)
        if before is None:
            return
        now = yaml.safe_load(self.parser.dump(self.config, skip_none=False))
        if changes := list(changed_settings(before, now)):
            say(changes_line(changes))


class TrainingCLI(LightningCLI):
    """Adds checkpoints, logs, samples and the bundle; everything can be changed in the config."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Sections `checkpoint`, `samples`, `bundle`, `throughput`, `held_out`, `monitors` and `ema` of a config."""
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.add_lightning_class_args(Samples, "samples")
        parser.add_lightning_class_args(BundleWriter, "bundle")
        parser.add_lightning_class_args(Throughput, "throughput")
        parser.add_lightning_class_args(HeldOut, "held_out")
        parser.add_lightning_class_args(Monitors, "monitors")
        parser.add_lightning_class_args(ExponentialAverage, "ema")
        parser.set_defaults({"checkpoint.every_n_train_steps": 500, "checkpoint.save_last": True})
        parser.set_defaults({"checkpoint.save_top_k": 0})

    def _parse_ckpt_path(self) -> None:
        """Nothing: the config alone says what is built, and only AtomicCheckpointIO opens a checkpoint."""

    def before_instantiate_classes(self) -> None:
        """Checkpoints lie in the run's folder, where `--ckpt_path last` finds them; precision is what is fast here."""
        config = self.config[self.subcommand] if self.subcommand else self.config
        root = Path(config.trainer.default_root_dir or "runs/unnamed")
        config.trainer.default_root_dir = str(root)
        if config.checkpoint.dirpath is None:
            config.checkpoint.dirpath = str(root / "checkpoints")
        if config.trainer.precision is None:
            config.trainer.precision = trainer_precision(config.trainer.accelerator)
        if self.subcommand == "fit":
            check_run(config)
            restore_interrupted(Path(config.checkpoint.dirpath))

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """A trainer with this project's loggers, progress and checkpoint format."""
        config = self._get(self.config_init, "trainer")
        if self.subcommand == "predict":
            kwargs["logger"] = False
        elif config.get("logger") in (None, True):
            csv = CSVLogger(config["default_root_dir"], name="logs")
            board = TensorBoardLogger(config["default_root_dir"], name="logs", version=csv.version)
            kwargs["logger"] = [csv, board]
        given = config.get("plugins") or []
        given = given if isinstance(given, list) else [given]
        atomic = [] if any(isinstance(plugin, CheckpointIO) for plugin in given) else [AtomicCheckpointIO()]
        config["plugins"] = [*given, *atomic]
        config["callbacks"] = [
            *(config.get("callbacks") or []),
            CheckpointOnSigterm(),
            HoldSettings(),
            StepProgress(),
            SourceTable(),
            ModalityBalance(),
            ParameterTable(),
            ReconstructionPictures(),
            Ceiling(),
            RolloutSamples(),
        ]
        return super().instantiate_trainer(**kwargs)


def run(arguments: Sequence[str] | None = None, *, build_only: bool = False) -> TrainingCLI:
    """Run a training command in this process, or only build what its `fit` would train."""
    quieten()
    torch.set_float32_matmul_precision("high")
    keep_freed_memory()
    flush_denormals()
    set_parsing_settings(subclasses_enabled=list(RL_BASES))
    if arguments is None:
        sys.argv[1:] = upgrade_arguments(sys.argv[1:])
    given = None if arguments is None else upgrade_arguments(arguments)
    return TrainingCLI(
        run=not build_only,
        args=given[1:] if given and build_only else given,
        subclass_mode_model=True,
        subclass_mode_data=True,
        save_config_kwargs={"overwrite": True},
        save_config_callback=FitConfig,
        parser_class=OneLineParser,
        trainer_defaults={"use_distributed_sampler": False, "enable_model_summary": False, "log_every_n_steps": 10},
        auto_configure_optimizers=False,
        seed_everything_default=0,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """As `run`; what a user did wrong becomes one line on stderr and exit code 2.

    A run that diverged gives 3. SIGTERM gives 143, as for any program that it stops; Lightning would end as if all
    were done.
    """
    try:
        given = list(sys.argv[1:] if arguments is None else arguments)
        curriculum, more = curriculum_of(given)
        if curriculum is None:
            run(arguments)
        else:
            run_curriculum(curriculum, more, StageRunner(run, _check))
    except SIGTERMException:
        print("train.py: stopped by SIGTERM; --ckpt_path last resumes from the last checkpoint", file=sys.stderr)
        raise SystemExit(128 + signal.SIGTERM) from None
    except Diverged as error:
        print(f"train.py: {error}", file=sys.stderr)
        raise SystemExit(DIVERGED) from None
    except USER_ERRORS as error:
        print(f"train.py: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None


def _check(arguments: list[str], before: ModelConfig | None) -> tuple[ModelConfig | None, int]:
    return check_stage(run(arguments, build_only=True), before)
