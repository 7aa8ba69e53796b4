"""imagefolder: good rows become documents, each bad row is named with its reason, and the rest goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data_pipelines import documents as documents_module
from data_pipelines.documents import Document, ImageSegment, TextSegment
from data_pipelines.failures import FailureLog, TooMuchDamage
from data_pipelines.sources import open_source
from data_pipelines.sources.files import NOT_READ
from data_pipelines.sources.imagefolder import NO_SPLIT_ROWS, UNMENTIONED, ImageFolder


def write_folder(folder: Path, rows: list[Any], *, pictures: tuple[str, ...] = ("a.png",)) -> Path:
    """`rows` become lines of metadata.jsonl: bytes as they are, anything else as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    for picture in pictures:
        (folder / picture).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (5, 4), "teal").save(folder / picture)
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    (folder / "metadata.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    return folder


def read(folder: Path, *, split: str = "train", limit: float = 1.0) -> tuple[list[Document], FailureLog, ImageFolder]:
    failures = FailureLog(limit=limit)
    source = ImageFolder(path=folder, split=split, failures=failures)
    return list(source.documents()), failures, source


def roles_and_texts(document: Document) -> list[tuple[str, str]]:
    return [(part.role, part.text) for part in document.segments if isinstance(part, TextSegment)]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"text": "a cat"}, [("caption", "a cat")]),
        ({"question": "who?", "answer": "me"}, [("question", "who?"), ("answer", "me")]),
        ({"text": None, "question": ["q"], "answer": ["b"]}, [("question", "q"), ("answer", "b")]),
        (
            {"text": "x", "question": ["q", "r"], "answer": ["1", "2"], "qa": [{"question": "s", "answer": "3"}]},
            [("caption", "x"), *zip(["question", "answer"] * 3, ["q", "1", "r", "2", "s", "3"], strict=True)],
        ),
    ],
)
def test_every_way_to_write_a_row_gives_its_segments(tmp_path: Path, fields: dict, expected: list) -> None:
    documents, failures, _ = read(write_folder(tmp_path, [{"file_name": "a.png", **fields}]))
    assert [roles_and_texts(document) for document in documents] == [expected]
    image = documents[0].segments[0]
    assert isinstance(image, ImageSegment) and isinstance(image.source, Path)
    assert image.open().getpixel((0, 0)) == (0, 128, 128)
    assert documents[0].key == "train-000001"
    assert documents[0].meta == {"layout": "sample", "source": "imagefolder", "split": "train", "file_name": "a.png"}
    assert failures.good == 1 and not failures.bad


BAD_ROWS = [
    (b'{"file_name": "a.png", "text"', "not JSON"),
    (b'{"file_name": "a.png", "text": "caf\xe9"}', "not UTF-8"),
    (b"[" * 100_000, "not JSON"),
    (["a.png", "a cat"], "not a JSON object"),
    ({"text": "a cat"}, "no file_name"),
    ({"file_name": 3, "text": "a cat"}, "file_name is not text"),
    ({"file_name": "b.png", "text": "a cat"}, "missing file"),
    ({"file_name": "../a.png", "text": "a cat"}, "file_name leads out of the folder"),
    ({"file_name": "/etc/hostname", "text": "a cat"}, "file_name leads out of the folder"),
    ({"file_name": "link.png", "text": "a cat"}, "file_name leads out of the folder"),
    ({"file_name": "a\0.png", "text": "a cat"}, "file_name is not a usable path"),
    ({"file_name": "x" * 5000, "text": "a cat"}, "cannot be read (File name too long)"),
    ({"file_name": "", "text": "a cat"}, "cannot be read (Is a directory)"),
    ({"file_name": "a.png", "text": " "}, "empty caption"),
    ({"file_name": "a.png", "text": 7}, "text is not text"),
    (b'{"file_name": "a.png", "text": "\\ud83d"}', "text holds half a character (a lone surrogate)"),
    ({"file_name": "a.png"}, "neither text nor questions"),
    ({"file_name": "a.png", "question": "who?"}, "no answer"),
    ({"file_name": "a.png", "question": "who?", "answer": ""}, "empty answer"),
    (
        {"file_name": "a.png", "question": ["a", "b"], "answer": ["c"]},
        "question and answer are not two strings or two lists of the same length",
    ),
    ({"file_name": "a.png", "qa": ["who?", "me"]}, "qa is not a list of objects with question and answer"),
    ({"file_name": "a.png", "qa": [{"question": "who?"}]}, "no answer"),
    ({"file_name": "empty.png", "text": "a cat"}, "empty file (0 bytes)"),
    ({"file_name": "text.png", "text": "a cat"}, "image: cannot be read as an image (unknown format)"),
    ({"file_name": "large.png", "text": "a cat"}, "image: 30x20 pixels, over 500"),
]


