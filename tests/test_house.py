"""The whole repository: everything imports, every config parses, what the README promises exists."""

from __future__ import annotations

import ast
import importlib
import re
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("unimodal", "tokenizers_vq", "data_pipelines")
MODULES = sorted(path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
PYTHON = [*MODULES, Path("train.py"), *(path.relative_to(ROOT) for path in sorted(ROOT.glob("tests/**/*.py")))]
CONFIGS = sorted(path.relative_to(ROOT) for path in (ROOT / "configs").rglob("*.yaml"))
NAMES_WITHOUT_AN_IDEA = {"utils.py", "helpers.py", "common.py", "misc.py"}
LONGEST_MODULE = 300


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_every_module_imports(path: Path) -> None:
    name = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
    assert importlib.import_module(name).__name__ == name


@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_every_config_parses_and_its_header_gives_the_command(path: Path) -> None:
    text = (ROOT / path).read_text(encoding="utf-8")
    assert isinstance(yaml.safe_load(text), dict)
    header = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    assert f"--config {path.as_posix()}" in header


def test_the_configs_and_pages_that_the_readme_names_exist() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"--config (\S+)", text)) | set(re.findall(r"\]\(([^):#]+)\)", text))
    assert named
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_the_version_is_said_once_and_the_same() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert importlib.import_module("unimodal").__version__ == project["version"]


def test_constraints_pin_what_the_project_needs_and_nothing_of_one_machine() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line)] == []
    pinned = {normal(line.split("==")[0]) for line in lines}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    assert {normal(re.split(r"[\[><=]", need)[0]) for need in needed} <= pinned


def normal(name: str) -> str:
    """A package name as the index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.slow
def test_every_file_opens_with_its_one_job() -> None:
    trees = {path: ast.parse((ROOT / path).read_text(encoding="utf-8")) for path in PYTHON}
    assert [str(path) for path, tree in trees.items() if tree.body and not ast.get_docstring(tree)] == []


TWICE = {"load", "main", "run", "log", "evaluate", "MAX_NEW_TOKENS", "NUM_EXAMPLES"}
"""Public names that several files may define: entry points of commands and tasks, loggers, and settings of one task."""


def test_no_public_name_is_defined_twice() -> None:
    found: dict[str, set[str]] = {}
    for path in MODULES:
        for node in ast.parse((ROOT / path).read_text(encoding="utf-8")).body:
            names = [node.name] if isinstance(node, ast.FunctionDef | ast.ClassDef) else []
            if isinstance(node, ast.Assign):
                names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            for name in names:
                found.setdefault(name, set()).add(str(path))
    public = {name: places for name, places in found.items() if not name.startswith("_") and name not in TWICE}
    assert {name: sorted(places) for name, places in public.items() if len(places) > 1} == {}


def test_functions_are_short_and_take_few_arguments() -> None:
    """60 lines; eight arguments outside of what a config or a user's call fills in."""
    long, wide = [], []
    for path in MODULES:
        for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                count = sum(argument.arg not in ("self", "cls") for argument in arguments)
                long += [f"{path}: {node.name}"] if lines > 60 else []
                wide += [f"{path}: {node.name}"] if count > 8 and node.name not in ("__init__", "generate") else []
    assert (long, wide) == ([], [])


def test_no_file_is_named_after_nothing_and_none_is_overlong() -> None:
    assert [path for path in PYTHON if path.name in NAMES_WITHOUT_AN_IDEA] == []
    lengths = {path: len((ROOT / path).read_text(encoding="utf-8").splitlines()) for path in MODULES}
    assert {path: length for path, length in lengths.items() if length > LONGEST_MODULE} == {}


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Imports for type checkers count as well; those inside functions do not."""
    names = {".".join(path.with_suffix("").parts).removesuffix(".__init__"): path for path in MODULES}
    graph = {name: imported_modules(ROOT / path, names.keys()) - {name} for name, path in names.items()}
    assert sum(map(len, graph.values())) > 500
    assert circles(graph) == []


def imported_modules(path: Path, known: Collection[str]) -> set[str]:
    """The modules of ours that a file imports when it is imported or type-checked."""
    found: set[str] = set()
    nodes: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inner if inner & set(known) else {node.module}
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            nodes += ast.iter_child_nodes(node)
    return {name for name in found if name in known}


def circles(graph: Mapping[str, Collection[str]]) -> list[str]:
    """What is left when modules at either end of all paths are taken away again and again."""
    left = {name: set(imports) for name, imports in graph.items()}
    while True:
        imported = set().union(*left.values())
        gone = {name for name, imports in left.items() if not imports or name not in imported}
        if not gone:
            return sorted(left)
        left = {name: imports - gone for name, imports in left.items() if name not in gone}


def test_nothing_is_left_to_do_and_no_test_is_left_out() -> None:
    """Words are put together here so that this file does not name them itself."""
    unfinished = re.compile(
        "|".join(["TO" + "DO", "FIX" + "ME", "XX" + "X", r"mark\." + "skip", r"pytest\." + r"skip\("])
    )
    found = [path for path in PYTHON if unfinished.search((ROOT / path).read_text(encoding="utf-8"))]
    assert found == []


def test_files_name_no_machine_and_hold_only_utf8() -> None:
    pages = [
        *ROOT.glob("docs/*.md"),
        ROOT / "README.md",
        ROOT / "CHANGELOG.md",
        ROOT / "pyproject.toml",
        ROOT / "Makefile",
    ]
    for path in [*pages, *(ROOT / name for name in [*PYTHON, *CONFIGS])]:
        text = path.read_bytes().decode("utf-8")
        assert not re.search(r"(?<![\w.])/(?:home|root|work|Users)/\w", text), f"{path} names a place on one machine"
        assert "\r" not in text, f"{path} has Windows line ends"
