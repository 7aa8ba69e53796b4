"""The demo on any machine: a recipe that fits it, a time that is kept, one device, and figures that are printed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from unimodal.demo import reinforce, tour
from unimodal.demo.machine import (
    BRANCHES,
    FEWEST,
    FULL,
    LEAN,
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
from unimodal.demo.reinforce import reinforcement_plan

FAST = Machine(device="cpu", cores=2, dtype=torch.bfloat16, rate=410)
SLOW = Machine(device="cpu", cores=2, dtype=torch.float32, rate=100)
GPU = Machine(device="cuda", cores=8, dtype=torch.bfloat16, rate=100_000)


def option(arguments: tuple[str, ...], name: str) -> str:
    return arguments[arguments.index(name) + 1]


def test_measuring_takes_about_a_second_and_finds_a_rate() -> None:
    machine = measure(0.05)
    assert machine.rate > 1 and machine.cores >= 1 and "GFLOP/s" in str(machine)


def test_a_machine_without_bfloat16_units_takes_the_lean_recipe_within_25_minutes() -> None:
    slow, faster = recipe_for("discrete", SLOW), replace(SLOW, rate=175)
    assert estimate(slow, SLOW) <= 25 * 60 and 1600 <= slow.decoder_steps < LEAN.decoder_steps
    assert recipe_for("discrete", faster) == LEAN and estimate(LEAN, faster) <= 18 * 60
    assert recipe_for("discrete", replace(SLOW, rate=30)).decoder_steps == 1600
    assert recipe_for("discrete", FAST) == FULL["discrete"] and estimate(FULL["discrete"], FAST) <= 12 * 60
    assert recipe_for("discrete", GPU) == FULL["discrete"]


@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize("machine", [FAST, SLOW])
@pytest.mark.parametrize("minutes", [8, 10, 20, 1000])
def test_a_time_is_kept_by_fewer_steps_of_every_training(machine: Machine, minutes: float, branch: DemoBranch) -> None:
    recipe = recipe_for(branch, machine)
    shortest = estimate(recipe.shortened(FEWEST), machine) / 60
    if minutes < shortest:
        with pytest.raises(ValueError, match=f"the demo takes at least {shortest:.0f} minutes"):
            fitted_to(recipe, machine, minutes)
        return
    found = fitted_to(recipe, machine, minutes)
    assert estimate(found, machine) <= 60 * minutes + 1 or found == recipe
    assert found == recipe if minutes == 1000 else found.decoder_steps <= recipe.decoder_steps
    assert found.decoder_steps >= FEWEST * recipe.decoder_steps - 1


def test_a_slow_start_leaves_fewer_steps_for_the_decoder() -> None:
    recipe = fitted_to(FULL["discrete"], FAST, 8)
    pace = tokenizer_pace(recipe, FAST, 15 + 2 * recipe.tokenizer_steps * 0.18 * 0.7)  # two blocks of three
    assert pace == pytest.approx(2, rel=0.01)
    steady, late = (decoder_steps_left(recipe, FAST, 300, each) for each in (1.0, pace))
    assert late < steady <= recipe.decoder_steps
    assert decoder_steps_left(recipe, FAST, 1, 1.0) == round(FEWEST * FULL["discrete"].decoder_steps)


@pytest.mark.parametrize("recipe", [*FULL.values(), LEAN])
@pytest.mark.parametrize("quick", [False, True])
def test_every_training_runs_on_one_device_for_the_recipes_steps(recipe: Recipe, quick: bool, tmp_path: Path) -> None:
    steps = {step.title: step for step in tour.demo_plan(tmp_path, recipe, quick=quick)}
    trainings = [step for step in steps.values() if step.program == "train.py"]
    assert len(trainings) == (3 if recipe.branch == "flow" else 2)
    assert all(option(step.arguments, "--trainer.devices") == "1" for step in trainings)
    tokenizer, decoder = steps[tour.TOKENIZER].arguments, steps[tour.DECODER].arguments
    assert option(tokenizer, "--trainer.max_steps") == ("4" if quick else str(recipe.tokenizer_steps))
    assert option(decoder, "--trainer.max_steps") == ("4" if quick else str(recipe.decoder_steps))
    assert option(tokenizer, "--model.init_args.backbone.init_args.depth") == str(recipe.tokenizer_depth)


def test_it_says_what_it_takes_and_what_less_time_costs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tour, "measure", lambda: FAST)

    def failing(arguments: object) -> int:
        return 2

    for minutes, wanted in ((None, "which reaches about questions"), (6.0, "scores and pictures are worse")):
        with pytest.raises(ValueError, match="train the image tokenizer"):
            tour.run(tmp_path / "demo", {"train.py": failing, "unimodal": failing}, minutes=minutes)
        out = capsys.readouterr().out
        assert "this machine: 2 CPU threads, bfloat16 products at 410 GFLOP/s" in out and wanted in out
    with pytest.raises(ValueError, match="the demo takes at least"):
        tour.run(tmp_path / "demo", {}, minutes=1)
    with pytest.raises(ValueError, match="the branch is one of discrete, flow"):
        tour.run(tmp_path / "demo", {}, branch="other")


def test_reinforcement_continues_the_demos_model_and_scores_it_before_and_after(tmp_path: Path) -> None:
    steps = reinforcement_plan(tmp_path)
    assert [step.program for step in steps] == ["unimodal", "train.py", "unimodal", "unimodal", "unimodal"]
    before, training, after, *_ = (step.arguments for step in steps)
    assert option(before, "--model") == option(training, "--data.init_args.bundle") == str(tmp_path / "model")
    assert option(after, "--model") == str(tmp_path / "rl" / "model")
    assert option(before, "--guidance") == option(after, "--guidance") == "1"
    assert len({option(step.arguments, "--out") for step in steps if step.program == "unimodal"}) == 4
    configs = [option(reinforcement_plan(tmp_path, branch=branch)[1].arguments, "--config") for branch in BRANCHES]
    assert [Path(config).name for config in configs] == ["demo.yaml", "flow.yaml"]


def test_a_demo_that_is_there_is_continued_and_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    monkeypatch.setattr(reinforce, "run", lambda *_, **__: called.append("tour"))
    programs = {name: lambda arguments: called.append(arguments[0]) for name in ("train.py", "unimodal")}
    reinforce.run_with_rl(tmp_path, programs)
    (tmp_path / "report.html").touch()
    assert called == ["tour", "evaluate", "fit", "evaluate", "evaluate", "evaluate"]
    called.clear()
    reinforce.run_with_rl(tmp_path, programs)
    assert called == ["evaluate", "fit", "evaluate", "evaluate", "evaluate"]
    with pytest.raises(ValueError, match="the branch is one of discrete, flow"):
        reinforce.run_with_rl(tmp_path, programs, branch="other")
    with pytest.raises(ValueError, match="the step 'drawings before, without guidance' failed"):
        reinforce.run_with_rl(tmp_path, {name: lambda arguments: 2 for name in programs})
