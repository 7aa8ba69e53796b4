"""Other people's files: byte order marks, invisible captions, hidden members, other endings, text without ids."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import json
import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from PIL import Image

from data_pipelines.datamodule import ImageDataModule
from data_pipelines.documents import DamagedSample, TextSegment, is_visible
from data_pipelines.failures import FailureLog, TooMuchDamage
from data_pipelines.sources.files import HIDDEN_FILES, NOT_READ, as_utf8
from data_pipelines.sources.registry import open_source
from unimodal.generation.prompt_file import read_prompts

MARK = "\ufeff"


def picture(colour: str = "red", kind: str = "PNG") -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (16, 16), colour).save(data, kind)
    return data.getvalue()


def write_tar(path: Path, members: dict[str, bytes], mode: Any = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def samples(count: int = 3, **more: bytes) -> dict[str, bytes]:
    pairs = {}
    for number in range(count):
        pairs |= {f"{number:03}.png": picture(), f"{number:03}.txt": b"a red picture", **more}
    return pairs


def read(source: str, path: Path) -> tuple[list[str], dict[str, int], FailureLog]:
    """Texts of all documents, notes, failures."""
    failures = FailureLog(limit=1.0, loud=False)
    opened = open_source(source, path=path, split="train", failures=failures)
    texts = [
        part.text for document in opened.documents() for part in document.segments if isinstance(part, TextSegment)
    ]
    return texts, opened.notes, failures


# -- byte order marks


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_text_files_of_every_source_begin_without_their_byte_order_mark(encoding: str, tmp_path: Path) -> None:
    rows = "\n".join(json.dumps({"file_name": "a.png", "text": text}) for text in ("one", "two"))
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "a.jsonl").write_bytes(rows.encode(encoding))
    (tmp_path / "t" / "b.txt").write_bytes("three".encode(encoding))
    assert read("text", tmp_path / "t")[0] == ["one", "two", "three"]
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "a.png").write_bytes(picture())
    (tmp_path / "f" / "metadata.jsonl").write_bytes(rows.encode(encoding))
    assert read("imagefolder", tmp_path / "f")[0] == ["one", "two"]
    row = json.dumps({"caption": "from json"}).encode(encoding)
    members = {"0.png": picture(), "0.txt": "a cat".encode(encoding), "1.png": picture(), "1.json": row}
    write_tar(tmp_path / "w" / "0.tar", members)
    assert read("webdataset", tmp_path / "w")[0] == ["a cat", "from json"]
    (tmp_path / "p.jsonl").write_bytes('{"prompt": "hi"}\n{"prompt": "ho"}'.encode(encoding))
    assert [line.prompt for line in read_prompts(tmp_path / "p.jsonl")] == ["hi", "ho"]


def test_marks_inside_json_strings_are_dropped_too(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": MARK + "one"}), encoding="utf-8")
    assert read("text", tmp_path)[0] == ["one"]


@pytest.mark.parametrize(
    "content", [codecs.BOM_UTF16_LE + b"a", codecs.BOM_UTF16_BE + b"\xd8\x00", codecs.BOM_UTF32_LE + b"abc"]
)
def test_text_that_is_not_what_its_mark_says_is_damage(content: bytes) -> None:
    with pytest.raises(DamagedSample, match="as its byte order mark says"):
        as_utf8(content)


# -- invisible text


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n\t",
        "\u200b",
        "\u200b\u200d\ufeff",
        "\u00ad",
        "\ufe0f",
        "\u3164",
        "\u2800",
        "\u202e",
        "\x00\x07",
        "\u2028",
        "\U000e0101",
    ],
)
def test_a_caption_that_nobody_can_see_is_empty(text: str) -> None:
    assert not is_visible(text)
    with pytest.raises(DamagedSample, match="empty caption"):
        TextSegment(text=text, role="caption")


@pytest.mark.parametrize("text", ["a", "\u0e33", "\u0301", "\U0001f600", "?", "\u732b", "\ue000", "0", "\u200ba"])
def test_anything_that_shows_is_text(text: str) -> None:
    assert is_visible(text)


# -- hidden files


def test_what_a_mac_leaves_in_a_tar_does_not_break_samples_apart(tmp_path: Path) -> None:
    members: dict[str, bytes] = {".DS_Store": b"x"}
    for name, data in samples().items():
        members |= {f"._{name}": b"\0\5\x16\7", name: data, f"__MACOSX/._{name}": b"x"}
    write_tar(tmp_path / "0.tar", members)
    texts, notes, failures = read("webdataset", tmp_path)
    assert texts == ["a red picture"] * 3 and not failures.bad and notes == {HIDDEN_FILES: 13}


def test_members_that_begin_with_a_dot_and_a_slash_are_not_hidden(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", {f"./{name}": data for name, data in samples().items()})
    assert read("webdataset", tmp_path)[0] == ["a red picture"] * 3


def test_hidden_files_are_no_data_of_any_source(tmp_path: Path) -> None:
    (tmp_path / "t" / ".cache").mkdir(parents=True)
    (tmp_path / "t" / "a.jsonl").write_text('{"text": "one"}')
    for name in ("._a.jsonl", ".b.txt", ".cache/c.jsonl"):
        (tmp_path / "t" / name).write_bytes(b"\0\5\x16\7")
    assert read("text", tmp_path / "t")[:2] == (["one"], {})
    write_tar(tmp_path / "w" / "0.tar", samples(1))
    (tmp_path / "w" / "._0.tar").write_bytes(b"\0\5\x16\7")
    texts, notes, failures = read("webdataset", tmp_path / "w")
    assert texts == ["a red picture"] and notes == {} and not failures.bad
    (tmp_path / "f" / "__MACOSX").mkdir(parents=True)
    (tmp_path / "f" / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "one"}')
    (tmp_path / "f" / "a.png").write_bytes(picture())
    for name in ("._a.png", "__MACOSX/a.png", "__MACOSX/metadata.jsonl"):
        (tmp_path / "f" / name).write_bytes(b"x")
    texts, notes, _ = read("imagefolder", tmp_path / "f")
    assert texts == ["one"] and set(notes.values()) == {0}


# -- other endings


@pytest.mark.parametrize(("suffix", "opener"), [(".gz", gzip.open), (".bz2", bz2.open), (".xz", lzma.open), ("", open)])
@pytest.mark.parametrize("upper", [False, True])
def test_compressed_and_shouted_files_are_read(
    suffix: str, opener: Callable[..., Any], upper: bool, tmp_path: Path
) -> None:
    def write(folder: str, name: str, content: bytes) -> Path:
        (tmp_path / folder).mkdir(exist_ok=True)
        with opener(tmp_path / folder / ((name + suffix).upper() if upper else name + suffix), "wb") as file:
            file.write(content)
        return tmp_path / folder

    assert read("text", write("t", "a.jsonl", b'{"text": "one"}\n{"text": "two"}\n'))[0] == ["one", "two"]
    assert read("text", write("x", "a.txt", b"three"))[0] == ["three"]
    folder = write("f", "metadata.jsonl", b'{"file_name": "a.png", "text": "four"}')
    (folder / "a.png").write_bytes(picture())
    assert read("imagefolder", folder)[0] == ["four"]
    plain = write_tar(tmp_path / "plain.tar", samples())
    assert read("webdataset", write("w", "0.tar", plain.read_bytes()))[0] == ["a red picture"] * 3


@pytest.mark.parametrize("name", ["0.tgz", "0.tbz2", "0.txz"])
def test_short_endings_of_compressed_tars(name: str, tmp_path: Path) -> None:
    write_tar(tmp_path / name, samples(), {"0.tgz": "w:gz", "0.tbz2": "w:bz2", "0.txz": "w:xz"}[name])
    assert read("webdataset", tmp_path)[0] == ["a red picture"] * 3


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "AVIF"])
def test_pictures_in_tars_have_every_ending_of_pictures(kind: str, tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", {f"0.{kind.lower()}": picture(kind=kind), "0.txt": b"a red picture"})
    assert read("webdataset", tmp_path)[0] == ["a red picture"]


def test_a_compressed_file_that_is_cut_off_is_named_and_what_came_before_is_kept(tmp_path: Path) -> None:
    lines = b"".join(json.dumps({"text": f"{Random(n).random()}"}).encode() + b"\n" for n in range(5000))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines)[:-2000])
    texts, _, failures = read("text", tmp_path)
    assert 1000 < len(texts) < 5000 and failures.bad[-1][0].startswith("a.jsonl.gz")


def test_files_that_are_not_read_are_counted_and_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}')
    for name in ("b.jsonl.zst", "c.csv", "d.parquet.gz"):
        (tmp_path / name).write_bytes(b"x")
    assert read("text", tmp_path)[1] == {f"{NOT_READ} (b.jsonl.zst, c.csv, d.parquet.gz)": 3}
    write_tar(tmp_path / "w" / "0.tar", samples(1))
    (tmp_path / "w" / "0.tar.zst").write_bytes(b"x")
    assert read("webdataset", tmp_path / "w")[1] == {f"{NOT_READ} (0.tar.zst)": 1}


def test_metadata_of_another_kind_is_named_where_there_is_no_other(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,one\n")
    with pytest.raises(ValueError, match=r"holds no metadata\.jsonl, but metadata\.csv"):
        open_source("imagefolder", path=tmp_path)


def test_one_damaged_picture_does_not_end_the_training_of_an_image_tokenizer(tmp_path: Path) -> None:
    damaged = {"999.png": picture()[:45], "999.txt": b"cut off"}
    write_tar(tmp_path / "0.tar", samples(20) | damaged)
    module = ImageDataModule(source="webdataset", path=tmp_path, image_size=16)
    module.setup("fit")
    assert len(module.images) == 20
    write_tar(tmp_path / "0.tar", samples(3) | damaged)
    with pytest.raises(TooMuchDamage, match="1 of 4 samples cannot be used"):
        ImageDataModule(source="webdataset", path=tmp_path, image_size=16).setup("fit")
