"""Run one task of a model on a source and write its results file: what `unimodal evaluate` does."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from data_pipelines.failures import FailureLog
from data_pipelines.sources.registry import open_source
from unimodal.evaluation.contract import DRAWN, GREEDY, AnyToAnyModel, DocumentSource, Reporter, Sampling, TaskResult
from unimodal.evaluation.dual_encoder import ENCODER_STEPS, cached_dual_encoder
from unimodal.evaluation.dual_scores import CaptionPool
from unimodal.evaluation.judge import STEPS, Judge, cached_judge
from unimodal.evaluation.ranks import rank_and_world
from unimodal.evaluation.results import write_results
from unimodal.evaluation.tasks import caption, edit, reconstruction, t2i, vqa
from unimodal.generation.options import to_words
from unimodal.terminal import open_console, say

JUDGED_SOURCE = "easy_vqa"
"""The source whose captions a judge of colour and shape can check."""

SKIPPED_NAMED = 20
"""Names of items that were not scored, in a results file."""

EDITS = 384
"""How many edits are drawn where no limit is given."""

ANSWER_SCORING = {"easy_vqa": vqa.EASY_VQA, "vqav2": vqa.VQAV2}
"""Sources whose answers are compared in a way of their own."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What to evaluate. None means the task's own choice (`sampling`, `batch_size`) or everything (`limit`).

    `judge_dir` keeps the trained judge of drawings; beside the results file when None.
    """

    task: str
    source: str
    path: Path | None = None
    split: str = "test"
    limit: int | None = None
    sampling: Sampling | None = None
    batch_size: int | None = None
    seeds_per_prompt: int = 16
    judge_dir: Path | None = None
    max_bad: float = 0.1
    source_options: Mapping[str, Any] = field(default_factory=dict)
    choices: tuple[str, ...] | None = None
    """Answers that vqa may give; None leaves the model free."""

    def __post_init__(self) -> None:
        if self.choices is not None and self.task != "vqa":
            raise ValueError(f"choices are answers to questions: they go with task vqa, not with {self.task}")
        if self.task not in TASKS:
            raise ValueError(f"unknown task {self.task!r}; choose one of {', '.join(TASKS)}")
        if self.task == "edit" and self.source != JUDGED_SOURCE:
            raise ValueError(f"the answers to edits are known for {JUDGED_SOURCE} alone, got source {self.source!r}")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"the limit is at least 1, got {self.limit}")
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"the batch size is at least 1, got {self.batch_size}")


def run(model: AnyToAnyModel, config: EvaluationConfig, out: Path, *, quiet: bool = False) -> dict[str, Any]:
    """Evaluate, write the results file `out` and return its content.

    Raises ValueError, in one line, for an unknown source, split or path, and for a source without what the task needs.
    """
    failures = FailureLog(limit=config.max_bad)
    options = _task_options(config) | dict(config.source_options)
    source = open_source(config.source, path=config.path, split=config.split, failures=failures, **options)
    data = {"source": config.source, "split": config.split, "sha256": source.fingerprint(), "limit": config.limit}
    with _bars(quiet) as reporter:
        result = TASKS[config.task](model, source, config, out, reporter)
    data["skipped"] = _skipped(failures)
    described = {"path": str(model.path or ""), "sha256": model.sha256}
    return write_results(result, out, model=described, data=data, command=command(model, config, out))


def _skipped(failures: FailureLog) -> dict[str, Any]:
    """What was not scored: how many, the reasons with their counts, and the first names."""
    named = dict(failures.bad)
    reasons = dict(Counter(named.values()).most_common())
    return {"count": len(named), "reasons": reasons, "first": list(named)[:SKIPPED_NAMED]}


def command(model: AnyToAnyModel, config: EvaluationConfig, out: Path) -> str:
    """What to type for this evaluation."""
    words = ["unimodal", "evaluate", "--model", str(model.path or "MODEL"), "--task", config.task]
    words += ["--source", config.source, "--split", config.split]
    words += ["--path", str(config.path)] if config.path else []
    for name, value in config.source_options.items():
        words += ["--option", f"{name}={value if isinstance(value, str) else json.dumps(value)}"]
    words += ["--limit", str(config.limit)] if config.limit else []
    words += ["--max-bad", str(config.max_bad)] if config.max_bad != EvaluationConfig.max_bad else []
    if config.seeds_per_prompt != EvaluationConfig.seeds_per_prompt:
        words += ["--seeds-per-prompt", str(config.seeds_per_prompt)]
    words += ["--choices", *config.choices] if config.choices else []
    if config.sampling:
        default = TASK_SAMPLING[config.task]
        changed = {name: value for name, value in config.sampling.to_dict().items() if value != getattr(default, name)}
        words += to_words(changed)
    return shlex.join([*words, "--out", str(out)])


def _vqa(
    model: AnyToAnyModel, source: DocumentSource, config: EvaluationConfig, out: Path, reporter: Reporter
) -> TaskResult:
    scoring = ANSWER_SCORING.get(config.source, vqa.AnswerScoring())
    sampling = config.sampling or TASK_SAMPLING["vqa"]
    shared: dict[str, Any] = _shared(config) | {"choices": config.choices}
    return vqa.evaluate(model, source, sampling=sampling, scoring=scoring, reporter=reporter, **shared)


def _caption(
    model: AnyToAnyModel, source: DocumentSource, config: EvaluationConfig, out: Path, reporter: Reporter
) -> TaskResult:
    return caption.evaluate(
        model, source, sampling=config.sampling or TASK_SAMPLING["caption"], reporter=reporter, **_shared(config)
    )


def _t2i(
    model: AnyToAnyModel, source: DocumentSource, config: EvaluationConfig, out: Path, reporter: Reporter
) -> TaskResult:
    return t2i.evaluate(
        model,
        source,
        judge=_judge(source, config, out, reporter),
        sampling=config.sampling or TASK_SAMPLING["t2i"],
        seeds_per_prompt=config.seeds_per_prompt,
        reporter=reporter,
        **_shared(config),
    )


def _reconstruction(
    model: AnyToAnyModel, source: DocumentSource, config: EvaluationConfig, out: Path, reporter: Reporter
) -> TaskResult:
    return reconstruction.evaluate(model, source, reporter=reporter, **_shared(config))


def _edit(
    model: AnyToAnyModel, source: DocumentSource, config: EvaluationConfig, out: Path, reporter: Reporter
) -> TaskResult:
    return edit.evaluate(
        model,
        source,
        judge=cached_judge(judge_folder(config, out), progress=reporter("judge", STEPS)),
        sampling=config.sampling or TASK_SAMPLING["edit"],
        reporter=reporter,
        **(_shared(config) | {"limit": config.limit or EDITS}),
    )


Runner = Callable[[AnyToAnyModel, DocumentSource, EvaluationConfig, Path, Reporter], TaskResult]
TASKS: dict[str, Runner] = {
    "vqa": _vqa,
    "caption": _caption,
    "t2i": _t2i,
    "reconstruction": _reconstruction,
    "edit": _edit,
}
TASK_SAMPLING = {
    "vqa": GREEDY,
    "caption": GREEDY,
    "t2i": DRAWN,
    "reconstruction": GREEDY,
    "edit": DRAWN,
}


def _task_options(config: EvaluationConfig) -> dict[str, Any]:
    """What the task asks of its source. Of the edits some have no known shape, so there are more than are drawn."""
    return {"dialogues": 0, "edits": 2 * (config.limit or EDITS)} if config.task == "edit" else {}


def _shared(config: EvaluationConfig) -> dict[str, Any]:
    """Settings that every task has; absent ones are the task's choice."""
    batch = {} if config.batch_size is None else {"batch_size": config.batch_size}
    return {"limit": config.limit} | batch


