"""hf: what datasets saved becomes documents, nothing is decoded or written on the way, and damage is named."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import ImageFile

from data_pipelines.documents import Document, ImageSegment, TextSegment
from data_pipelines.failures import FailureLog, TooMuchDamage
from data_pipelines.shards import read_all
from data_pipelines.sources import open_source
from data_pipelines.sources.hf import OTHER_SPLIT, UNANSWERED
from tests.oracles.pictures import noise, sharp_tokenizer
from unimodal.cli import main


def encoded(seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    noise(24, 16, seed=seed).save(buffer, "PNG")
    return buffer.getvalue()


def held(seed: int = 0) -> dict[str, Any]:
    """A picture as a struct of Hugging Face holds it."""
    return {"bytes": encoded(seed), "path": None}


def save(folder: Path, rows: dict[str, list[Any]], pictures: str = "", **options: Any) -> Path:
    """`pictures` names a column of the Image feature."""
    datasets = pytest.importorskip("datasets")
    dataset = datasets.Dataset.from_dict(rows, **options)
    if pictures:
        feature = datasets.Image()
        nested = isinstance(next(iter(rows[pictures]), None), list)
        features = datasets.Features({**dataset.features, pictures: datasets.List(feature) if nested else feature})
        dataset = datasets.Dataset.from_dict(rows, features=features, **options)
    dataset.save_to_disk(str(folder))
    return folder


def read(
    path: Path, split: str = "train", limit: float = 1.0, **options: Any
) -> tuple[list[Document], list[tuple[str, str]]]:
    failures = FailureLog(limit=limit)
    source = open_source("hf", path=path, split=split, failures=failures, **options)
    documents = list(source.documents())
    assert failures.good == len(documents) and len(source) == failures.good + len(failures.bad)
    return documents, failures.bad


def told(document: Document) -> list[tuple[str, str]]:
    """Roles and texts; a picture is its size."""
    return [
        (part.role, part.text if isinstance(part, TextSegment) else "x".join(map(str, part.open().size)))
        for part in document.segments
    ]


SHOWN = ("image", "24x16")


def test_without_datasets_the_message_names_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"the package datasets, which is not there: pip install 'unimodal\[hf\]'"):
        open_source("hf", path=tmp_path)


@pytest.mark.parametrize("feature", ["image", ""], ids=["Image feature", "struct"])
@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"text": "a cat"}, [("caption", "a cat")]),
        ({"caption": "a cat", "id": 7}, [("caption", "a cat")]),
        ({"captions": ["a cat", "ein Kätzchen"]}, [("caption", "a cat"), ("caption", "ein Kätzchen")]),
        ({"question": "who?", "answer": "me"}, [("question", "who?"), ("answer", "me")]),
        (
            {"text": "x", "question": ["q", "r"], "answer": ["1", "2"]},
            [("caption", "x"), ("question", "q"), ("answer", "1"), ("question", "r"), ("answer", "2")],
        ),
    ],
    ids=["text", "caption", "captions", "question", "questions and text"],
)
def test_a_picture_comes_with_its_captions_and_questions(
    tmp_path: Path, feature: str, columns: dict[str, Any], expected: list[tuple[str, str]]
) -> None:
    rows = {"image": [held(), held()], **{name: [value, value] for name, value in columns.items()}}
    documents, bad = read(save(tmp_path / "data", rows, feature))
    assert not bad and [told(document) for document in documents] == [[SHOWN, *expected]] * 2
    assert isinstance(documents[0].segments[0], ImageSegment) and documents[0].segments[0].source == encoded()
    assert documents[1].key == "train-000000001"
    assert documents[1].meta == {"layout": "sample", "source": "hf", "split": "train", "row": 1}


@pytest.mark.parametrize("objects", [False, True])
def test_of_several_answers_the_most_frequent_is_learnt_and_all_are_kept(tmp_path: Path, objects: bool) -> None:
    given = [["no", "yes", "yes"], ["two"]]
    answers = [[{"answer": one, "confidence": "yes"} for one in each] for each in given] if objects else given
    rows = {"image": [held()] * 2, "question": ["is it?", "how many?"], "answers": answers}
    documents, bad = read(save(tmp_path / "data", rows))
    assert not bad and told(documents[0]) == [SHOWN, ("question", "is it?"), ("answer", "yes")]
    assert told(documents[1])[2] == ("answer", "two") and "answers" not in documents[1].meta
    assert documents[0].meta["answers"] == [["no", "yes", "yes"]]


def test_text_alone_is_one_segment_as_it_is_written(tmp_path: Path) -> None:
    documents, bad = read(save(tmp_path / "data", {"text": [" one\n", None, "zwei"], "url": [1, 2, 3]}))
    assert [told(document) for document in documents] == [[("text", " one\n")], [("text", "zwei")]]
    assert bad == [("hf train row 1", "no text")] and documents[1].meta["row"] == 2


@pytest.mark.parametrize("feature", ["images", ""], ids=["Image feature", "struct"])
def test_interleaved_columns_keep_their_order_and_damage_is_named_with_its_place(tmp_path: Path, feature: str) -> None:
    rows = {
        "texts": [["one", None, "two"], [None, "a"], ["b"], ["c", None]],
        "images": [[None, held(), None], [held(), held()], [None, held()], [None, {"bytes": b"x", "path": None}]],
    }
    documents, bad = read(save(tmp_path / "data", rows, feature))
    assert [told(document) for document in documents] == [[("text", "one"), SHOWN, ("text", "two")]]
    assert documents[0].meta["layout"] == "interleaved"
    assert bad == [
        ("hf train row 1 index 1", "a text and an image at once"),
        ("hf train row 2", "texts and images are not of the same length"),
        ("hf train row 3 index 1", "not an image, or of an unknown format"),
    ]


BAD_ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "no image": ({"image": None}, "no image"),
    "an empty struct": ({"image": {"bytes": None, "path": None}}, "neither a path nor the bytes of an image"),
    "a broken image": ({"image": {"bytes": b"not an image", "path": None}}, "not an image, or of an unknown format"),
    "a missing image": ({"image": {"bytes": None, "path": "none.png"}}, "missing file"),
    "an image elsewhere": ({"image": {"bytes": None, "path": "/etc/hostname"}}, "path leads out of the folder"),
    "a URL": ({"image": {"bytes": None, "path": "https://a.b/c.png"}}, "is a URL; download the images first"),
    "nothing said": ({"captions": None}, "neither text nor questions"),
    "no captions": ({"captions": []}, "neither text nor questions"),
    "a blank caption": ({"captions": ["a", " "]}, "empty caption"),
    "a null caption": ({"captions": ["a", None]}, "no text"),
    "no answer": ({"question": ["who?"]}, "question and answer are not lists of the same length"),
    "an answer too many": ({"question": ["q"], "answer": ["a", "b"]}, "question and answer are not lists of the same"),
    "a null answer": ({"question": ["q"], "answer": [None]}, "no answer"),
}


@pytest.mark.parametrize(("changes", "reason"), BAD_ROWS.values(), ids=BAD_ROWS.keys())
def test_a_bad_row_is_named_with_its_reason_and_the_rest_goes_on(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    good = {"image": held(), "captions": ["a cat"], "question": None, "answer": None}
    asked = {**good, "question": ["who?"], "answer": ["me"]}
    rows = {name: [asked[name], {**good, **changes}[name], good[name]] for name in good}
    documents, bad = read(save(tmp_path / "data", rows))
    assert [document.meta["row"] for document in documents] == [0, 2]
    assert [name for name, _ in bad] == ["hf train row 1"] and bad[0][1].startswith(reason)


def test_text_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    datasets, pyarrow = pytest.importorskip("datasets"), pytest.importorskip("pyarrow")
    invalid = pyarrow.Array.from_buffers(
        pyarrow.string(), 2, [None, pyarrow.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pyarrow.py_buffer(b"\xffa")]
    )
    datasets.Dataset(pyarrow.table({"text": invalid})).save_to_disk(str(tmp_path / "data"))
    documents, bad = read(tmp_path / "data")
    assert [told(document) for document in documents] == [[("text", "a")]]
    assert bad == [("hf train row 0", "not UTF-8")]


def test_over_the_limit_it_stops(tmp_path: Path) -> None:
    folder = save(tmp_path / "data", {"text": ["a"] * 8 + [""]})
    assert len(read(folder, limit=0.2)[0]) == 8
    with pytest.raises(TooMuchDamage, match=r"1 of 9 samples cannot be used.*hf train row 8: empty text"):
        read(folder, limit=0.1)


def test_splits_are_chosen_by_name_and_a_folder_without_them_serves_any_and_says_so(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    halves = {split: datasets.Dataset.from_dict({"text": [split]}) for split in ("train", "test")}
    datasets.DatasetDict(halves).save_to_disk(str(tmp_path / "both"))
    for split in halves:
        assert told(read(tmp_path / "both", split)[0][0]) == [("text", split)]
        assert not open_source("hf", path=tmp_path / "both", split=split).notes
    with pytest.raises(ValueError, match="has no split 'val'; choose one of train, test"):
        open_source("hf", path=tmp_path / "both", split="val")
    alone = save(tmp_path / "alone", {"text": ["a"]})
    tested = save(tmp_path / "tested", {"text": ["a"]}, split=datasets.NamedSplit("test"))
    notes = [open_source("hf", path=path, split=s).notes for path in (alone, tested) for s in ("train", "test")]
    assert notes == [{}, {OTHER_SPLIT: 1}, {OTHER_SPLIT: 1}, {}]


def test_columns_of_other_names_are_options(tmp_path: Path) -> None:
    names = ("image_column", "text_column", "question_column", "answer_column")
    options: dict[str, Any] = dict(zip(names, ["jpg", "alt", "asked", "said"], strict=True))
    rows = {"jpg": [held()], "alt": ["a cat"], "asked": ["who?"], "said": ["me"], "text": ["not read"]}
    documents, bad = read(save(tmp_path / "sample", rows), **options)
    assert not bad
    assert told(documents[0]) == [SHOWN, ("caption", "a cat"), ("question", "who?"), ("answer", "me")]
    page = save(tmp_path / "page", {"runs": [["a", None]], "shown": [[None, held()]], "text": ["b"]})
    assert told(read(page, texts_column="runs", images_column="shown")[0][0]) == [("text", "a"), SHOWN]
    assert told(read(page)[0][0]) == [("text", "b")]


def test_columns_that_are_not_there_or_make_no_documents_are_refused_with_those_that_are(tmp_path: Path) -> None:
    folder = save(tmp_path / "data", {"image": [held()], "label": [3], "question": ["which?"]})
    with pytest.raises(ValueError, match="no column 'alt' to be the text_column; its columns are: image, label, quest"):
        open_source("hf", path=folder, text_column="alt")
    with pytest.raises(ValueError, match=r"takes columns of .*; its columns are: image, label, question; other names"):
        open_source("hf", path=folder)
    with pytest.raises(ValueError, match="source hf has no option 'audio_column'"):
        open_source("hf", path=folder, audio_column="a")


def test_questions_without_a_column_of_answers_are_counted(tmp_path: Path) -> None:
    folder = save(tmp_path / "data", {"image": [held()], "text": ["a cat"], "question": ["which?"]})
    assert open_source("hf", path=folder).notes == {UNANSWERED: 1}
    assert told(read(folder)[0][0]) == [SHOWN, ("caption", "a cat")]


def test_a_folder_that_is_missing_or_damaged_is_one_line(tmp_path: Path) -> None:
    folder = save(tmp_path / "data", {"text": ["a"] * 1000})
    arrow = next(folder.glob("*.arrow"))
    arrow.write_bytes(arrow.read_bytes()[:500])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="hf needs a path"):
        open_source("hf")
    for path in (folder, tmp_path / "empty", tmp_path / "none"):
        with pytest.raises(ValueError, match=rf"{path.name} is not a whole folder of save_to_disk") as refused:
            open_source("hf", path=path)
        assert "\n" not in str(refused.value)


def test_the_fingerprint_follows_the_rows_and_the_columns_but_not_the_place(tmp_path: Path) -> None:
    rows = {"text": ["a"], "caption": ["a"]}
    one, two = (save(tmp_path / name, rows) for name in ("one", "two"))
    other = save(tmp_path / "other", {**rows, "text": ["b"]})
    prints = [open_source("hf", path=path).fingerprint() for path in (one, two, other)]
    assert prints[0] == prints[1] != prints[2]
    assert open_source("hf", path=one, text_column="caption").fingerprint() != prints[0]


@pytest.mark.parametrize("column", ["image", "images"])
def test_reading_decodes_no_picture_and_writes_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, column: str
) -> None:
    rows = {"text": ["a cat"], "image": [held()]} if column == "image" else {"texts": [[None]], "images": [[held()]]}
    folder = save(tmp_path / "data", rows, column)
    files = sorted(folder.rglob("*"))
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda picture: pytest.fail("a picture was decoded"))
    documents, bad = read(folder)
    assert len(documents) == 1 and not bad and sorted(folder.rglob("*")) == files


def test_it_is_tokenized_and_an_image_cut_short_is_left_out(tmp_path: Path) -> None:
    pictures = [held(seed) for seed in range(11)]
    pictures[4]["bytes"] = pictures[4]["bytes"][:200]
    rows = {"image": pictures, "text": [f"picture {number}" for number in range(11)]}
    save(tmp_path / "data", rows, "image")
    sharp_tokenizer().save(tmp_path / "codes")
    paths = ["--path", tmp_path / "data", "--image-tokenizer", tmp_path / "codes", "--out", tmp_path / "shards"]
    assert main(["tokenize", "--source", "hf", *map(str, paths)]) == 0
    _, documents = read_all(tmp_path / "shards")
    assert [document.meta["row"] for document in documents] == [0, 1, 2, 3, 5, 6, 7, 8, 9, 10]
