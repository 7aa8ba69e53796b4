"""A run beside golden losses: normal or not, in lines that a person reads, and exit codes for a program."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import pytest

from tests.oracles.tiny_training import ROOT
from unimodal.training import golden
from unimodal.training.golden import Band, Golden, compare, curve, main

STEPS = (2, 4, 8)
RECIPES = sorted(path.stem for path in (ROOT / "docs" / "results" / "golden").glob("*.json"))


def write_run(root: Path, losses: dict[int, tuple[float, float]], version: int = 0) -> Path:
    """Logged as Lightning does: step n is the one after which n + 1 are done."""
    folder = root / "logs" / f"version_{version}"
    folder.mkdir(parents=True)
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["step", "train/loss_text", "train/loss_image", "val/loss"])
        writer.writeheader()
        for step, (text, image) in losses.items():
            writer.writerow({"step": step, "train/loss_text": text, "train/loss_image": image, "val/loss": ""})
    return root


def falling(factor: float = 1.0, steps: int = 10) -> dict[int, tuple[float, float]]:
    return {step: (factor * (3.0 - 0.2 * step), factor * (6.0 - 0.1 * step)) for step in range(steps)}


@pytest.fixture
def bands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Golden:
    roots = [write_run(tmp_path / f"seed{seed}", falling(factor)) for seed, factor in enumerate((0.99, 1.0, 1.01))]
    made = Golden.of([curve(root, STEPS) for root in roots], "tiny", STEPS, 10, "here")
    monkeypatch.setattr(golden, "BANDS_FOLDER", tmp_path / "golden")
    made.save(tmp_path / "golden")
    return Golden.open("tiny")


def test_curves_are_means_between_steps_over_all_parts_of_a_run(tmp_path: Path) -> None:
    first = {step: loss for step, loss in falling().items() if step < 5}
    write_run(tmp_path, first)
    write_run(tmp_path, {step: loss for step, loss in falling().items() if step >= 5}, version=1)
    found = curve(tmp_path, STEPS)
    assert found["train/loss_text"] == pytest.approx({2: 2.9, 4: 2.5, 8: 1.9})
    assert "train/loss_flow" not in found
    assert curve(write_run(tmp_path / "short", first), STEPS)["train/loss_image"].keys() == {2, 4}


def test_a_run_within_the_seeds_is_normal_and_others_are_not(bands: Golden, tmp_path: Path) -> None:
    assert bands.seeds == 3 and bands.steps == STEPS and set(bands.bands) == {"train/loss_text", "train/loss_image"}
    for factor, normal in ((1.0, True), (1.05, True), (1.3, False), (0.7, False)):
        root = write_run(tmp_path / str(factor), falling(factor))
        assert compare(curve(root, STEPS), bands).normal is normal
    textless = dict(curve(write_run(tmp_path / "whole", falling()), STEPS))
    del textless["train/loss_text"]
    found = compare(textless, bands)
    assert not found.normal and found.outside == 3  # a loss that was never logged
    broken = {step: (float("nan"), float("nan")) for step in range(10)}
    assert not compare(curve(write_run(tmp_path / "nan", broken), STEPS), bands).normal


def test_the_range_of_few_seeds_is_as_wide_as_that_of_five_would_be() -> None:
    assert Band.of([1.0, 2.0], 1.5) == Band(low=0.75, high=2.25)
    assert Band.of([0.1, 1.1], 2.0).low == 0.0
    curves = [{"train/loss_text": {2: value}} for value in (2.0, 1.0, 1.5, 1.2, 1.8)]
    made = [Golden.of(curves[:count], "tiny", (2,), 10, "here") for count in (5, 2)]
    of_five, of_two = (one.bands["train/loss_text"][2] for one in made)
    assert (of_five.low, of_five.high) == (1.0, 2.0)
    assert of_two.high - of_two.low == pytest.approx(2.326 / 1.128) and of_two.high + of_two.low == pytest.approx(3)


def test_documents_without_separators_are_abnormal_where_a_run_has_monitors(bands: Golden, tmp_path: Path) -> None:
    """The losses say nothing of them."""
    band = {step: Band(low=1.0, high=1.0) for step in STEPS}
    watched = dataclasses.replace(bands, bands={**bands.bands, "monitor/separators": band})
    losses = curve(write_run(tmp_path / "run", falling()), STEPS)
    for separators, normal in ((1.0, True), (0.0, False)):
        found = compare({**losses, "monitor/separators": dict.fromkeys(STEPS, separators)}, watched)
        assert found.normal is normal and found.outside == (0 if normal else 3)
    assert len(compare(losses, watched).rows) == 6
    assert len(compare({**losses, "monitor/separators": {2: 1.0, 8: 1.0}}, watched).rows) == 8


def test_a_step_that_one_seed_lacks_has_no_band() -> None:
    """A row of a batch may hold no answer that ends, and then no figure of separators."""
    curves = [{"train/loss_text": {2: 1.0, 4: 1.0}} for _ in range(2)]
    curves[0]["monitor/separators"] = {2: 1.0}
    assert set(Golden.of(curves, "tiny", (2, 4), 10, "here").bands) == {"train/loss_text"}
    curves[1]["monitor/separators"] = {2: 1.0, 4: 1.0}
    found = Golden.of(curves, "tiny", (2, 4), 10, "here").bands
    assert tuple(found["monitor/separators"]) == (2,) and tuple(found["train/loss_text"]) == (2, 4)


def test_the_command_says_it_in_lines_and_exit_codes(
    bands: Golden, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(write_run(tmp_path / "a", falling())), "--recipe", "tiny"]) == 0
    assert "normal: 0 of 6 figures outside of 3 seeds of tiny" in capsys.readouterr().out
    assert main([str(write_run(tmp_path / "b", falling(2.0))), "--recipe", "tiny"]) == 1
    said = capsys.readouterr().out
    assert "too high" in said and "abnormal: 6 of 6" in said
    for root, recipe, words in (
        (tmp_path / "a", "unknown", "no golden losses of 'unknown'; there are those of tiny"),
        (tmp_path / "nothing", "tiny", "no logs/version_*/metrics.csv"),
        (write_run(tmp_path / "c", falling(steps=1)), "tiny", "shorter than 2 steps"),
    ):
        assert main([str(root), "--recipe", recipe]) == 2
        assert words in capsys.readouterr().err


@pytest.mark.parametrize("recipe", RECIPES)
def test_golden_losses_of_a_recipe_are_whole(recipe: str) -> None:
    found = Golden.open(recipe)
    assert (ROOT / "configs" / "run" / f"{recipe}.yaml").is_file() and found.recipe == recipe and found.seeds >= 3
    for name, bands in found.bands.items():
        assert tuple(bands) == found.steps or not name.startswith("train/")
        assert all(0 < band.low <= band.high for band in bands.values())
    assert "train/loss_text" in found.bands
    assert json.loads((golden.BANDS_FOLDER / f"{recipe}.json").read_text())["device"]
