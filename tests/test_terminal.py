"""What is printed is what there is: no line end, no markup, no smiley that was not in it."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from rich.table import Table

from tests.oracles.tiny import tiny_bundle
from unimodal.cli import main
from unimodal.terminal import WIDE, counted, open_console, say

ODD = "word " * 40 + ":smile: [red]not markup[/red] [/] \\[x] é"


def test_a_line_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    say(ODD)
    say("a", end="")
    assert capsys.readouterr().out == f"{ODD}\na"


def test_a_terminal_gets_no_control_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdout", screen := Screen())
    say("a\x1b[2Jb\tc\nd\x9b")
    assert screen.getvalue() == "a\\x1b[2Jb\tc\nd\\x9b\n"


def test_a_table_in_a_pipe_is_not_cut(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("shards", title="[a]/x")
    table.add_row(long := "/folder/" * 15 + "[b]:smile:")
    open_console().print(table)
    out = capsys.readouterr().out
    assert long in out and "[a]/x" in out and len(long) < WIDE


def test_numbers_and_their_words() -> None:
    assert [counted(n, "answer") for n in (0, 1, 2000)] == ["0 answers", "1 answer", "2,000 answers"]
    assert counted(2, "copy", "copies") == "2 copies"


@pytest.mark.slow
@pytest.mark.parametrize("stream", [True, False])
def test_generate_prints_an_answer_as_it_is(stream: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle, out = tiny_bundle(tmp_path / "model", max_length=512), tmp_path / "[out]"
    command = ["generate", "--model", str(bundle), "--prompt", "a", "--mode", "text", "--choices", ODD]
    command += ["--max-new-tokens", "480", "--out", str(out), *(["--stream"] if stream else [])]
    assert main(command) == 0
    printed = capsys.readouterr().out.splitlines()
    assert ODD in printed and (out / "answer.txt").read_text(encoding="utf-8") == f"{ODD}\n"
    assert any(line.startswith("1 answer in ") and line.endswith(f"-> {out}") for line in printed)
