"""Curricula: named stages, each a run of `fit` that starts from the bundle of the one before.

    curriculum:
      root: runs/two_stages
      shared: {trainer.gradient_clip_val: 1.0}
      stages:
        - {name: alignment, configs: [../run/easy_vqa_vit.yaml], settings: {trainer.max_steps: 500}}
        - {name: joint, configs: [../run/easy_vqa_vit.yaml], tokens: 2000000}

A stage has the settings of `fit`: data mixture, sequence length, what is trained (`model.start.trainable`), learning
rates by group (`model.optimizer.rates`), steps or tokens. Weights are carried over; optimizer, schedule and random
numbers begin anew. A stage that has ended is not trained again, one that was interrupted resumes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tokenizers_vq.field_types import from_plain
from unimodal.terminal import say

BUNDLE, FINISHED, CHECKPOINTS = "model", "finished.json", "checkpoints"
"""In the folder of a stage."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """`configs` are files beside the curriculum's, `settings` what they do not say or say otherwise, by dotted names.

    `tokens`, where given, sets the number of steps: so many tokens of packed rows on all ranks.
    """

    name: str
    configs: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    tokens: int | None = None

    def __post_init__(self) -> None:
        if not self.name or not all(letter.isalnum() or letter in "-_" for letter in self.name):
            raise ValueError(f"a stage has a name of letters, digits, - and _, got {self.name!r}")
        if self.tokens is not None and (self.tokens < 1 or "trainer.max_steps" in self.settings):
            raise ValueError(f"stage {self.name}: give a number of tokens or trainer.max_steps, not both")


@dataclass(frozen=True, kw_only=True)
class Curriculum:
    """Stages in their order; `shared` settings are those of every stage, under its own."""

    path: Path
    root: Path
    stages: tuple[Stage, ...]
    shared: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [stage.name for stage in self.stages]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"{self.path}: a curriculum has stages, each with a name of its own; there are {names}")

    def folder(self, number: int) -> Path:
        """Of stage `number`, counted from 0."""
        return self.root / f"{number + 1}-{self.stages[number].name}"

    def arguments(self, number: int, more: Sequence[str] = ()) -> list[str]:
        """The command line of a stage; `more` stands after its own settings."""
        stage, folder = self.stages[number], self.folder(number)
        settings = {**self.shared, **stage.settings}
        configs = [f"--config={self.path.parent / config}" for config in stage.configs]
        given = [f"--{name}={_inline(value)}" for name, value in settings.items()]
        given += [f"--trainer.default_root_dir={folder}", f"--bundle.out={folder / BUNDLE}"]
        if number:
            given.append(f"--model.start.bundle={self.folder(number - 1) / BUNDLE}")
        return ["fit", *configs, *given, *more]


def read_curriculum(path: Path) -> Curriculum | None:
    """What a config file says; None where it is of a single run. Raises ValueError for one that makes no sense."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        return None  # whoever parses it will say what is wrong
    if not isinstance(values, dict) or "curriculum" not in values:
        return None
    if strange := set(values) - {"curriculum"}:
        raise ValueError(f"{path}: {min(strange)} belongs into `shared` or a stage of the curriculum")
    try:
        given = dict(values["curriculum"])
        stages = tuple(
            from_plain(Stage, {**stage, "configs": tuple(stage.get("configs", ()))}) for stage in given.pop("stages")
        )
        root = Path(given.pop("root", Path("runs") / path.stem))
        return Curriculum(path=path, root=root, stages=stages, **given)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is no curriculum: {error}") from error


@dataclass(frozen=True)
class StageRunner:
    """What trains and checks a stage, by its command line."""

    fit: Callable[[list[str]], Any]
    check: Callable[[list[str], Any], tuple[Any, int]]
    """Arguments, and what the stage before gave -> the same of this one, and its tokens a step."""


def run_curriculum(curriculum: Curriculum, more: Sequence[str], runner: StageRunner) -> None:
    """Check all stages, then train those that have not ended. Raises ValueError before anything is loaded."""
    known: Any = None
    planned: list[list[str]] = []
    for number, stage in enumerate(curriculum.stages):
        arguments = curriculum.arguments(number, more)
        try:
            known, a_step = runner.check(arguments, known)
        except ValueError as error:
            raise ValueError(f"stage {stage.name}: {error}") from error
        steps = [] if stage.tokens is None else [f"--trainer.max_steps={-(-stage.tokens // a_step)}"]
        planned.append([*arguments, *steps])
        _check_finished(curriculum, number, planned[-1])
    for number, arguments in enumerate(planned):
        folder, name = curriculum.folder(number), f"stage {number + 1}/{len(planned)}, {curriculum.stages[number].name}"
        if (folder / FINISHED).is_file():
            say(f"{name}: done before, {folder / BUNDLE}")
            continue
        resumes = ["--ckpt_path=last"] if any((folder / CHECKPOINTS).glob("*.ckpt")) else []
        say(f"{name}: {'resumes' if resumes else 'begins'} in {folder}")
        runner.fit([*arguments, *resumes])
        if not (folder / BUNDLE).is_dir():
            raise ValueError(f"{name} ended without a bundle: the stages after it have nothing to start from")
        (folder / FINISHED).write_text(json.dumps({"arguments": arguments}, indent=2))


def _check_finished(curriculum: Curriculum, number: int, arguments: Sequence[str]) -> None:
    """A stage that ended under other settings is not taken for this one."""
    file = curriculum.folder(number) / FINISHED
    if not file.is_file():
        return
    before = json.loads(file.read_text())["arguments"]
    if before != list(arguments):
        changed = next((new for new in arguments if new not in before), "") or next(
            old for old in before if old not in arguments
        )
        raise ValueError(
            f"stage {curriculum.stages[number].name} ended under other settings than {changed}: take another root, or "
            f"remove {file.parent} and the stages after it"
        )


def _inline(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