def _judge(
    source: DocumentSource, config: EvaluationConfig, out: Path, reporter: Reporter
) -> Judge | t2i.JudgingEncoder | None:
    """Of colour and shape for easy-VQA; for other sources a dual encoder of their training split, if there is one."""
    folder = judge_folder(config, out)
    if config.source == JUDGED_SOURCE:
        return cached_judge(folder, progress=reporter("judge", STEPS))
    try:
        failures, options = FailureLog(limit=1.0), dict(config.source_options)
        trained = open_source(config.source, path=config.path, split="train", failures=failures, **options)
        encoder = cached_dual_encoder(folder, trained, progress=reporter("judge", ENCODER_STEPS))
    except ValueError as error:
        if rank_and_world()[0] == 0:
            say(f"no dual encoder judges these drawings, the model itself does: {error}")
        return None
    held_out = trained.fingerprint() != source.fingerprint()
    return t2i.JudgingEncoder(encoder=encoder, pool=CaptionPool.of(source, trained), held_out=held_out)


def judge_folder(config: EvaluationConfig, out: Path) -> Path:
    """Where the judge of an evaluation lies, whose results go to `out`."""
    return config.judge_dir or out.parent / "judge"


@contextmanager
def _bars(quiet: bool) -> Iterator[Reporter]:
    """A reporter with one progress bar for each thing that is counted."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=open_console(), disable=quiet
    ) as progress:

        def start(description: str, total: int) -> Callable[[int], None]:
            bar = progress.add_task(description, total=total)
            return lambda done: progress.advance(bar, done)

        yield start
