"""Reinforcement learning on the demo's model: drawings before, the run, drawings, answers and captions after."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

from unimodal.demo.tour import MODEL, Program, Step, config_path, run
from unimodal.report import write_report
from unimodal.report.page import PAGE_FILE
from unimodal.terminal import open_console, say

RL_FOLDER = "rl"
"""In the demo's folder; everything of the run is in it, and a page of its own."""
RL_CONFIGS = {"discrete": "rl/demo.yaml", "flow": "rl/flow.yaml"}
"""Of the run, by the branch that draws."""
WITHOUT_GUIDANCE = ("--guidance", "1")


def run_with_rl(
    out: Path,
    programs: Mapping[str, Program],
    *,
    quick: bool = False,
    branch: str = "discrete",
    minutes: float | None = None,
) -> Path:
    """The tour, unless it has been made in `out` already, and then `reinforce`. Raises ValueError as both do."""
    if branch not in RL_CONFIGS:
        raise ValueError(f"the branch is one of {', '.join(RL_CONFIGS)}, got {branch!r}")
    if not (out / PAGE_FILE).is_file():
        run(out, programs, quick=quick, branch=branch, minutes=minutes)
    return reinforce(out, programs, quick=quick, branch=branch)


def reinforce(out: Path, programs: Mapping[str, Program], *, quick: bool = False, branch: str = "discrete") -> Path:
    """Continue the model of the demo in `out`; returns the page. Raises ValueError where a step fails."""
    console, folder = open_console(), out / RL_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    timings: list[dict[str, object]] = []
    for step in reinforcement_plan(out, quick=quick, branch=branch):
        console.rule(step.title, style="bold")
        say(f"$ {step.command}")
        started = time.perf_counter()
        if programs[step.program](step.arguments):
            raise ValueError(f"the step {step.title!r} failed: {step.command}")
        timings.append({"step": step.title, "seconds": time.perf_counter() - started, "command": step.command})
    (folder / "timings.json").write_text(json.dumps(timings, indent=2))
    page = write_report(folder)
    console.rule("done", style="bold")
    say(f"{sum(float(str(each['seconds'])) for each in timings) / 60:.1f} minutes of reinforcement. Open {page}")
    return page


def reinforcement_plan(out: Path, *, quick: bool = False, branch: str = "discrete") -> list[Step]:
    """The commands, in order; `quick` does a few steps and items of each."""
    before, after = out / MODEL, out / RL_FOLDER / MODEL
    training = ("fit", "--config", str(config_path(RL_CONFIGS[branch])), "--data.init_args.bundle", str(before))
    training += ("--trainer.default_root_dir", str(out / RL_FOLDER), "--trainer.devices", "1")
    for reward, judge in (("drawn", "reward_judge"), ("judged", "results/judge")):
        training += (f"--model.init_args.rewards.{reward}.init_args.folder", str(out / judge))
    if quick:
        training += (
            "--trainer.max_steps",
            "1",
            "--trainer.limit_val_batches",
            "0",
            "--model.init_args.compile",
            "false",
        )
    steps = [_evaluation(out, "drawings before, without guidance", before, "t2i", "before", WITHOUT_GUIDANCE, quick)]
    steps.append(Step(title="reinforcement learning", program="train.py", arguments=training))
    steps.append(_evaluation(out, "drawings after, without guidance", after, "t2i", "after", WITHOUT_GUIDANCE, quick))
    for task in ("vqa", "caption"):
        steps.append(_evaluation(out, f"{task} after", after, task, "after", (), quick))
    return steps


def _evaluation(
    out: Path, title: str, model: Path, task: str, name: str, options: tuple[str, ...], quick: bool
) -> Step:
    arguments = ("evaluate", "--model", str(model), "--task", task, "--source", "easy_vqa", "--split", "test")
    arguments += ("--out", str(out / RL_FOLDER / "results" / f"{name}_{task}.json"), *options)
    if quick:
        arguments += ("--limit", "8", *(("--seeds-per-prompt", "1") if task == "t2i" else ()))
    return Step(title=title, program="unimodal", arguments=arguments)
