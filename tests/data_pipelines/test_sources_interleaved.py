"""interleaved: rows of OBELICS and MMC4 keep their reading order, what is wrong is named, and the rest goes on."""

from __future__ import annotations

import io
import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
from PIL import Image

from data_pipelines.documents import Document, ImageSegment, TextSegment
from data_pipelines.failures import FailureLog, TooMuchDamage
from data_pipelines.shards import read_all
from data_pipelines.sources import open_source
from data_pipelines.sources.rows import NO_SPLIT_FILES
from data_pipelines.templates import TemplateConfig, render
from tests.oracles.pictures import sharp_tokenizer
from unimodal.cli import main

COLOURS = ("red", "lime", "blue")


def encoded(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (5, 4), colour).save(buffer, "PNG")
    return buffer.getvalue()


def write(folder: Path, *rows: Any, name: str = "rows.jsonl", images: str = "") -> Path:
    """Rows are bytes as they are, or anything else as JSON; pictures lie beside them, or in the folder `images`."""
    (folder / images).mkdir(parents=True, exist_ok=True)
    for colour in COLOURS:
        (folder / images / f"{colour}.png").write_bytes(encoded(colour))
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    (folder / name).write_bytes(b"\n".join(lines) + b"\n")
    return folder


def read(path: Path, split: str = "train", limit: float = 1.0) -> tuple[list[Document], list[tuple[str, str]]]:
    failures = FailureLog(limit=limit)
    documents = list(open_source("interleaved", path=path, split=split, failures=failures).documents())
    assert failures.good == len(documents)
    return documents, failures.bad


def parts(document: Document) -> list[str]:
    """Texts as they are, pictures by their colour in brackets."""
    names = {(255, 0, 0): "[red]", (0, 255, 0): "[lime]", (0, 0, 255): "[blue]"}
    assert {(type(part), part.role) for part in document.segments} <= {(TextSegment, "text"), (ImageSegment, "image")}
    return [
        part.text if isinstance(part, TextSegment) else names[part.open().getpixel((0, 0))]  # type: ignore[index]
        for part in document.segments
    ]


def obelics(*texts_and_images: str) -> dict[str, Any]:
    """A row of what is said in turn: `*.png` and URLs are images."""
    is_image = ["." in part for part in texts_and_images]
    texts = [None if picture else part for part, picture in zip(texts_and_images, is_image, strict=True)]
    images = [part if picture else None for part, picture in zip(texts_and_images, is_image, strict=True)]
    return {"texts": texts, "images": images, "metadata": "[]"}


def mmc4(*texts: str, **images: int) -> dict[str, Any]:
    """A row of sentences, and of images with the number of the sentence each matches."""
    infos = [{"image_name": f"{name}.png", "matched_text_index": place} for name, place in images.items()]
    return {"text_list": list(texts), "image_info": infos, "similarity_matrix": [[0.5]]}


def test_a_row_of_obelics_keeps_its_order_and_texts_in_a_row_are_paragraphs(tmp_path: Path) -> None:
    rows = obelics("red.png", "one", " two\n", "lime.png", "blue.png", "three"), obelics("no image")
    documents, bad = read(write(tmp_path, *rows))
    assert not bad
    assert parts(documents[0]) == ["[red]", "one\n\n two\n", "[lime]", "[blue]", "three"]
    assert parts(documents[1]) == ["no image"]
    assert [document.key for document in documents] == ["train-rows_jsonl-000000001", "train-rows_jsonl-000000002"]
    where = {"source": "interleaved", "split": "train", "file": "rows.jsonl", "row": 2}
    assert documents[1].meta == {"layout": "interleaved", **where}
    assert len(open_source("interleaved", path=tmp_path)) == 2


@pytest.mark.parametrize("images", ["images", ""])
def test_an_image_of_mmc4_stands_before_its_sentence_and_lies_in_images_or_beside_the_file(
    tmp_path: Path, images: str
) -> None:
    rows = mmc4("One.", "Two.", "Three.", blue=2, red=0, lime=2), mmc4("Only", "text.")
    documents, bad = read(write(tmp_path, *rows, images=images))
    assert not bad
    assert parts(documents[0]) == ["[red]", "One. Two.", "[blue]", "[lime]", "Three."]
    assert parts(documents[1]) == ["Only text."]


def test_the_form_of_a_row_is_told_by_its_fields_alone(tmp_path: Path) -> None:
    nulls = {"texts": None, "images": None}
    rows = obelics("a", "red.png"), {**mmc4("b", red=0), **nulls}, {**mmc4("c"), **obelics("c")}, {"text": "d"}, nulls
    documents, bad = read(write(tmp_path, *rows, name="obelics.jsonl"))
    assert [parts(document) for document in documents] == [["a", "[red]"], ["[red]", "b"]]
    forms = "texts with images {} text_list with image_info"
    assert [reason for _, reason in bad] == [f"both {forms.format('and')}", *[f"neither {forms.format('nor')}"] * 2]


