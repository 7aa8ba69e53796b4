"""What every registered source keeps."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from data_pipelines.failures import FailureLog
from data_pipelines.sources.registry import SOURCES, open_source


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_takes_path_split_and_failures(name: str) -> None:
    assert {"path", "split", "failures"} <= set(inspect.signature(SOURCES[name]).parameters)


@pytest.mark.parametrize("name", SOURCES)
def test_a_path_that_is_not_there_is_one_line(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere") as error:
        list(open_source(name, path=tmp_path / "nowhere", failures=FailureLog()).documents())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", SOURCES)
def test_an_empty_folder_is_one_line_that_names_the_source(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=name) as error:
        list(open_source(name, path=tmp_path, split="nonsense", failures=FailureLog()).documents())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", SOURCES)
def test_an_unknown_option_is_answered_with_those_there_are(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no option 'colour'; its options are"):
        open_source(name, path=tmp_path, colour="red")
