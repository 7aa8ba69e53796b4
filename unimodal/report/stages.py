"""The part of the page about a curriculum: its stages, what each was given, and their losses one after the other."""

from __future__ import annotations

from html import escape

from unimodal.report.charts import line_chart
from unimodal.report.parts import cell, code, section, table
from unimodal.report.run_files import Points, RunFiles, StageFiles
from unimodal.report.sections import CHARTS


def stages(files: RunFiles) -> str:
    """A table of stages, and curves with steps counted through all of them. Nothing for a run without stages."""
    if not files.stages:
        return ""
    figures = []
    for title, names in CHARTS["model"].items():
        for name in names:
            series = _one_after_the_other(files.stages, name)
            if series:
                figures.append(line_chart(f"{title}: {name.partition('/')[0]}", series))
    rows = [
        [
            cell(stage.name),
            cell("ended" if stage.ended else "not ended"),
            cell(f"{stage.steps:,}", "number"),
            f"<td>{code(' '.join(stage.settings))}</td>",
        ]
        for stage in files.stages
    ]
    charts = f'<div class="charts">{"".join(figures)}</div>' if figures else ""
    lead = f"{len(files.stages)} stages, steps counted through all of them: {escape(' → '.join(_names(files)))}."
    return section("Stages", table(("stage", "", "steps logged", "settings"), rows) + charts, lead)


def _names(files: RunFiles) -> list[str]:
    return [stage.name for stage in files.stages]


def _one_after_the_other(found: list[StageFiles], name: str) -> dict[str, Points]:
    """Curves of one column, each stage's moved behind the steps of those before it."""
    series: dict[str, Points] = {}
    before = 0
    for stage in found:
        if points := stage.curves.get(name):
            series[stage.name] = [(before + step, value) for step, value in points]
        before += stage.steps
    return series
