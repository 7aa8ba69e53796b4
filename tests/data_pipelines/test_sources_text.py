"""text: rows and files become documents as they are written, what is wrong is named, and the rest goes on."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from random import Random
from typing import Any

import pytest

from data_pipelines.documents import Document, TextSegment
from data_pipelines.failures import FailureLog, TooMuchDamage
from data_pipelines.shards import read_all
from data_pipelines.sources import open_source
from data_pipelines.sources.rows import NO_SPLIT_FILES
from data_pipelines.templates import TemplateConfig, render
from tests.oracles.pictures import sharp_tokenizer
from unimodal.cli import main


def write_lines(file: Path, rows: list[Any], end: bytes = b"\n") -> Path:
    """Rows are bytes as they are, or anything else as JSON."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + end for row in rows))
    return file


def read(path: Path, split: str = "train", limit: float = 1.0) -> tuple[list[Document], list[tuple[str, str]]]:
    failures = FailureLog(limit=limit)
    documents = list(open_source("text", path=path, split=split, failures=failures).documents())
    assert failures.good == len(documents)
    return documents, failures.bad


def texts(documents: list[Document]) -> list[str]:
    parts = [part for document in documents for part in document.segments]
    assert len(parts) == len(documents)
    return [part.text for part in parts if isinstance(part, TextSegment) and part.role == "text"]


def test_rows_and_files_are_documents_in_the_order_of_names_and_lines(tmp_path: Path) -> None:
    write_lines(tmp_path / "b.jsonl", [{"text": "one", "url": 3}, {"text": " zwei\n"}])
    (tmp_path / "a.v2.txt").write_bytes("first line\n\nthird line é\n".encode())
    (tmp_path / "notes.md").write_text("not read")
    documents, bad = read(tmp_path)
    assert not bad and texts(documents) == ["first line\n\nthird line é\n", "one", " zwei\n"]
    assert [d.key for d in documents] == [
        "train-a_v2_txt-000000001",
        "train-b_jsonl-000000001",
        "train-b_jsonl-000000002",
    ]
    assert documents[2].meta == {"layout": "sample", "source": "text", "split": "train", "file": "b.jsonl", "row": 2}
    assert len(open_source("text", path=tmp_path)) == 3


BAD_ROWS: dict[str, tuple[Any, str]] = {
    "cut short": (b'{"text": "a', "not JSON"),
    "Latin 1": (b'{"text": "caf\xe9"}', "not UTF-8"),
    "too deep": (b"[" * 100_000, "not JSON"),
    "a list": (["a"], "not a JSON object"),
    "a word": (b'"a"', "not a JSON object"),
    "another name": ({"content": "a"}, "no text"),
    "null": ({"text": None}, "no text"),
    "a number": ({"text": 7}, "text is not text"),
    "half a character": (b'{"text": "\\ud83d"}', "text holds half a character (a lone surrogate)"),
    "blank": ({"text": " \n"}, "empty text"),
}


