"""`unimodal evaluate`: score a model on a task and write the results file."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich.table import Table

from unimodal.evaluation.contract import Sampling
from unimodal.evaluation.ranks import process_group, rank_and_world, rank_device, shared
from unimodal.evaluation.results import check_results_place
from unimodal.evaluation.run import TASK_SAMPLING, EvaluationConfig, judge_folder
from unimodal.evaluation.run import run as evaluate
from unimodal.generation.options import from_arguments
from unimodal.generation.pipeline import Pipeline, load
from unimodal.terminal import open_console, say


def run(options: argparse.Namespace) -> int:
    """Evaluate and print the metrics."""
    config = EvaluationConfig(
        task=options.task,
        source=options.source,
        path=options.path,
        split=options.split,
        limit=options.limit,
        sampling=_sampling(options),
        max_bad=options.max_bad,
        source_options=dict(options.option),
    )
    if options.seeds_per_prompt is not None:
        config = replace(config, seeds_per_prompt=options.seeds_per_prompt)
    if options.choices is not None:
        config = replace(config, choices=tuple(options.choices))
    rank, world = rank_and_world()
    if rank == 0:
        check_results_place(options.out)
    dtype = getattr(torch, options.dtype) if options.dtype else None
    with process_group():
        model = load(options.model, dtype=dtype, device=rank_device(options.device), drafts=options.drafts)
        if rank:
            _help_out(model, config, options)
            return 0
        results = evaluate(shared(model) if world > 1 else model, config, options.out)
    table = Table("metric", "value", title=f"{options.task}, n = {results['n']:,}, {results['seconds']:.0f} s")
    for name, value in results["metrics"].items():
        table.add_row(name, f"{value:.4f}")
    open_console().print(table)
    if skipped := results["data"]["skipped"]["count"]:
        say(f"{skipped:,} skipped, named under data.skipped")
    say(f"-> {options.out}")
    return 0


def _help_out(model: Pipeline, config: EvaluationConfig, options: argparse.Namespace) -> None:
    """The part of a rank other than the first: its answers are what counts, and its results go nowhere."""
    config = replace(config, judge_dir=judge_folder(config, options.out))
    with TemporaryDirectory() as folder:
        evaluate(shared(model), config, Path(folder) / options.out.name, quiet=True)


def _sampling(options: argparse.Namespace) -> Sampling | None:
    """The task's own sampling with what the command line changes; None where it changes nothing."""
    task = TASK_SAMPLING.get(options.task)
    if task is None:
        return None
    sampling = from_arguments(options, task, **({} if options.seed is None else {"seed": options.seed}))
    return None if sampling == task else sampling
