"""The page itself: all parts in order, in one file that needs nothing beside it."""

from __future__ import annotations

from html import escape
from pathlib import Path

from unimodal.report import sections
from unimodal.report.rewards import reinforcement
from unimodal.report.run_files import RunFiles, read_run
from unimodal.report.stages import stages
from unimodal.report.style import CSS

PAGE_FILE = "report.html"
INTRODUCTION = (
    "One transformer reads and writes text and images as one sequence of tokens: it answers questions about images, "
    "describes them, and draws them from text. Everything below was made by this run; nothing was picked by hand."
)
PARTS = (
    sections.summary,
    sections.drawings,
    sections.edits,
    sections.questions,
    sections.captions,
    sections.dialogue,
    sections.reconstructions,
    sections.samples,
    reinforcement,
    stages,
    sections.curves,
    sections.timings,
    sections.recipes,
    sections.notes,
)


def write_report(run_dir: Path) -> Path:
    """Build `report.html` from a run's results, logs, timings and dialogue; returns its path.

    What is missing or unreadable is skipped, and the page says so. Raises ValueError when `run_dir` is not there.
    """
    return write_page(run_dir / PAGE_FILE, render_page(read_run(run_dir)))


def render_page(files: RunFiles) -> str:
    """The whole document as text."""
    body = "".join(part(files) for part in PARTS)
    return frame("What the model does", INTRODUCTION, sections.headlines(files) + body)


def frame(title: str, introduction: str, body: str) -> str:
    """A whole document of one style; `body` is HTML."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>unimodal: {escape(title[0].lower() + title[1:])}</title><style>{CSS}</style></head><body><main>"
        f'<h1>{escape(title)}</h1><p class="soft">{escape(introduction)}</p>{body}</main></body></html>\n'
    )


def write_page(path: Path, page: str) -> Path:
    """The page is there as a whole or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(path)
    return path
