"""Small pieces of HTML; every text that comes from data is escaped here."""

from __future__ import annotations

import base64
import mimetypes
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

MIME_TYPES = ("image/png", "image/jpeg", "image/webp", "image/gif")

METRIC_LABELS = {
    "accuracy": "accuracy",
    "image_blind_accuracy": "accuracy with the image replaced",
    "majority_accuracy": "accuracy of always the commonest answer",
    "question_prior_accuracy": "accuracy of each question's commonest answer",
    "exact_match": "exact match",
    "bleu4": "BLEU-4",
    "rouge_l": "ROUGE-L",
    "cider": "CIDEr",
    "colour": "colour right",
    "shape": "shape right",
    "diversity": "distance between drawings of one caption",
    "judge_accuracy": "the judge's own accuracy on real test images",
    "malformed": "malformed image spans",
    "malformed_free": "malformed image spans, state machine off",
    "malformed_free_stray_text": "of these spans, with text between the codes",
    "malformed_free_wrong_length": "of these spans, with a wrong number of codes",
    "malformed_free_no_end": "of these spans, without an end",
    "psnr": "PSNR",
    "ssim": "SSIM",
    "codebook_use": "share of the codebook in use",
    "perplexity": "codebook perplexity",
    "psnr_rest": "PSNR outside the shape",
    "copied": "still in the old colour",
    "known_answer_accuracy": "the judge's accuracy on the known answers",
    "ceiling_accuracy": "accuracy of the known answers, passed through the image tokenizer",
    "ceiling_psnr": "PSNR of these",
    "retrieval": "drawings whose caption the model finds",
    "retrieval_of_real_pictures": "the same of real pictures",
    "retrieval_chance": "the same by chance",
    "drawn_psnr": "PSNR of what is drawn with",
    "drawn_ssim": "SSIM of what is drawn with",
    "ceiling_psnr_rest": "PSNR of these outside the shape",
}
UNITS = {"psnr": "{:.2f} dB", "perplexity": "{:.0f}", "cider": "{:.2f}", "ssim": "{:.3f}", "bleu4": "{:.3f}"}
UNITS |= {"rouge_l": "{:.3f}"}
UNITS |= dict.fromkeys(("psnr_rest", "ceiling_psnr", "ceiling_psnr_rest", "drawn_psnr"), "{:.2f} dB")
UNITS |= {"drawn_ssim": "{:.3f}", "diversity": "{:.3f}"}


def metric_label(name: str) -> str:
    """A metric's name for a reader."""
    if name.startswith("accuracy_"):
        return f"accuracy on {name.removeprefix('accuracy_').replace('_', '/')} answers"
    return METRIC_LABELS.get(name, name.replace("_", " "))


def metric_value(name: str, value: float) -> str:
    """A metric's value with its unit; shares are percentages."""
    return UNITS[name].format(value) if name in UNITS else f"{value:.2%}"


def image(folder: Path, name: object, alt: str) -> str:
    """A picture inside `folder` as a data URI; a line that says so when it is not there."""
    path = (folder / str(name)).resolve()
    mime = mimetypes.guess_type(path.name)[0]
    if mime not in MIME_TYPES or not path.is_relative_to(folder.resolve()) or not path.is_file():
        return f'<span class="left-out">picture {escape(str(name))} is not there</span>'
    return inline_image(path.read_bytes(), mime, alt)


def inline_image(data: bytes, mime: str, alt: str) -> str:
    """An encoded picture as a data URI."""
    return f'<img alt="{escape(alt)}" src="data:{mime};base64,{base64.b64encode(data).decode()}">'


def mark(right: bool | None) -> str:
    """A tick, a cross, or nothing where nobody judged."""
    if right is None:
        return ""
    return (
        '<span class="mark right" title="right">✓</span>'
        if right
        else '<span class="mark wrong" title="wrong">✗</span>'
    )


def section(title: str, body: str, lead: str = "") -> str:
    """A headed part of the page; without a body, a line that says it is missing."""
    lead = f'<p class="soft">{escape(lead)}</p>' if lead else ""
    body = body or '<p class="left-out">Left out: the run holds nothing for this part.</p>'
    return f"<section><h2>{escape(title)}</h2>{lead}{body}</section>"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Rows of ready cells (`<td>…</td>`) below a head of plain text."""
    titles = "".join(f"<th>{escape(title)}</th>" for title in head)
    head_row = f"<thead><tr>{titles}</tr></thead>" if titles else ""
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return f'<div class="scroll"><table>{head_row}<tbody>{body}</tbody></table></div>'


def cell(text: Any, kind: str = "") -> str:
    """A table cell of plain text."""
    return f'<td class="{kind}">{escape(str(text))}</td>' if kind else f"<td>{escape(str(text))}</td>"


def code(text: Any) -> str:
    """Plain text as code."""
    return f"<code>{escape(str(text))}</code>"


def duration(seconds: float) -> str:
    """`7.2 s`, or minutes and seconds from one minute on."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"


def flatten(value: Any, name: str = "") -> str:
    """Nested settings in one line: `sampling.temperature 0 · seed 0`."""
    if isinstance(value, dict):
        return " · ".join(flatten(inner, f"{name}.{key}" if name else str(key)) for key, inner in value.items())
    return f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
