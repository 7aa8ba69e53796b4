"""What commands print: lines as they are, whatever the width, and whole tables where there is no screen to fit."""

from __future__ import annotations

import sys

from rich.console import Console

WIDE = 160
"""Columns where the output is no terminal: a pipe or a file, which have no width."""

_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), 127, *range(128, 160)) if chr(code) not in "\n\t"}


def say(text: str, *, end: str = "\n") -> None:
    """Print text as it is, never wrapped and never taken for markup.

    A terminal gets control characters as escapes, so that no answer of a model can move the cursor.
    """
    sys.stdout.write((text.translate(_CONTROLS) if sys.stdout.isatty() else text) + end)
    sys.stdout.flush()


def open_console() -> Console:
    """A console for tables and bars; strings in them are shown as they are."""
    console = Console(highlight=False, markup=False, emoji=False)
    return console if console.is_terminal else Console(highlight=False, markup=False, emoji=False, width=WIDE)


def counted(count: int, one: str, many: str | None = None) -> str:
    """`1 answer`, `2 answers`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"
