"""The field's words: no identifier and no docstring speaks the private language of earlier versions (glossary)."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(
    path for package in ("unimodal", "data_pipelines", "tokenizers_vq") for path in (ROOT / package).rglob("*.py")
)

IDENTIFIERS = {
    "room": "token budget",
    "told": "reported, formatted",
    "said": "generated",
    "begun": "started",
    "go_on": "resume, load_state",
    "begin_with": "start, initialize_from",
    "left_out": "skipped, dropped",
    "axial_turn": "axial_rope_max",
    "parted": "split, permutation",
    "alike": "same_size, similar",
    "look": "attend, sync",
    "places": "positions",
    "cells": "row_col, grid positions",
    "seen": "image embeddings, row status",
    "own": "nothing: what it holds",
    "most": "max",
    "least": "min",
    "longest": "max_length, max_side",
    "lost": "missing, dropped",
    "way_out": "remedy",
}
"""Private word -> the field's. A word of one part stands for itself and for a part between underscores."""

ALLOWED_IDENTIFIERS = {
    "most_common": "collections.Counter's",
    "cells": "columns of a table",
    "seen": "what an image is seen through (codes or patches), the data's own option",
    "seen_steps": "steps that a grammar has consumed",
}

PHRASES = {
    r"left out": "skipped, dropped",
    r"go(?:es)? on|went on": "continue, resume",
    r"begins? with": "start from",
    r"\btold\b": "reported",
    r"way out": "remedy",
    r"\bparted\b": "split",
}
ALLOWED_PHRASES = (
    "what several of them begin with",
    "begin with in common",
    "its group begins with",
    "ValueError that begins with `where`",
    "the one left out cannot happen",
)
"""Sentences in which the words have their plain meaning."""


def identifiers(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Attribute):
            yield node.attr


def private(name: str) -> bool:
    """Whether a name is, or has between underscores, a private word."""
    if name in ALLOWED_IDENTIFIERS or name in {word.upper() for word in ALLOWED_IDENTIFIERS}:
        return False
    padded = f"_{name.lower()}_"
    return any(f"_{word}_" in padded for word in IDENTIFIERS)


def test_no_identifier_is_a_private_word() -> None:
    found = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in FILES
        if path.name != "old_names.py"
        for name in identifiers(ast.parse(path.read_text(encoding="utf-8")))
        if private(name)
    }
    assert sorted(found) == []


def test_the_list_knows_private_words() -> None:
    assert private("token_room") and private("begin_with") and private("_told") and not private("bedroom")


def docstrings(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
            yield " ".join(text.split())


def test_no_docstring_speaks_the_private_language() -> None:
    found: list[str] = []
    for path in FILES:
        for text in docstrings(ast.parse(path.read_text(encoding="utf-8"))):
            for allowed in ALLOWED_PHRASES:
                text = text.replace(allowed, "")
            found += [f"{path.relative_to(ROOT)}: {match.group()}" for p in PHRASES for match in re.finditer(p, text)]
    assert sorted(found) == []
