"""The command lines of README, docs and configs can be typed: programs, commands, options and configs exist."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.oracles.pages import (
    CONFIGS,
    PAGES,
    commands_of,
    is_outline,
    make_places,
    options_of,
    shell_lines,
    spans,
)
from tests.oracles.tiny_training import ROOT
from unimodal.cli import COMMANDS, build_parser, main
from unimodal.training.cli import TrainingCLI, run

LINES = [(page, line) for page in [*PAGES, *CONFIGS] for line in shell_lines(page)]
SPANS = [(page, span) for page in [*PAGES, ROOT / "CHANGELOG.md"] for span in spans(page)]
WHOLE = [(page, line) for page, line in LINES if not is_outline(line)]
NAMED = [(page, line) for page, line in [*LINES, *SPANS] if (line.split() or [""])[0] in ("unimodal", "python", "make")]


def named(*programs: str, lines: list[tuple[Path, str]]) -> Any:
    """A test for each line of a program."""
    chosen = {line: page.name for page, line in reversed(lines) if line.startswith(programs)}
    return pytest.mark.parametrize("line", chosen, ids=[f"{page}: {line}" for line, page in chosen.items()])


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_places(tmp_path_factory.mktemp("places"))


@pytest.fixture
def parsed(places: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What `python train.py ...` builds before it would begin."""
    monkeypatch.setattr(TrainingCLI, "_run_subcommand", lambda self, subcommand: None)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.chdir(places)
    return run


def of_unimodal() -> dict[str, argparse.ArgumentParser]:
    """Command -> its parser."""
    [commands] = [a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction)]
    return dict(commands.choices)


def known(parser: argparse.ArgumentParser) -> set[str]:
    return set(parser._option_string_actions)


def test_there_are_lines_to_test() -> None:
    assert {line.split()[0] for _, line in WHOLE} == {"unimodal", "python", "make"}
    assert {command for _, line in NAMED for command in commands_of(line)} >= {*COMMANDS, "fit", "predict", "setup"}


@named("unimodal ", lines=WHOLE)
def test_a_line_of_unimodal_is_a_whole_command(line: str) -> None:
    options = build_parser().parse_args(shlex.split(line)[1:])
    assert options.command == commands_of(line)[0]


@named("unimodal ", lines=NAMED)
def test_a_command_of_unimodal_has_the_options_that_are_named(line: str) -> None:
    commands = commands_of(line)
    assert commands and set(commands) <= COMMANDS.keys()
    for command in commands:
        assert set(options_of(line)) <= known(of_unimodal()[command])


@pytest.mark.slow
@named("python train.py ", lines=WHOLE)
def test_a_line_of_training_builds_what_it_would_run(line: str, parsed: Any) -> None:
    cli = parsed(shlex.split(line)[2:])
    assert cli.subcommand == commands_of(line)[0] and cli.model is not None and cli.datamodule is not None


@named("python ", lines=NAMED)
def test_a_script_that_is_named_exists_and_knows_its_options(line: str) -> None:
    words = line.split()
    script = ROOT / (f"{words[2].replace('.', '/')}.py" if words[1] == "-m" else words[1])
    assert script.is_file()
    if script.name != "train.py":
        text = script.read_text(encoding="utf-8").replace('"--', '"')
        assert [option for option in options_of(line) if f'"{option[2:]}"' not in text] == []


@named("make ", lines=NAMED)
def test_a_target_that_is_named_exists(line: str) -> None:
    makefile = f"\n{(ROOT / 'Makefile').read_text(encoding='utf-8')}"
    assert [target for target in commands_of(line) if f"\n{target}:" not in makefile] == []
    variables = [word.split("=")[0] for word in line.split() if "=" in word]
    assert [name for name in variables if f"\n{name} ?=" not in makefile] == []


def test_an_option_that_prose_names_exists_somewhere(parsed: Any) -> None:
    cli = parsed(["fit", "--config", "configs/run/demo.yaml"])
    options = set().union(*map(known, [*of_unimodal().values(), *cli._subcommand_parsers.values()]))
    said = [(page.name, span) for page, span in SPANS if not span.startswith("python ")]
    prose = {(page, option) for page, span in said for option in options_of(span)}
    assert len(prose) > 30
    assert sorted((page, option) for page, option in prose if option not in options) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_config_that_a_page_names_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    found = {word.strip("`,.;:()[]") for word in text.split() if word.strip("`[(").startswith("configs/")}
    files = {word.split("](")[0].strip("`") for word in found if ".yaml" in word}
    assert [file for file in files if not (ROOT / file).is_file()] == []


def test_the_lines_about_models_of_others_run(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first block; what is between its lines, tokenizing and training, is tests/interop/test_finetune.py's."""
    lines = [line for line in shell_lines(ROOT / "docs" / "interop.md") if line.startswith("unimodal ")][:3]
    monkeypatch.chdir(places)
    assert [line.split()[1] for line in lines] == ["import-hf", "export-hf", "import-hf"]
    assert [main(shlex.split(line)[1:]) for line in lines] == [0, 0, 0]
    back, model = (places / folder / "model.safetensors" for folder in ("back", "runs/finetune/model"))
    assert back.read_bytes() == model.read_bytes()
