"""The tour: its steps, in order, for a recipe, and running them.

Two branches draw: `discrete`, code by code, and `flow`, latents by flow matching; with the latter the model edits too.
"""

from __future__ import annotations

import json
import shlex
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from PIL import Image

from data_pipelines.outputs import check_folder
from unimodal.demo.machine import (
    BRANCHES,
    DemoBranch,
    Machine,
    Recipe,
    decoder_steps_left,
    estimate,
    fitted_to,
    measure,
    recipe_for,
    tokenizer_pace,
)
from unimodal.generation.pipeline import Pipeline, load
from unimodal.generation.prompts import Answer, Turn
from unimodal.report import write_report
from unimodal.terminal import open_console, say

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FOLDERS = ("tokenizer", "autoencoder", "shards", "training", "model", "results", "logs", "dialogue")
DOCUMENTS: dict[DemoBranch, dict[str, int]] = {
    "discrete": {"dialogues": 400, "shape_questions": 4},
    "flow": {"dialogues": 100, "edits": 400, "shape_questions": 4},
}
"""Beside 4,000 pictures with captions and questions. Dialogues are enough to learn the form of one: half as many as
pictures, the source's own choice, took 41% of all tokens. Edits are recoloured pictures. The data set has few yes-or-no
questions about shapes, and without more of them these are not learnt in the time there is (docs/log.md)."""
TASKS = {
    "discrete": ("vqa", "caption", "t2i", "reconstruction"),
    "flow": ("vqa", "caption", "t2i", "edit", "reconstruction"),
}
GUIDANCE = ("--guidance", "3")
"""Of drawings that are scored: colours and shapes gain from 3 beside the task's own 2 (docs/log.md)."""
TOKENIZER, DECODER = "train the image tokenizer", "train the decoder"
Program = Callable[[Sequence[str]], object]
"""Runs arguments; gives an exit code, None or 0 when all went well."""

MODEL = "model"
"""The folder of the bundle."""
TIMINGS = "timings.json"
"""There from the first moment on: it tells a demo's folder from another."""
FILES = (TIMINGS, "dialogue.json", "report.html")

