"""Command-line options made from DecodeSettings."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from unimodal.generation.settings import OPTIONS, SETTINGS, DecodeSettings

Settings = TypeVar("Settings", bound=DecodeSettings)


def add_arguments(parser: argparse.ArgumentParser, names: Iterable[str] = OPTIONS, *, defaults: bool = True) -> None:
    """An option for each setting, absent unless given: `--top-p` for `top_p`, `--no-constrained` for a truth.

    With `defaults` their help tells those of DecodeSettings, which then act.
    """
    usual = parser.add_argument_group("decoding")
    flow = parser.add_argument_group("decoding with the flow branch")
    for name in names:
        setting, default = SETTINGS[name], getattr(DecodeSettings, name)
        about = f"{setting.help} ({default})" if defaults and default is not None else setting.help
        kind: dict[str, Any] = {"action": argparse.BooleanOptionalAction} if setting.truth else {"type": setting.type}
        if setting.choices:
            kind["metavar"] = "|".join(setting.choices)
        elif not setting.truth:
            kind["metavar"] = "N" if setting.whole else "X"
        (flow if setting.flow else usual).add_argument(option(name), default=None, help=about, **kind)


def from_arguments(options: argparse.Namespace, base: Settings, **more: Any) -> Settings:
    """`base` with what the command line says instead; `more` are settings that have no option.

    Raises ValueError, with name and value, for what a setting does not take.
    """
    chosen = {name: getattr(options, name, None) for name in OPTIONS}
    return dataclasses.replace(base, **{name: value for name, value in chosen.items() if value is not None}, **more)


def to_words(values: Mapping[str, Any]) -> list[str]:
    """Settings by name -> the words of a command line."""
    words: list[str] = []
    for name, value in values.items():
        if isinstance(value, bool):
            words.append(option(name) if value else option(f"no_{name}"))
        else:
            words += [option(name), str(value)]
    return words


def option(name: str) -> str:
    """`--top-p` for `top_p`."""
    return f"--{name.replace('_', '-')}"


def add_drafts(parser: argparse.ArgumentParser) -> None:
    """`--drafts`, of the commands that decode."""
    about = "later tokens guessed before each pass, a number or 'auto'; answers stay the same"
    parser.add_argument("--drafts", type=drafts_option, default=0, metavar="N", help=about)


def drafts_option(text: str) -> int | str:
    """How many later tokens are guessed before each pass, or `auto`."""
    if text == "auto" or text.isdecimal():
        return text if text == "auto" else int(text)
    raise argparse.ArgumentTypeError(f"a number or 'auto', not {text!r}")
