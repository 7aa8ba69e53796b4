"""Progress bars of commands."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from unimodal.terminal import open_console


@contextmanager
def progress_bar(title: str, total: int | None, *, unit: str) -> Iterator[Callable[[int], None]]:
    """A bar with speed and time left; gives a function to call with how many more are done."""
    bar = Progress(
        TextColumn("{task.description}", style="bold", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=open_console(),
    )
    with bar:
        task = bar.add_task(title, total=total, rate="")

        def tell(done: int) -> None:
            bar.update(task, advance=done)
            speed = bar.tasks[task].speed
            bar.update(task, rate=f"{speed:,.0f} {unit}/s" if speed else "")

        yield tell
