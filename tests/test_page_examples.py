"""The Python examples of README and docs run as they stand, page by page, on models that never learned anything."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import unimodal
from data_pipelines.failures import FailureLog
from data_pipelines.sources.registry import open_source
from tests.oracles.pages import PAGES, blocks, make_places
from tests.oracles.tiny import tiny_bundle
from tests.oracles.tiny_training import ROOT
from unimodal.cli import main
from unimodal.generation import pipeline

WITH_EXAMPLES = [page for page in PAGES if blocks(page, "python")]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_places(tmp_path_factory.mktemp("places"))
    assert main(["export-hf", str(folder / "runs/demo/model"), str(folder / "exported")]) == 0
    return folder


def run_examples(page: Path, places: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a page's examples define, one after the other, in a folder that has all that they open."""
    for place in places.iterdir():
        (folder / place.name).symlink_to(place)
    (folder / "token_space.json").write_bytes((places / "runs/demo/model/token_space.json").read_bytes())
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    for block in blocks(page, "python"):
        exec(compile(block, page.name, "exec"), names)
    return names


def test_there_are_pages_with_examples() -> None:
    names = {page.name for page in WITH_EXAMPLES}
    assert names >= {"README.md", "generation.md", "flow.md", "formats.md", "interop.md"}


@pytest.mark.parametrize("page", WITH_EXAMPLES, ids=lambda page: page.name)
def test_the_examples_of_a_page_run(page: Path, places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = run_examples(page, places, tmp_path, monkeypatch)
    for name in ("picture", "edited"):
        assert isinstance(names.get(name, Image.new("RGB", (1, 1))), Image.Image)
    if page.name == "generation.md":
        assert names["parts"].finish == "end" and names["document"].keys() == {"caption", "image"}
        assert names["answer"] in ("circle", "triangle") and names["number"].isdigit()
        assert type(names["event"]).__name__ == "Ended"
        for score, answer in zip(names["scores"], names["answers"], strict=True):
            torch.testing.assert_close(score, torch.tensor(answer.log_probs), rtol=1e-4, atol=1e-4)
    if page.name == "formats.md":
        assert main(["inspect", "."]) == 0
        assert len(open_source("hf", path=Path("FOLDER"), failures=FailureLog())) == 2


def test_the_public_load_takes_every_setting_that_a_bundle_is_opened_with(tmp_path: Path) -> None:
    """Named in its signature, with the same defaults, and handed on."""
    public, inner = (inspect.signature(load).parameters.values() for load in (unimodal.load, pipeline.load))
    assert [(p.name, p.kind, p.default) for p in public] == [(p.name, p.kind, p.default) for p in inner]
    folder = tiny_bundle(tmp_path / "model")
    plain, half = unimodal.load(folder), unimodal.load(folder, dtype=torch.bfloat16)
    types = [{p.dtype for p in model.model.parameters()} for model in (plain, half)]
    assert types == [{torch.float32}, {torch.bfloat16}]
    own = unimodal.load(folder, packed=False)
    assert own.engine.model is own.model and plain.engine.model is not plain.model
    assert type(unimodal.load(folder, compile=True).engine.forward) is not type(plain.engine.forward)


def test_every_setting_of_load_that_a_page_names_exists() -> None:
    named = set()
    for page in [*PAGES, ROOT / "CHANGELOG.md"]:
        for call in page.read_text(encoding="utf-8").split("load(")[1:]:
            arguments = call.split(")")[0]
            named |= {word.split("=")[0].split()[-1].strip("(…") for word in arguments.split(",") if "=" in word}
    assert {"dtype", "compile"} <= named <= set(inspect.signature(unimodal.load).parameters)
