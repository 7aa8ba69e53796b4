"""The report of a curriculum: all stages in order, with what sets them apart, and one axis of steps."""

from __future__ import annotations

import json
from pathlib import Path

from unimodal.report.page import write_report
from unimodal.report.run_files import read_run
from unimodal.report.stages import stages


def stage(root: Path, name: str, losses: list[float], *options: str, ended: bool = True) -> None:
    folder = root / name
    (folder / "logs" / "version_0").mkdir(parents=True)
    rows = [f"{step},{loss}" for step, loss in enumerate(losses)]
    (folder / "logs" / "version_0" / "metrics.csv").write_text("\n".join(["step,train/loss_text", *rows, ""]))
    if ended:
        given = ["fit", "--data=TokenDataModule", f"--trainer.default_root_dir={folder}", *options]
        (folder / "finished.json").write_text(json.dumps({"arguments": given}))


def test_stages_stand_in_order_with_their_settings_and_steps_counted_through(tmp_path: Path) -> None:
    stage(tmp_path, "10-last", [0.5, 0.4], ended=False)
    stage(tmp_path, "2-joint", [2.0, 1.0, 0.9], "--trainer.max_steps=3")
    stage(tmp_path, "1-eyes", [4.0, 3.0], "--trainer.max_steps=2", '--model.start.trainable=["a.*"]')
    files = read_run(tmp_path)
    assert [each.name for each in files.stages] == ["eyes", "joint", "last"]
    assert [each.ended for each in files.stages] == [True, True, False]
    assert files.stages[0].settings == ["--trainer.max_steps=2", '--model.start.trainable=["a.*"]']
    assert [each.steps for each in files.stages] == [2, 3, 2]
    part = stages(files)
    assert "eyes → joint → last" in part and "--data=TokenDataModule" not in part and str(tmp_path) not in part
    page = write_report(tmp_path).read_text()
    assert page.count("<h2>Stages</h2>") == 1 and "<h2>Training</h2>" not in page and "metrics.csv" not in page


def test_curves_of_later_stages_begin_where_earlier_ones_end(tmp_path: Path) -> None:
    stage(tmp_path, "1-eyes", [4.0] * 30)
    stage(tmp_path, "2-joint", [2.0] * 30)
    drawn = stages(read_run(tmp_path))
    first, second = (line.split('points="')[1].split('"')[0].split() for line in drawn.split("<polyline")[1:3])
    across = [[float(point.split(",")[0]) for point in points] for points in (first, second)]
    assert across[0][-1] < across[1][0]


def test_a_run_without_stages_has_no_such_part(tmp_path: Path) -> None:
    (tmp_path / "results-old").mkdir()
    assert read_run(tmp_path).stages == [] and "<h2>Stages</h2>" not in write_report(tmp_path).read_text()