@pytest.mark.parametrize(("row", "reason"), BAD_ROWS, ids=range(len(BAD_ROWS)))
def test_a_bad_row_is_named_with_its_reason_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: Any, reason: str
) -> None:
    monkeypatch.setattr(documents_module, "MAX_IMAGE_PIXELS", 500)
    good = {"file_name": "a.png", "text": "a cat"}
    folder = write_folder(tmp_path / "data", [good, row, good])
    Image.new("RGB", (3, 3)).save(tmp_path / "a.png")
    (folder / "link.png").symlink_to(tmp_path / "a.png")
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("this is not a picture")
    Image.new("RGB", (30, 20)).save(folder / "large.png")
    documents, failures, source = read(folder)
    assert [document.key for document in documents] == ["train-000001", "train-000003"]
    assert [why for _, why in failures.bad] == [reason]
    assert "metadata.jsonl line 2" in failures.bad[0][0]
    assert len(source) == 3 and failures.good == 2


def test_a_picture_cut_short_is_left_out(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, [{"file_name": "cut.jpg", "text": "a"}, {"file_name": "a.png", "text": "b"}])
    Image.effect_noise((64, 64), 50).save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:500])
    documents, failures, _ = read(folder)
    assert len(documents) == 1
    assert failures.bad[0][0] == "cut.jpg (metadata.jsonl line 1)"
    assert "cannot be read as an image" in failures.bad[0][1]


def test_over_the_limit_it_stops(tmp_path: Path) -> None:
    rows = [{"file_name": "a.png", "text": "a"}] * 8 + [{"file_name": "none.png", "text": "a"}]
    folder = write_folder(tmp_path, rows)
    assert len(read(folder, limit=0.2)[0]) == 8
    with pytest.raises(TooMuchDamage, match="1 of 9 samples cannot be used"):
        read(folder, limit=0.1)


def test_pictures_that_no_row_mentions_are_counted(tmp_path: Path) -> None:
    rows = [{"file_name": "a.png", "text": "a"}, {"file_name": "sub/b.png", "text": ""}]
    folder = write_folder(tmp_path, rows, pictures=("a.png", "sub/b.png", "sub/c.png", "d.JPG"))
    (folder / "notes.txt").write_text("not a picture")
    assert read(folder)[2].notes == {UNMENTIONED: 2, f"{NOT_READ} (notes.txt)": 1}


def test_a_byte_order_mark_windows_line_ends_and_blank_lines_do_no_harm(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, [])
    (folder / "metadata.jsonl").write_bytes(b'\xef\xbb\xbf{"file_name": "a.png", "text": "a"}\r\n\r\n')
    documents, failures, _ = read(folder)
    assert len(documents) == 1 and not failures.bad


def test_split_folders_are_used_and_others_are_refused(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_folder(tmp_path / split, [{"file_name": "a.png", "text": split}])
    for split in ("train", "test"):
        documents, _, source = read(tmp_path, split=split)
        assert roles_and_texts(documents[0]) == [("caption", split)]
        assert source.notes == {UNMENTIONED: 0}
    with pytest.raises(ValueError, match="no split 'val'; choose one of test, train"):
        read(tmp_path, split="val")


def test_the_folder_itself_is_the_train_split_beside_split_folders(tmp_path: Path) -> None:
    write_folder(tmp_path, [{"file_name": "a.png", "text": "outer"}])
    write_folder(tmp_path / "test", [{"file_name": "a.png", "text": "inner"}])
    assert roles_and_texts(read(tmp_path, split="train")[0][0]) == [("caption", "outer")]
    assert roles_and_texts(read(tmp_path, split="test")[0][0]) == [("caption", "inner")]
    with pytest.raises(ValueError, match="no split 'val'"):
        read(tmp_path, split="val")


def test_a_folder_without_splits_serves_any_split_and_says_so(tmp_path: Path) -> None:
    documents, _, source = read(write_folder(tmp_path, [{"file_name": "a.png", "text": "a"}]), split="test")
    assert documents[0].key == "test-000001"
    assert source.notes == {NO_SPLIT_ROWS: 1, UNMENTIONED: 0}


def test_missing_paths_are_one_line_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="imagefolder needs a path"):
        open_source("imagefolder", path=None, split="train", failures=FailureLog())
    with pytest.raises(ValueError, match=r"nowhere is not a folder"):
        open_source("imagefolder", path=tmp_path / "nowhere", split="train", failures=FailureLog())
    with pytest.raises(ValueError, match=r"holds no metadata.jsonl"):
        open_source("imagefolder", path=tmp_path, split="train", failures=FailureLog())


def test_fingerprint_follows_rows_and_pictures(tmp_path: Path) -> None:
    row = {"file_name": "a.png", "text": "a"}
    prints = [read(write_folder(tmp_path / name, [row]))[2].fingerprint() for name in ("one", "two")]
    assert prints[0] == prints[1]
    assert read(write_folder(tmp_path / "two", [row, row]))[2].fingerprint() != prints[0]
    assert read(write_folder(tmp_path / "one", [row], pictures=("b.png",)))[2].fingerprint() != prints[0]