AT_ONCE, NEITHER = "a text and an image at once", "neither a text nor an image"
URL_REASON = "is a URL; download the images first, e.g. with img2dataset"
BAD_ROWS: dict[str, tuple[Any, str, str]] = {
    "cut short": (b'{"texts": ["a"', "", "not JSON"),
    "Latin 1": (b'{"texts": ["caf\xe9"], "images": [null]}', "", "not UTF-8"),
    "a list": (["a"], "", "not a JSON object"),
    "unequal lists": ({"texts": ["a", "b"], "images": [None]}, "", "texts and images are not of the same length"),
    "no images": ({"texts": ["a"]}, "", "no images"),
    "no list": ({"texts": "a", "images": [None]}, "", "texts is not a list"),
    "both": ({"texts": ["a", "b"], "images": [None, "red.png"]}, " index 1", AT_ONCE),
    "neither": ({"texts": ["a", None], "images": [None, None]}, " index 1", NEITHER),
    "empty": ({"texts": [], "images": []}, "", "an empty row"),
    "blank text": (obelics("red.png", " "), " index 1", "empty text"),
    "a number for a text": ({"texts": [7], "images": [None]}, " index 0", "text is not text"),
    "half a character": (b'{"texts": ["\\ud83d"], "images": [null]}', " index 0", "text holds half a character"),
    "a URL": (obelics("a", "http://example.org/cat.jpg"), " index 1", URL_REASON),
    "missing": (obelics("a", "none.png"), " index 1", "missing file"),
    "out by dots": (obelics("../outside.png"), " index 0", "path leads out of the folder"),
    "absolute": ({"texts": [None], "images": ["/etc/hostname"]}, " index 0", "path leads out of the folder"),
    "out by a link": (obelics("link.png"), " index 0", "path leads out of the folder"),
    "no path": (obelics("a\0.png"), " index 0", "path is not a usable path"),
    "overlong": (obelics("a" * 5000 + ".png"), " index 0", "cannot be read as an image (File name too long)"),
    "a folder": ({"texts": [None], "images": [""]}, " index 0", "cannot be read as an image (Is a directory)"),
    "no image": (obelics("a", "text.png"), " index 1", "not an image, or of an unknown format"),
    "an empty file": (obelics("empty.png"), " index 0", "not an image, or of an unknown format"),
    "a number for an image": (
        {"texts": [None], "images": [3]},
        " index 0",
        "neither a path nor the bytes of an image",
    ),
    "no image_info": ({"text_list": ["a"]}, "", "no image_info"),
    "empty MMC4": (mmc4(), "", "an empty row"),
    "past the end": (mmc4("a", "b", red=1, lime=2), " image_info[1]", "matched_text_index is out of range"),
    "before the start": (mmc4("a", red=-1), " image_info[0]", "matched_text_index is out of range"),
    "no number": (
        {"text_list": ["a"], "image_info": [{"image_name": "red.png", "matched_text_index": "0"}]},
        " image_info[0]",
        "matched_text_index is not a whole number",
    ),
    "no object": ({"text_list": ["a"], "image_info": ["red.png"]}, " image_info[0]", "not a JSON object"),
    "no name": (
        {"text_list": ["a"], "image_info": [{"matched_text_index": 0}]},
        " image_info[0]",
        "no image_name",
    ),
    "missing in MMC4": (mmc4("a", none=0), " image_info[0]", "missing file"),
    "overlong in MMC4": (mmc4("a", **{"a" * 5000: 0}), " image_info[0]", "cannot be read as an image (File name"),
    "out of MMC4": (mmc4("a", **{"../outside": 0}), " image_info[0]", "path leads out of the folder"),
    "out of images": (mmc4("a", **{"../red": 0}), " image_info[0]", "path leads out of the folder"),
    "blank sentence": (mmc4("a", ""), " text_list[1]", "empty text"),
}


@pytest.mark.parametrize(("row", "place", "reason"), BAD_ROWS.values(), ids=BAD_ROWS.keys())
def test_a_bad_row_is_named_with_its_place_and_reason_and_the_rest_goes_on(
    tmp_path: Path, row: Any, place: str, reason: str
) -> None:
    folder = write(tmp_path / "data", obelics("before"), row, mmc4("after", red=0))
    (tmp_path / "outside.png").write_bytes(encoded("red"))
    (folder / "images").mkdir()
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    (folder / "text.png").write_text("this is not an image")
    (folder / "empty.png").touch()
    documents, bad = read(folder)
    assert [parts(document) for document in documents] == [["before"], ["[red]", "after"]]
    assert [name for name, _ in bad] == [f"rows.jsonl row 2{place}"] and bad[0][1].startswith(reason)
    assert documents[1].meta["row"] == 3 and len(open_source("interleaved", path=folder)) == 3


