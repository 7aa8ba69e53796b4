"""The parts of the page, top to bottom; each is empty when the run has nothing for it."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from itertools import product
from typing import Any

from data_pipelines.sources.easy_vqa import COLOURS, SHAPES, caption
from unimodal.report.charts import line_chart
from unimodal.report.parts import (
    cell,
    code,
    duration,
    flatten,
    image,
    mark,
    metric_label,
    metric_value,
    section,
    table,
)
from unimodal.report.run_files import Result, RunFiles

TASK_TITLES = {
    "vqa": "Questions about images",
    "caption": "Captions",
    "t2i": "Drawing from text",
    "reconstruction": "Image tokenizer",
    "edit": "Editing images",
}
HEADLINES = (
    ("vqa", "accuracy"),
    ("caption", "exact_match"),
    ("t2i", "accuracy"),
    ("t2i", "retrieval"),
    ("edit", "accuracy"),
    ("reconstruction", "psnr"),
)
CHARTS: dict[str, dict[str, tuple[str, ...]]] = {
    "tokenizer": {
        "Image tokenizer: loss": ("train/loss", "val/loss"),
        "Image tokenizer: PSNR in dB": ("train/psnr", "val/psnr"),
    },
    "model": {
        "Model: text loss, nats a token": ("train/loss_text", "val/loss_text"),
        "Model: image loss, nats a code": ("train/loss_image", "val/loss_image"),
        "Model: flow loss, squared error of the velocity": ("train/loss_flow", "val/loss_flow"),
        "Model: norm of the last layer's output": ("monitor/output_norm",),
        "Model: largest score of attention": ("monitor/attention_logit",),
    },
}
EDIT_IMAGES = ("shown", "drawn", "known")
ReportExample = Mapping[str, Any]


def headlines(files: RunFiles) -> str:
    """The first score of every task, large."""
    cards = []
    for task, name in HEADLINES:
        for result in files.of_task(task):
            if name in result.metrics:
                value = metric_value(name, result.metrics[name])
                label = f"{_title(result)}: {metric_label(name)}, {result.content.get('n', '?')} items"
                cards.append(f'<div class="card"><b>{escape(value)}</b><small>{escape(label)}</small></div>')
    return f'<div class="scores">{"".join(cards)}</div>' if cards else ""


def summary(files: RunFiles) -> str:
    """Every score by task, with the recipe in short."""
    cards = []
    for result in files.results:
        rows = [
            [cell(metric_label(name)), cell(metric_value(name, value), "number")]
            for name, value in result.metrics.items()
        ]
        recipe = " · ".join(filter(None, (_data(result), _short_recipe(result))))
        title = escape(_title(result))
        cards.append(f'<div class="card"><h3>{title}</h3><small>{escape(recipe)}</small>{table((), rows)}</div>')
    return section("Scores", f'<div class="tables">{"".join(cards)}</div>' if cards else "")


def curves(files: RunFiles) -> str:
    """Losses of both trainings, text and images apart."""
    figures = []
    for log, charts in CHARTS.items():
        columns = files.curves.get(log, {})
        for title, names in charts.items():
            series = {name: columns[name] for name in names if columns.get(name)}
            if series:
                figures.append(line_chart(title, series))
    if files.stages and not figures:
        return ""  # the part about stages has them
    return section("Training", f'<div class="charts">{"".join(figures)}</div>' if figures else "")


def reconstructions(files: RunFiles) -> str:
    """Originals with what comes back from their codes."""
    cards = [
        f'<div class="card"><div class="pair">{_image(result, example, "original")}'
        f"{_image(result, example, 'reconstruction')}</div></div>"
        for result in files.of_task("reconstruction")
        for example in result.examples
    ]
    lead = (
        "Left the original, right what the image tokenizer makes of its codes. What it loses, no model can see or draw."
    )
    return section("Reconstructions", _cards(cards), lead)


def drawings(files: RunFiles) -> str:
    """Drawn pictures: a colour by shape grid where the prompts are of that kind, else beside their prompts."""
    body = ""
    for result in files.of_task("t2i"):
        by_prompt: dict[str, list[ReportExample]] = {}
        for example in result.examples:
            by_prompt.setdefault(str(example.get("prompt", "")), []).append(example)
        grid = {caption(colour, shape) for colour, shape in product(COLOURS, SHAPES)}
        is_grid = bool(by_prompt) and by_prompt.keys() <= grid
        body += f"<h3>{escape(_title(result))}</h3>" if _moment(result) else ""
        body += _grid(result, by_prompt) if is_grid else _drawn_cards(result, by_prompt)
    lead = (
        "Unselected: the first drawings of every prompt. A tick or a cross is the judge's word; hover for what it saw."
    )
    return section("Drawn from text", body, lead)


def samples(files: RunFiles) -> str:
    """The last pictures that were made while training."""
    cards = [
        f'<div class="card">{image(files.folder, path.relative_to(files.folder), name)}'
        f"{escape(name)}, step {int(path.stem.rpartition('-')[2]):,}</div>"
        for name, path in files.samples
    ]
    lead = "Drawn: held-out captions. Reconstructions: originals above, what comes back from their codes below."
    return section("While training", _cards(cards), lead) if cards else ""


def edits(files: RunFiles) -> str:
    """Shown pictures with the request, what was drawn and the known answer; nothing where no edit was measured."""
    results = files.of_task("edit")
    cards = [
        f'<div class="card"><div class="triple">'
        f"{''.join(_image(result, example, name) for name in EDIT_IMAGES)}</div>"
        f"{escape(str(example.get('prompt', '')))} {mark(example.get('right'))}{_reference(example)}</div>"
        for result in results
        for example in result.examples
    ]
    lead = (
        "Left the shown picture, then what the model drew, right the known answer. Evenly spread over the test split."
    )
    return section("Edits", _cards(cards), lead) if results else ""


def captions(files: RunFiles) -> str:
    """Pictures with what the model says of them."""
    cards = []
    for result in files.of_task("caption"):
        for example in result.examples:
            text = f"{escape(str(example.get('answer', '')))} {mark(example.get('right'))}"
            cards.append(
                f'<div class="card">{_image(result, example, "shown")}<b>{text}</b>{_reference(example)}</div>'
            )
    return section("Captions", _cards(cards), "Pictures of the test split, evenly spread over it.")


def questions(files: RunFiles) -> str:
    """Pictures with a question and the model's answer."""
    cards = []
    for result in files.of_task("vqa"):
        for example in result.examples:
            text = f"<b>{escape(str(example.get('answer', '')))}</b> {mark(example.get('right'))}"
            prompt = escape(str(example.get("prompt", "")))
            cards.append(
                f'<div class="card">{_image(result, example, "shown")}{prompt}<br>{text}{_reference(example)}</div>'
            )
    return section("Questions and answers", _cards(cards), "Questions of the test split, evenly spread over it.")