@pytest.mark.parametrize(("row", "reason"), BAD_ROWS.values(), ids=BAD_ROWS.keys())
def test_a_bad_row_is_named_with_its_reason_and_the_rest_goes_on(tmp_path: Path, row: Any, reason: str) -> None:
    file = write_lines(tmp_path / "rows.jsonl", [{"text": "before"}, row, {"text": "after"}])
    documents, bad = read(file)
    assert texts(documents) == ["before", "after"] and bad == [("rows.jsonl row 2", reason)]
    assert documents[1].meta["row"] == 3 and len(open_source("text", path=file)) == 3


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "empty text"), (b"\n \n", "empty text"), (b"\xff\xfea", "not UTF-16, as its byte order mark says")],
)
def test_a_bad_text_file_is_named_and_the_others_are_read(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    (tmp_path / "b.txt").write_text("good")
    documents, bad = read(tmp_path)
    assert texts(documents) == ["good"] and bad == [("a.txt row 1", reason)]


def test_a_byte_order_mark_windows_line_ends_and_blank_lines_do_no_harm(tmp_path: Path) -> None:
    rows = [b'\xef\xbb\xbf{"text": "a"}', b"", b"  ", {"text": "\u2028b"}]
    (tmp_path / "y.txt").write_bytes(b"\xef\xbb\xbfc")
    write_lines(tmp_path / "x.jsonl", rows, end=b"\r\n")
    documents, bad = read(tmp_path)
    assert not bad and texts(documents) == ["a", "\u2028b", "c"]
    assert [document.meta["row"] for document in documents] == [1, 4, 1]


def test_a_file_that_cannot_be_read_is_named_and_the_others_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_lines(tmp_path / "a.jsonl", [{"text": "a"}])
    write_lines(tmp_path / "b.jsonl", [{"text": "b"}])
    source = open_source("text", path=tmp_path, failures=(failures := FailureLog(limit=1)))
    (tmp_path / "a.jsonl").unlink()
    assert texts(list(source.documents())) == ["b"]
    assert failures.bad == [("a.jsonl", "cannot be read (No such file or directory)")]


def test_over_the_limit_it_stops(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "rows.jsonl", [{"text": "a"}] * 8 + [{"text": ""}])
    assert len(read(file, limit=0.2)[0]) == 8
    with pytest.raises(TooMuchDamage, match=r"1 of 9 samples cannot be used.*rows.jsonl row 9: empty text"):
        read(file, limit=0.1)


def test_split_folders_are_used_and_others_are_refused(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_lines(tmp_path / split / "0.jsonl", [{"text": split}])
    (tmp_path / "empty").mkdir()
    for split in ("train", "test"):
        assert texts(read(tmp_path, split)[0]) == [split]
        assert not open_source("text", path=tmp_path, split=split).notes
    with pytest.raises(ValueError, match="no split 'val'; choose one of test, train"):
        open_source("text", path=tmp_path, split="val")
    write_lines(tmp_path / "outer.jsonl", [{"text": "outer"}])
    (tmp_path / "train" / "0.jsonl").unlink()
    assert texts(read(tmp_path, "train")[0]) == ["outer"]
    with pytest.raises(ValueError, match="no split 'val'; choose one of test"):
        open_source("text", path=tmp_path, split="val")


def test_a_folder_or_file_without_splits_serves_any_split_and_says_so(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "rows.JSONL", [{"text": "a"}])
    for path in (tmp_path, file):
        assert texts(read(path, "val")[0]) == ["a"]
        assert open_source("text", path=path, split="val").notes == {NO_SPLIT_FILES: 1}
        assert not open_source("text", path=path, split="train").notes


def test_missing_paths_are_one_line_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "a.md").touch()
    reasons = {
        None: "needs a path: a .jsonl, .txt or .parquet file",
        tmp_path: "holds no .jsonl, .txt or .parquet file",
    }
    for path, reason in {**reasons, tmp_path / "a.md": "is not a folder", tmp_path / "none": "is not a folder"}.items():
        with pytest.raises(ValueError, match=reason) as refused:
            open_source("text", path=path)
        assert "\n" not in str(refused.value)


def test_the_fingerprint_follows_names_and_bytes_but_not_the_place(tmp_path: Path) -> None:
    files = [write_lines(tmp_path / name, [{"text": "a"}]) for name in ("one/x.jsonl", "two/x.jsonl", "three/y.jsonl")]
    prints = [open_source("text", path=file.parent).fingerprint() for file in files]
    assert prints[0] == prints[1] != prints[2]
    write_lines(files[1], [{"text": "b"}])
    assert open_source("text", path=files[1]).fingerprint() != prints[0]


@pytest.mark.parametrize(("version", "found"), [(None, "is not there"), ("14.0.0", "is here in version 14.0.0")])
def test_parquet_without_a_pyarrow_that_loads_no_pickle_names_the_package_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str | None, found: str
) -> None:
    def installed(name: str) -> str:
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(importlib.metadata, "version", installed)
    (tmp_path / "a.parquet").touch()
    with pytest.raises(ValueError, match=rf"a\.parquet takes pyarrow, which {found}: pip install 'pyarrow>=15'"):
        open_source("text", path=tmp_path)


def test_parquet_rows_are_read_and_bad_ones_named(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = {"text": ["one", None, "", "four"], "id": [1, 2, 3, 4]}
    parquet.write_table(pyarrow.table(rows), tmp_path / "b.parquet")
    parquet.write_table(pyarrow.table({"id": [1]}), tmp_path / "c.parquet")
    parquet.write_table(pyarrow.table({"text": [1]}), tmp_path / "d.parquet")
    invalid = pyarrow.Array.from_buffers(
        pyarrow.string(), 1, [None, pyarrow.py_buffer(b"\0\0\0\0\1\0\0\0"), pyarrow.py_buffer(b"\xff")]
    )
    parquet.write_table(pyarrow.table({"text": invalid}), tmp_path / "e.parquet")
    (tmp_path / "a.parquet").write_bytes((tmp_path / "b.parquet").read_bytes()[:-20])
    documents, bad = read(tmp_path)
    assert texts(documents) == ["one", "four"] and documents[1].key == "train-b_parquet-000000004"
    assert [name for name, _ in bad[:1]] == ["a.parquet"] and "damaged after row 0" in bad[0][1]
    assert bad[1:] == [
        *[("b.parquet row 2", "no text"), ("b.parquet row 3", "empty text"), ("c.parquet", "no column 'text'")],
        *[("d.parquet row 1", "text is not text"), ("e.parquet row 1", "not UTF-8")],
    ]
    assert len(open_source("text", path=tmp_path)) == 6


def test_text_is_tokenized_and_told_whole_with_every_token_learnt(tmp_path: Path) -> None:
    rows = [{"text": f"Zeile {number}:\n  größer als {number - 1}"} for number in range(20)]
    write_lines(tmp_path / "data" / "rows.jsonl", [*rows, {"text": ""}])
    sharp_tokenizer().save(tmp_path / "codes")
    paths = ["--path", tmp_path / "data", "--image-tokenizer", tmp_path / "codes", "--out", tmp_path / "shards"]
    assert main(["tokenize", "--source", "text", *map(str, paths)]) == 0
    space, documents = read_all(tmp_path / "shards")
    assert [document.meta["row"] for document in documents] == list(range(1, 21))
    rendered = render(documents[7], space, TemplateConfig(), Random(0))
    assert list(rendered.ids) == [space.specials.bos, *documents[7].segments[0].ids, space.specials.eos]
    assert list(rendered.weights) == [0, *[1] * (len(rendered) - 1)]
