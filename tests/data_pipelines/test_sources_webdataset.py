"""Tars that others wrote are read whole, and every kind of damage in them is named while the rest goes on."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from webdataset.writer import ShardWriter

from data_pipelines.documents import Document, TextSegment
from data_pipelines.failures import FailureLog
from data_pipelines.shards import read_all
from data_pipelines.sources import open_source
from tests.oracles.pictures import noise, sharp_tokenizer
from unimodal.cli import main

Member = tuple[str, bytes]


def encoded(seed: int, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    noise(24, 16, seed=seed).save(buffer, kind)
    return buffer.getvalue()


def sample(number: int) -> list[Member]:
    row = {"caption": f"never read {number}", "key": f"{number:05d}", "status": "success", "width": 24}
    members = {"jpg": encoded(number, "JPEG"), "txt": f"picture {number}".encode(), "json": json.dumps(row).encode()}
    return [(f"{number:05d}.{ending}", content) for ending, content in members.items()]


def write_tar(path: Path, members: Iterable[Member]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def read(path: Path, split: str = "train") -> tuple[list[Document], list[tuple[str, str]]]:
    failures = FailureLog(limit=1)
    documents = list(open_source("webdataset", path=path, split=split, failures=failures).documents())
    assert failures.good == len(documents)
    return documents, failures.bad


def captions(documents: list[Document]) -> list[str]:
    return [p.text for d in documents for p in d.segments if isinstance(p, TextSegment) and p.role == "caption"]


def test_tars_of_webdatasets_own_writer_are_read_in_order(tmp_path: Path) -> None:
    for shard in range(2):
        with ShardWriter(str(tmp_path / f"{shard:05d}-%d.tar"), maxcount=100, verbose=0) as writer:
            for number in range(5 * shard, 5 * shard + 5):
                writer.write({"__key__": f"{number:05d}", "jpg": encoded(number, "JPEG"), "txt": f"picture {number}"})
    documents, bad = read(tmp_path)
    assert not bad and captions(documents) == [f"picture {number}" for number in range(10)]
    assert len({document.key for document in documents}) == 10 and not any("." in d.key for d in documents)
    assert documents[3].segments[0].open().size == (24, 16)  # type: ignore[union-attr]
    assert len(open_source("webdataset", path=tmp_path)) == 10


def test_captions_come_from_the_txt_or_else_the_json_and_questions_from_the_json(tmp_path: Path) -> None:
    row = {"caption": "from the json", "question": "what?", "answer": "that"}
    picture = encoded(0)
    members = [
        *[("a.PNG", picture), ("a.txt", b" from the txt\n"), ("a.json", json.dumps(row).encode())],
        *[("deep/er/b.webp", encoded(1, "WEBP")), ("deep/er/b.json", json.dumps(row).encode())],
        *[("c.v2.png", picture), ("c.png", picture), ("c.txt", b"the first dot parts")],
    ]
    documents, bad = read(write_tar(tmp_path / "one.tar", members))
    assert not bad and captions(documents) == ["from the txt", "from the json", "the first dot parts"]
    assert [len(document.segments) for document in documents] == [4, 4, 2]


def test_a_split_has_its_own_folder_or_a_note(tmp_path: Path) -> None:
    write_tar(tmp_path / "a" / "train" / "0.tar", sample(1))
    write_tar(tmp_path / "a" / "val" / "0.tar", sample(2))
    write_tar(tmp_path / "b" / "0.tar", sample(3))
    assert captions(read(tmp_path / "a")[0]) == ["picture 1"]
    assert captions(read(tmp_path / "a", "val")[0]) == ["picture 2"]
    assert captions(read(tmp_path / "b", "val")[0]) == ["picture 3"]
    assert list(open_source("webdataset", path=tmp_path / "b", split="val").notes.values()) == [1]


def without(ending: str) -> Callable[[list[Member]], list[Member]]:
    return lambda members: [(name, content) for name, content in members if not name.endswith(ending)]


def replaced(ending: str, content: bytes) -> Callable[[list[Member]], list[Member]]:
    return lambda members: [(name, content if name.endswith(ending) else old) for name, old in members]


DAMAGED_SAMPLES: dict[str, tuple[Callable[[list[Member]], list[Member]], str, int]] = {
    "no picture": (without(".jpg"), "no picture", 4),
    "an empty picture": (replaced(".jpg", b""), "empty (0 bytes)", 4),
    "a caption that is not UTF-8": (replaced(".txt", b"caf\xe9"), "not UTF-8", 4),
    "an empty caption": (replaced(".txt", b" \n"), "empty caption", 4),
    "a json that is none": (replaced(".json", b"{"), "not JSON", 4),
    "a json that is a list": (replaced(".json", b"[1]"), "not a JSON object", 4),
    "no text at all": (lambda members: members[:1], "neither a caption nor questions", 4),
    "half a question": (replaced(".json", b'{"question": "what?"}'), "no answer", 4),
    "a member twice": (lambda members: [*members, members[1]], "this member already", 5),
    "a way out": (lambda members: [*members, ("../../evil.jpg", b"x")], "leads out of the archive", 5),
    "an absolute name": (lambda members: [*members, ("/evil.jpg", b"x")], "leads out of the archive", 5),
    "a name that is not UTF-8": (lambda members: [*members, ("caf\udce9.jpg", b"x")], "name is not UTF-8", 5),
    "the key of an earlier sample": (lambda members: [*members, *sample(0)], "the same key", 5),
}


@pytest.mark.parametrize(("damage", "reason", "left"), DAMAGED_SAMPLES.values(), ids=DAMAGED_SAMPLES.keys())
def test_a_damaged_sample_is_named_and_the_rest_goes_on(
    damage: Callable[[list[Member]], list[Member]], reason: str, left: int, tmp_path: Path
) -> None:
    members = [member for number in range(5) for member in (damage(sample(2)) if number == 2 else sample(number))]
    documents, bad = read(write_tar(tmp_path / "one.tar", members))
    assert len(documents) == left and len(bad) == 1, bad
    assert reason in bad[0][1] and bad[0][0].startswith("one.tar ")


def test_a_link_in_an_archive_is_named_and_not_followed(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "one.tar", sample(0))
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("00001.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        tar.addfile(link)
    documents, bad = read(path)
    assert len(documents) == 1 and bad == [("one.tar 00001.jpg", "a member that is no plain file")]


def whole_tar(folder: Path) -> Path:
    return write_tar(folder / "one.tar", [member for number in range(6) for member in sample(number)])


def header_of(path: Path, member: str) -> int:
    with tarfile.open(path) as tar:
        return tar.getmember(member).offset


TAR_DAMAGES: dict[str, Callable[[Path, bytearray], Any]] = {
    "cut in a picture": lambda path, data: data.__delitem__(slice(header_of(path, "00003.jpg") + 700, None)),
    "cut at the start of a member": lambda path, data: data.__delitem__(slice(header_of(path, "00003.jpg"), None)),
    "cut in a header": lambda path, data: data.__delitem__(slice(header_of(path, "00003.jpg") + 100, None)),
    "a flipped byte in a header": lambda path, data: data.__setitem__(header_of(path, "00003.jpg") + 3, 0xFF),
}


@pytest.mark.parametrize("damage", TAR_DAMAGES.values(), ids=TAR_DAMAGES.keys())
def test_a_damaged_tar_is_named_and_what_stood_before_the_damage_is_kept(
    damage: Callable[[Path, bytearray], Any], tmp_path: Path
) -> None:
    path = whole_tar(tmp_path)
    data = bytearray(path.read_bytes())
    damage(path, data)
    path.write_bytes(data)
    write_tar(tmp_path / "two.tar", sample(9))
    documents, bad = read(tmp_path)
    assert captions(documents)[:2] == ["picture 0", "picture 1"] and captions(documents)[-1] == "picture 9"
    assert [name for name, _ in bad] == ["one.tar"] and "cut off or damaged" in bad[0][1]


@pytest.mark.parametrize("content", [b"", b"a line of text", bytes(100)])
def test_a_file_that_is_no_tar_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "one.tar").write_bytes(content)
    write_tar(tmp_path / "two.tar", sample(9))
    documents, bad = read(tmp_path)
    assert captions(documents) == ["picture 9"] and [name for name, _ in bad] == ["one.tar"]


def test_a_folder_without_tars_is_one_line(tmp_path: Path) -> None:
    for path, reason in ((None, "needs a path"), (tmp_path, "holds no .tar"), (tmp_path / "absent", "holds no .tar")):
        with pytest.raises(ValueError, match=reason):
            open_source("webdataset", path=path)


def test_text_that_calls_itself_a_picture_is_found_when_it_is_tokenized(tmp_path: Path) -> None:
    members = [m for n in range(20) for m in (replaced(".jpg", b"words")(sample(n)) if n == 4 else sample(n))]
    write_tar(tmp_path / "data" / "one.tar", members)
    sharp_tokenizer().save(tmp_path / "codes")
    paths = ["--path", tmp_path / "data", "--image-tokenizer", tmp_path / "codes", "--out", tmp_path / "shards"]
    assert main(["tokenize", "--source", "webdataset", *map(str, paths)]) == 0
    assert len(read_all(tmp_path / "shards")[1]) == 19