def dialogue(files: RunFiles) -> str:
    """One conversation with text and pictures from both sides."""
    turns = []
    for turn in files.dialogue:
        role = "user" if turn.get("role") == "user" else "model"
        parts = "".join(
            image(files.folder, part["image"], "picture in the dialogue")
            if "image" in part
            else f"<div>{escape(str(part.get('text', '')))}</div>"
            for part in turn.get("parts", [])
        )
        turns.append(f'<div class="turn {role}"><small class="soft">{role}</small>{parts}</div>')
    return section("A mixed dialogue", f'<div class="dialogue">{"".join(turns)}</div>' if turns else "")


def timings(files: RunFiles) -> str:
    """How long each step took, as bars."""
    seconds = [float(item.get("seconds", 0)) for item in files.timings]
    maximum = max(seconds, default=0) or 1
    rows = [
        [
            f"<td>{escape(str(item.get('step', '')))}<br>{code(item.get('command', ''))}</td>",
            cell(duration(value), "number"),
            f'<td class="wide"><div class="bar" style="width:{100 * value / maximum:.1f}%"></div></td>',
        ]
        for item, value in zip(files.timings, seconds, strict=True)
    ]
    lead = f"{duration(sum(seconds))} in all." if rows else ""
    return section("Time", table(("step and command", "time", ""), rows) if rows else "", lead)


