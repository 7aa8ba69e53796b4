"""The part of the page about reinforcement learning: curves, and answers before, during and after."""

from __future__ import annotations

from html import escape
from pathlib import Path

from unimodal.report.charts import line_chart
from unimodal.report.parts import image, section
from unimodal.report.run_files import Points, RunFiles

CURVES = {
    "Reward, in training and held out": ("train/reward", "val/reward"),
    "Entropy, nats a token": ("train/entropy_text", "train/entropy_image"),
    "Distance from the first model, nats a token (KL)": ("train/kl_text", "train/kl_image"),
    "Share of prompts whose answers are all worth the same": ("train/zero_std_groups",),
    "Share of tokens that were clipped": ("train/clipped_high", "train/clipped_low"),
    "Log-probabilities of sampling and training apart, nats": ("train/log_prob_gap",),
}


def reinforcement(files: RunFiles) -> str:
    """Curves of rewards and of what may go wrong; the first, a middle and the last rollout. Nothing without them."""
    columns = files.curves.get("rl", {})
    figures = [_chart(title, columns, names) for title, names in CURVES.items()]
    each = {name: points for name, points in columns.items() if name.startswith("train/reward_") and len(points) > 1}
    figures.insert(1, _chart("Each reward, and by kind of prompt", each, tuple(each)))
    body = f'<div class="charts">{"".join(figures)}</div>' if any(figures) else ""
    shown = _before_during_after(files.rollouts)
    cards = [
        f'<div class="card">{image(files.folder, path.relative_to(files.folder), title)}'
        f"{escape(title)}, step {int(path.stem.rpartition('-')[2]):,}</div>"
        for title, path in shown
    ]
    body += f'<div class="cards">{"".join(cards)}</div>' if cards else ""
    lead = "Answers to the same kinds of prompts, a prompt a row."
    return section("Reinforcement learning", body, lead) if body else ""


def _chart(title: str, columns: dict[str, Points], names: tuple[str, ...]) -> str:
    series = {name.removeprefix("train/"): columns[name] for name in names if columns.get(name)}
    return line_chart(title, series) if series else ""


def _before_during_after(rollouts: list[Path]) -> list[tuple[str, Path]]:
    if len(rollouts) < 3:
        return [("a rollout", path) for path in rollouts]
    return [("before", rollouts[0]), ("during", rollouts[len(rollouts) // 2]), ("after", rollouts[-1])]