REQUESTS: tuple[tuple[str, float], ...] = (
    ("draw a red circle and describe it", 1.0),
    ("what color is the shape?", 0.0),
    ("draw a teal triangle", 1.0),
    ("draw a blue rectangle and say what it is", 1.0),
)
"""What the user of the dialogue says, and the temperature of the answer."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """A command of the tour: `train.py` or `unimodal`, and its arguments."""

    title: str
    program: str
    arguments: tuple[str, ...]

    @property
    def command(self) -> str:
        """As a user would type it."""
        prefix = ["python", "train.py"] if self.program == "train.py" else [self.program]
        return shlex.join([*prefix, *self.arguments])


def demo_plan(out: Path, recipe: Recipe, *, quick: bool = False) -> list[Step]:
    """The commands of the tour, in order; `quick` does a few steps and items of each."""
    branch, model, flow = recipe.branch, str(out / "model"), recipe.branch == "flow"
    training = [(TOKENIZER, "train.py", _tokenizer_arguments(out, recipe, quick))]
    training += [("train the autoencoder", "train.py", _autoencoder_arguments(out, recipe, quick))] if flow else []
    training += [("tokenize the documents", "unimodal", _tokenize_arguments(out, quick, flow))]
    training += [(DECODER, "train.py", decoder_arguments(out, recipe, quick))]
    steps = [Step(title=title, program=program, arguments=arguments) for title, program, arguments in training]
    drawing = (*GUIDANCE, *(("--seeds-per-prompt", "1") if quick else ()))
    for task in TASKS[branch]:
        arguments = ("evaluate", "--model", model, "--task", task, "--source", "easy_vqa", "--split", "test")
        arguments += ("--out", str(out / "results" / f"{task}.json"), *(drawing if task == "t2i" else ()))
        arguments += ("--limit", "8") if quick else ()
        steps.append(Step(title=f"evaluate {task}", program="unimodal", arguments=arguments))
    return steps


def run(
    out: Path,
    programs: Mapping[str, Program],
    *,
    quick: bool = False,
    branch: str = "discrete",
    minutes: float | None = None,
) -> Path:
    """Run the tour into `out` and return the report page.

    `programs` runs the arguments of `train.py` and of `unimodal` in this process and gives their exit codes. With
    `minutes` the trainings do as many steps as fit. Raises ValueError for a branch that there is not, for a time that
    is too short, and where a step fails.
    """
    console, began, machine = open_console(), time.perf_counter(), measure()
    recipe = _recipe(branch, machine, minutes, quick)
    _clear(out)
    timings: list[dict[str, object]] = []

    def timed(title: str, command: str, action: Callable[[], object]) -> None:
        console.rule(title, style="bold")
        say(f"$ {command}")
        started = time.perf_counter()
        if action():
            raise ValueError(f"the step {title!r} failed: {command}")
        timings.append({"step": title, "seconds": time.perf_counter() - started, "command": command})
        (out / TIMINGS).write_text(json.dumps(timings, indent=2))

    for step in demo_plan(out, recipe, quick=quick):
        if step.title == DECODER and minutes is not None and not quick:
            pace = tokenizer_pace(recipe, machine, float(str(timings[0]["seconds"])))
            left = 60 * minutes - (time.perf_counter() - began)
            recipe = replace(recipe, decoder_steps=decoder_steps_left(recipe, machine, left, pace))
            step = replace(step, arguments=decoder_arguments(out, recipe, quick))
        timed(step.title, step.command, lambda step=step: programs[step.program](step.arguments))
    _keep_logs(out)
    timed("a mixed dialogue", "unimodal.load(...).generate(...)", lambda: write_dialogue(load(out / "model"), out))
    page = write_report(out)
    total = sum(float(str(timing["seconds"])) for timing in timings)
    console.rule("done", style="bold")
    say(f"{total / 60:.1f} minutes in all. Open {page}")
    return page


def _recipe(branch: str, machine: Machine, minutes: float | None, quick: bool) -> Recipe:
    """The recipe for this machine and time; says what it is, what it takes and what it reaches."""
    if branch not in BRANCHES:
        raise ValueError(f"the branch is one of {', '.join(BRANCHES)}, got {branch!r}")
    known = cast("DemoBranch", branch)
    recipe = recipe_for(known, machine)
    say(f"this machine: {machine}")
    if quick:
        return recipe
    takes = estimate(recipe, machine) / 60
    if minutes is not None:
        recipe = fitted_to(recipe, machine, minutes)
    reaches = f", which reaches about {recipe.expected}" if recipe.expected else ""
    if not reaches:
        share = recipe.decoder_steps / recipe_for(known, machine).decoder_steps
        say(f"all of the demo would take about {takes:.0f} minutes, {recipe_for(known, machine).expected}")
        reaches = f", {share:.0%} of that: scores and pictures are worse"
    minutes_taken = estimate(recipe, machine) / 60
    say(f"about {minutes_taken:.0f} minutes: {recipe.decoder_steps:,} steps of the decoder{reaches}")
    return recipe


def write_dialogue(model: Pipeline, out: Path) -> None:
    """Talk with the model, which attends to all words and images before; writes dialogue.json and its pictures."""
    folder = out / "dialogue"
    folder.mkdir(parents=True, exist_ok=True)
    dialogue: list[Turn] = []
    turns: list[dict[str, object]] = []
    for number, (request, temperature) in enumerate(REQUESTS):
        prompt = _recent(model, [*dialogue, request])
        answer = model.generate([prompt], mode="mixed", temperature=temperature, seed=number)[0]
        dialogue += [request, list(answer)]
        turns.append({"role": "user", "parts": [{"text": request}]})
        turns.append({"role": "model", "parts": _saved(answer, folder, number)})
    (out / "dialogue.json").write_text(json.dumps(turns, indent=2))


def _recent(model: Pipeline, turns: list[Turn]) -> list[Turn]:
    """The last turns, whole exchanges, that leave tokens for an answer with a picture."""
    token_budget = model.model.config.trunk.max_length - model.token_space.layout.span - 32
    while len(turns) > 1 and len(model.coder.encode([turns])[0]) > token_budget:
        turns = turns[2:]
    return turns


def _saved(answer: Answer, folder: Path, number: int) -> list[dict[str, str]]:
    parts = []
    for index, part in enumerate(answer):
        if isinstance(part, Image.Image):
            name = f"{number}-{index}.png"
            part.save(folder / name)
            parts.append({"image": f"{folder.name}/{name}"})
        else:
            parts.append({"text": part})
    return parts


def _tokenizer_arguments(out: Path, recipe: Recipe, quick: bool) -> tuple[str, ...]:
    arguments = ("fit", "--config", str(config_path("tokenizer/demo.yaml")))
    arguments += ("--trainer.default_root_dir", str(out / "tokenizer"))
    arguments += ("--model.init_args.out", str(out / "tokenizer" / "image_tokenizer"))
    arguments += ("--model.init_args.backbone.init_args.depth", str(recipe.tokenizer_depth))
    return arguments + _steps(recipe.tokenizer_steps, 3, quick)


def _steps(count: int, validations: int, quick: bool) -> tuple[str, ...]:
    """On one device, once, however many there are; `validations` times on the way."""
    count = 4 if quick else count
    interval = str(count if quick else max(count // validations, 1))
    return ("--trainer.devices", "1", "--trainer.max_steps", str(count), "--trainer.val_check_interval", interval)


def _autoencoder_arguments(out: Path, recipe: Recipe, quick: bool) -> tuple[str, ...]:
    arguments = ("fit", "--config", str(config_path("tokenizer/easy_vqa_kl.yaml")))
    arguments += ("--trainer.default_root_dir", str(out / "autoencoder"))
    arguments += ("--model.init_args.out", str(out / "autoencoder" / "image_autoencoder"))
    return arguments + _steps(recipe.autoencoder_steps, 3, quick)


def _tokenize_arguments(out: Path, quick: bool, flow: bool) -> tuple[str, ...]:
    arguments: tuple[str, ...] = ("tokenize", "--source", "easy_vqa", "--split", "train")
    for name, count in DOCUMENTS["flow" if flow else "discrete"].items():
        arguments += ("--option", f"{name}={count}")
    arguments += ("--image-tokenizer", str(out / "tokenizer" / "image_tokenizer"), "--out", str(out / "shards"))
    arguments += ("--autoencoder", str(out / "autoencoder" / "image_autoencoder")) if flow else ()
    return arguments if quick else (*arguments, "--copies", "4", "--augment", "flip,place")


def decoder_arguments(out: Path, recipe: Recipe, quick: bool) -> tuple[str, ...]:
    """Of `train.py`, for the decoder."""
    name = "run/easy_vqa_flow.yaml" if recipe.branch == "flow" else "run/demo.yaml"
    arguments = ("fit", "--config", str(config_path(name)))
    arguments += ("--trainer.default_root_dir", str(out / "training"), "--bundle.out", str(out / "model"))
    arguments += ("--data.init_args.shards", f"[{out / 'shards'}]")
    arguments += ("--model.init_args.compile", "false") if quick else ()
    return arguments + _steps(recipe.decoder_steps, 2, quick)


def config_path(name: str) -> Path:
    """Of a config of this repository. Raises ValueError where it is not there."""
    path = CONFIGS / name
    if not path.is_file():
        raise ValueError(f"{path} is missing: run the demo from a clone of the repository (make demo)")
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _clear(out: Path) -> None:
    """Remove what an earlier demo left, and nothing else. Raises ValueError for a folder that is not a demo's."""
    check_folder(out)
    found = [name for name in (*FOLDERS, *FILES) if (out / name).exists()]
    if found and not (out / TIMINGS).is_file():
        raise ValueError(f"{out} holds {found[0]}, which no demo made: give another folder")
    for name in FOLDERS:
        shutil.rmtree(out / name, ignore_errors=True)
    for name in FILES:
        (out / name).unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    (out / TIMINGS).write_text("[]")


def _keep_logs(out: Path) -> None:
    """Curves where the report reads them."""
    for name, folder in (("tokenizer", "tokenizer"), ("model", "training")):
        logs: Sequence[Path] = sorted((out / folder / "logs").glob("version_*/metrics.csv"))
        (out / "logs" / name).mkdir(parents=True, exist_ok=True)
        for log in logs:
            shutil.copy(log, out / "logs" / name / f"{'metrics' if log == logs[-1] else log.parent.name}.csv")