def recipes(files: RunFiles) -> str:
    """The whole recipe of every results file and the command that makes it again."""
    parts = []
    for result in files.results:
        content = result.content
        rows = [
            [cell("command"), f"<td>{code(content.get('command') or 'not recorded')}</td>"],
            *([cell(key), f"<td>{code(flatten(content.get(key, {})))}</td>"] for key in ("recipe", "model", "data")),
            [cell("software"), f"<td>{code(flatten(content.get('software', {})))}</td>"],
            [cell("time"), cell(duration(float(content.get("seconds", 0))))],
        ]
        parts.append(f"<h3>{escape(_title(result))}</h3>{table((), rows)}")
    return section("Recipes", "".join(parts), "What it takes to get each score again.")


def notes(files: RunFiles) -> str:
    """What was not there to report."""
    items = "".join(f"<li>{escape(note)}</li>" for note in files.notes)
    return section("Left out", f'<ul class="left-out">{items}</ul>') if items else ""


def _title(result: Result) -> str:
    """The task, and whether it was done before or after what the run is about."""
    moment = _moment(result)
    return TASK_TITLES.get(result.task, result.task) + (f", {moment}" if moment else "")


def _moment(result: Result) -> str:
    """`before` or `after`, where a results file is called so; else nothing."""
    return next((moment for moment in ("before", "after") if result.name.startswith(f"{moment}_")), "")


def _cards(cards: list[str]) -> str:
    return f'<div class="cards">{"".join(cards)}</div>' if cards else ""


def _image(result: Result, example: ReportExample, name: str) -> str:
    return image(result.folder, example.get("images", {}).get(name, name), name)


def _reference(example: ReportExample) -> str:
    """The right answer, where the model's is wrong."""
    return "" if example.get("right") else f"<br><small>expected: {escape(str(example.get('reference', '')))}</small>"


def _grid(result: Result, by_prompt: Mapping[str, list[ReportExample]]) -> str:
    rows = []
    for colour in COLOURS:
        cells = "".join(f"<td>{_thumbs(result, by_prompt.get(caption(colour, shape), []))}</td>" for shape in SHAPES)
        rows.append([f"<th>{colour}</th>{cells}"])
    return f'<div class="drawn">{table(("", *SHAPES), rows)}</div>'


def _thumbs(result: Result, examples: list[ReportExample]) -> str:
    thumbs = "".join(
        f'<span class="thumb{" wrong" if example.get("right") is False else ""}" '
        f'title="judge: {escape(str(example.get("answer", "")))}">'
        f"{_image(result, example, 'drawn')}{mark(example.get('right'))}</span>"
        for example in examples
    )
    return f'<div class="thumbs">{thumbs}</div>'


def _drawn_cards(result: Result, by_prompt: Mapping[str, list[ReportExample]]) -> str:
    return _cards(
        [
            f'<div class="card">{_image(result, example, "drawn")}{escape(prompt)} {mark(example.get("right"))}</div>'
            for prompt, examples in by_prompt.items()
            for example in examples
        ]
    )


def _data(result: Result) -> str:
    data = result.content.get("data", {})
    return f"{data.get('source', '?')} {data.get('split', '?')}, {result.content.get('n', '?')} items"


def _short_recipe(result: Result) -> str:
    recipe = dict(result.content.get("recipe", {}))
    return flatten({name: recipe[name] for name in ("sampling", "guidance", "seed") if name in recipe}).replace(
        "sampling.", ""
    )