def test_over_the_limit_it_stops(tmp_path: Path) -> None:
    folder = write(tmp_path, *[obelics("a", "red.png")] * 8, obelics("none.png"))
    assert len(read(folder, limit=0.2)[0]) == 8
    with pytest.raises(TooMuchDamage, match=r"1 of 9 samples cannot be used.*rows.jsonl row 9 index 0: missing file"):
        read(folder, limit=0.1)


def test_split_folders_are_used_with_their_own_images(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write(tmp_path / split, obelics(split, "red.png"))
        documents, bad = read(tmp_path, split)
        assert not bad and parts(documents[0]) == [split, "[red]"]
    with pytest.raises(ValueError, match=r"interleaved: .* has no split 'val'; choose one of test, train"):
        open_source("interleaved", path=tmp_path, split="val")
    assert open_source("interleaved", path=tmp_path / "train", split="val").notes == {NO_SPLIT_FILES: 1}


def test_missing_paths_are_one_line_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"interleaved needs a path: a .jsonl or .parquet file, or a folder of them"):
        open_source("interleaved")
    with pytest.raises(ValueError, match=r"interleaved: .* holds no .jsonl or .parquet file, nor do folders in it"):
        open_source("interleaved", path=tmp_path)


def test_the_fingerprint_follows_rows_and_images_but_not_the_place(tmp_path: Path) -> None:
    folders = [write(tmp_path / name, obelics("a", "sub/red.png"), images="sub") for name in ("one", "two")]
    first, second = (open_source("interleaved", path=folder).fingerprint() for folder in folders)
    assert first == second
    (folders[0] / "sub" / "red.png").write_bytes(encoded("red") + b"\0")
    write(folders[1], obelics("b", "sub/red.png"), images="sub")
    assert len({first, *(open_source("interleaved", path=folder).fingerprint() for folder in folders)}) == 3


def test_images_in_parquet_are_paths_bytes_or_structs_of_both(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    write(tmp_path, name="unused.txt")
    red, text = encoded("red"), [["a", None, None], ["b", None, None]]
    held = {"bytes": red, "path": "elsewhere.png"}, {"bytes": None, "path": "blue.png"}
    columns = {
        "a": {"texts": text, "images": [[None, "red.png", "lime.png"], [None, "http://a.b/c.png", None]]},
        "b": {"texts": text, "images": [[None, red, red], [None, red, b"no image"]]},
        "c": {"texts": text, "images": [[None, *held], [None, held[0], {"bytes": b"", "path": "red.png"}]]},
        "d": {"text_list": [["e"]], "image_info": [[{"image_name": "lime.png", "matched_text_index": 0}]]},
        "e": {"text": ["not interleaved"]},
    }
    for name, table in columns.items():
        parquet.write_table(pyarrow.table(table), tmp_path / f"{name}.parquet")
    documents, bad = read(tmp_path)
    told = [["a", "[red]", "[lime]"], ["a", "[red]", "[red]"], ["a", "[red]", "[blue]"], ["[lime]", "e"]]
    assert [parts(document) for document in documents] == told
    assert bad[:3] == [
        ("a.parquet row 2 index 1", URL_REASON),
        *[(f"{name}.parquet row 2 index 2", "not an image, or of an unknown format") for name in "bc"],
    ]
    assert bad[3][0] == "e.parquet" and bad[3][1].startswith("no column 'texts' or 'images' or 'text_list'")
    assert len(open_source("interleaved", path=tmp_path)) == 7


def test_a_document_is_tokenized_and_told_in_its_order_with_every_token_learnt(tmp_path: Path) -> None:
    good = [obelics(f"Zeile {number}", "red.png", "größer", "blue.png") for number in range(10)]
    write(tmp_path / "data", *good, obelics("cut.png", "a"))
    (tmp_path / "data" / "cut.png").write_bytes(encoded("red")[:45])
    sharp_tokenizer().save(tmp_path / "codes")
    paths = ["--path", tmp_path / "data", "--image-tokenizer", tmp_path / "codes", "--out", tmp_path / "shards"]
    assert main(["tokenize", "--source", "interleaved", *map(str, paths)]) == 0
    space, documents = read_all(tmp_path / "shards")
    assert [document.meta["row"] for document in documents] == list(range(1, 11))
    rendered = render(documents[3], space, TemplateConfig(), Random(0))
    line, red, larger, blue = (segment.ids for segment in documents[3].segments)
    boi, eoi = space.specials.boi, space.specials.eoi
    whole = [space.specials.bos, *line, boi, *red, eoi, *larger, boi, *blue, eoi, space.specials.eos]
    assert rendered.ids.tolist() == whole
    assert rendered.weights.tolist() == [0, *[1] * (len(whole) - 1)]
