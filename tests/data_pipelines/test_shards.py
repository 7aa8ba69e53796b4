"""Token shards: any tar tool reads them, ours reads back what was written, and any damage is named."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from webdataset.compat import WebDataset

from data_pipelines.shards import DamagedShard, ShardWriter, TokenDocument, TokenSegment, open_manifest, read_all
from data_pipelines.shards.checks import malformed
from tests.oracles.pictures import GRID_SPACE, SPACE, caption_document, same_documents
from tokenizers_vq.token_space import FixedLayout, GridLayout, TokenSpace

DOCUMENTS = [caption_document(f"doc-{i}", length=i + 1, first=7 * i) for i in range(5)]


def write(folder: Path, documents: Sequence[TokenDocument], space: TokenSpace = SPACE, per_shard: int = 2) -> Path:
    options: dict[str, Any] = {"image_policy": {"size": 16}, "source": {"name": "test"}}
    with ShardWriter(folder, space, documents_per_shard=per_shard, **options) as writer:
        for document in documents:
            writer.write(document)
    return folder


@st.composite
def segment(draw: st.DrawFn, space: TokenSpace) -> TokenSegment:
    kind: Literal["text", "image"] = draw(st.sampled_from(["text", "image"]))
    if kind == "text":
        ids = draw(st.lists(st.integers(0, space.text_size - 1), max_size=6))
    else:
        rows, columns = draw(st.sampled_from(space.layout.sizes))
        code = st.integers(space.image_offset, space.vocab_size - 1)
        codes = draw(st.lists(code, min_size=rows * columns, max_size=rows * columns))
        ids = space.image_body(codes, (rows, columns))
    role = draw(st.sampled_from(["caption", "answer"]))
    return TokenSegment(kind=kind, role=role, ids=np.asarray(ids, dtype=np.int64))


@st.composite
def folders(draw: st.DrawFn) -> tuple[TokenSpace, list[TokenDocument]]:
    """A space that needs 16 or 32 bits, and documents with distinct keys."""
    layout = draw(st.sampled_from([FixedLayout(rows=1, columns=1), GridLayout(sizes=((1, 2), (2, 1), (2, 2)))]))
    size = draw(st.sampled_from([100, 65_534, 65_535, 100_000]))
    space = TokenSpace(text_size=size, text_hash="", codebook_size=2, image_hash="", layout=layout)
    segments = st.lists(segment(space), min_size=1)
    metas = st.dictionaries(st.text(max_size=3), st.none() | st.integers() | st.text(), max_size=3)
    keys = draw(st.lists(st.from_regex(r"[a-z0-9+_-]{1,120}", fullmatch=True), unique=True, max_size=6))
    return space, [TokenDocument(key=k, segments=tuple(draw(segments)), meta=draw(metas)) for k in keys]


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(data=folders(), per_shard=st.integers(1, 4))
def test_what_was_written_is_read_back(data: tuple[TokenSpace, list[TokenDocument]], per_shard: int) -> None:
    space, documents = data
    with tempfile.TemporaryDirectory() as name:
        folder = write(Path(name), documents, space, per_shard)
        found, back = read_all(folder)
        manifest = open_manifest(folder)
    assert found == space and same_documents(back, documents)
    assert sum(entry.text_tokens for entry in manifest.shards) == sum(d.count("text") for d in documents)
    assert sum(entry.image_tokens for entry in manifest.shards) == sum(d.count("image") for d in documents)
    assert all(0 < entry.documents <= per_shard for entry in manifest.shards)


def test_plain_webdataset_reads_them(tmp_path: Path) -> None:
    write(tmp_path, DOCUMENTS)
    urls = [str(path) for path in sorted(tmp_path.glob("*.tar"))]
    plain: Any = WebDataset(urls, shardshuffle=False, empty_check=False).decode()
    samples = list(plain)
    assert [sample["__key__"] for sample in samples] == [document.key for document in DOCUMENTS]
    for sample, document in zip(samples, DOCUMENTS, strict=True):
        assert sample["ids.npy"].tolist() == np.concatenate([s.ids for s in document.segments]).tolist()
        assert [s["kind"] for s in sample["json"]["segments"]] == ["image", "text"]


def test_plain_tarfile_and_numpy_read_them(tmp_path: Path) -> None:
    with tarfile.open(write(tmp_path, DOCUMENTS) / "000001.tar") as tar:
        assert tar.getnames() == ["doc-2.ids.npy", "doc-2.json", "doc-3.ids.npy", "doc-3.json"]
        file = tar.extractfile("doc-3.ids.npy")
        assert file is not None
        ids = np.load(io.BytesIO(file.read()))
    assert ids.dtype == np.uint16 and ids.tolist() == [105, 106, 107, 108, *range(31, 35)]


@pytest.mark.slow
def test_datasets_reads_them(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    write(tmp_path / "shards", DOCUMENTS)
    files = {"train": [str(path) for path in sorted((tmp_path / "shards").glob("*.tar"))]}
    read = datasets.load_dataset("webdataset", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert [row["__key__"] for row in read] == [document.key for document in DOCUMENTS]
    found = [row["ids.npy"] for row in read]
    expected = [np.concatenate([segment.ids for segment in document.segments]) for document in DOCUMENTS]
    assert all(np.asarray(a).tolist() == b.tolist() for a, b in zip(found, expected, strict=True))


def test_the_same_documents_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / name, DOCUMENTS)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_an_interrupted_writer_leaves_no_manifest_and_its_tars_are_not_data(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), ShardWriter(tmp_path, SPACE, image_policy={}, source={}) as writer:
        writer.documents_per_shard = 1
        writer.write(DOCUMENTS[0])
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["000000.tar"]
    with pytest.raises(DamagedShard, match=r"holds no manifest\.json: it is not a folder of token shards, or not a wh"):
        read_all(tmp_path)


def test_a_tar_that_the_manifest_does_not_list_is_not_data(tmp_path: Path) -> None:
    write(tmp_path, DOCUMENTS)
    (tmp_path / "000009.tar").write_bytes((tmp_path / "000000.tar").read_bytes())
    assert len(read_all(tmp_path)[1]) == len(DOCUMENTS)


def test_a_folder_that_holds_shards_is_not_written_over(tmp_path: Path) -> None:
    write(tmp_path, DOCUMENTS)
    with pytest.raises(ValueError, match="already holds shards; give another folder or remove it"):
        write(tmp_path, DOCUMENTS[:1])
    assert len(read_all(tmp_path)[1]) == len(DOCUMENTS)


@pytest.mark.parametrize("key", ["doc-0", "v1.0-000001"])
def test_a_key_that_could_not_be_read_back_is_not_written(tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError, match=f"occurs once and holds no dot, got '{key}'"):
        write(tmp_path, [DOCUMENTS[0], caption_document(key)])
    assert not (tmp_path / "manifest.json").exists()


# Damage to the folder: what a disk, a copy or a stranger may have done.


def flip_a_byte(folder: Path) -> None:
    data = bytearray((folder / "000001.tar").read_bytes())
    data[700] ^= 1
    (folder / "000001.tar").write_bytes(data)


def cut_short(folder: Path) -> None:
    (folder / "000001.tar").write_bytes((folder / "000001.tar").read_bytes()[:1500])


def change_manifest(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        change(manifest)
        (folder / "manifest.json").write_text(json.dumps(manifest))

    return damage


FOLDER_DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a flipped byte": (flip_a_byte, r"000001\.tar: its SHA-256 is not the manifest's"),
    "a truncated tar": (cut_short, r"000001\.tar: its SHA-256 is not the manifest's"),
    "a missing shard": (lambda f: (f / "000001.tar").unlink(), r"000001\.tar is in the manifest but not in the folder"),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), r"holds no manifest\.json"),
    "half a manifest": (lambda f: (f / "manifest.json").write_text('{"format'), r"manifest\.json: "),
    "a manifest of noise": (lambda f: (f / "manifest.json").write_bytes(b"\xff\xfe"), r"manifest\.json: "),
    "a name that is a number": (
        change_manifest(lambda m: m["shards"][0].update(name=7)),
        r"name is of type str, got 7",
    ),
    "a count in words": (
        change_manifest(lambda m: m["shards"][0].update(documents="two")),
        r"documents is of type int",
    ),
    "skipped as a list": (change_manifest(lambda m: m.update(skipped=[1])), r"skipped is of type"),
    "no sizes": (
        change_manifest(lambda m: m["token_space"].update(text_size=None)),
        r"text_size is of type int, got None",
    ),
    "a list for a manifest": (lambda f: (f / "manifest.json").write_text("[]"), r"manifest\.json: "),
    "another version": (
        change_manifest(lambda m: m.update(format_version=3)),
        r"manifest\.json: the manifest has format version 3, this code reads 1 and 2",
    ),
    "a missing field": (change_manifest(lambda m: m.pop("source")), r"manifest\.json: not a shard manifest"),
    "a changed token space": (
        change_manifest(lambda m: m["token_space"].update(text_size=101)),
        r"manifest\.json: the fingerprint does not match the token space",
    ),
    "no token space": (change_manifest(lambda m: m.update(token_space={})), r"manifest\.json: not a token space"),
    "a name that leads out": (
        change_manifest(lambda m: m["shards"][0].update(name="../outside.tar")),
        r"outside\.tar is in the manifest but not in the folder",
    ),
    "an absolute name": (
        change_manifest(lambda m: m["shards"][0].update(name="/outside.tar")),
        r"outside\.tar is in the manifest but not in the folder",
    ),
    "another number of documents": (
        change_manifest(lambda m: m["shards"][1].update(documents=3)),
        r"000001\.tar holds 2 documents, the manifest says 3",
    ),
}


@pytest.mark.parametrize("name", FOLDER_DAMAGES)
def test_a_damaged_folder_is_refused_and_the_file_named(tmp_path: Path, name: str) -> None:
    damage, message = FOLDER_DAMAGES[name]
    folder = write(tmp_path / "shards", DOCUMENTS)
    (tmp_path / "outside.tar").write_bytes((folder / "000000.tar").read_bytes())
    damage(folder)
    with pytest.raises(DamagedShard, match=message) as caught:
        read_all(folder)
    assert "\n" not in str(caught.value)


# Damage inside a shard whose hash was made to fit: nothing is believed because it is hashed.

Members = list[tuple[str, bytes]]


def npy(values: Any, dtype: Any = np.uint16) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(values, dtype=dtype))
    return buffer.getvalue()


def archive() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, a=np.zeros(3))
    return buffer.getvalue()


def described(*segments: tuple[str, int, int]) -> bytes:
    parts = [{"kind": kind, "role": "caption", "start": start, "length": length} for kind, start, length in segments]
    return json.dumps({"segments": parts, "meta": {}}).encode()


GOOD: Members = [("k.ids.npy", npy([10, 11, 12])), ("k.json", described(("text", 0, 3)))]
IDS, JSON = GOOD
SHARD_DAMAGES: dict[str, tuple[Members, str]] = {
    "an extra member": ([*GOOD, ("notes.txt", b"hello")], "unexpected member 'notes.txt'"),
    "a member twice": ([*GOOD, IDS], "'k.ids.npy' occurs twice"),
    "ids without json": ([IDS], "'k' lacks its ids or its json"),
    "json without ids": ([JSON], "'k' lacks its ids or its json"),
    "a text id past the text": ([("k.ids.npy", npy([10, 100, 12])), JSON], "'k' holds text id 100; those are 0 to 99"),
    "an id past the space": (
        [("k.ids.npy", npy([116])), ("k.json", described(("image", 0, 1)))],
        "'k' holds image id 116; those are 100 to 115",
    ),
    "text in an image": (
        [IDS, ("k.json", described(("image", 0, 3)))],
        "'k' holds image id 10; those are 100 to 115",
    ),
    "a negative id": ([("k.ids.npy", npy([1, -2, 3], np.int32)), JSON], "'k' holds text id -2"),
    "NaN for ids": ([("k.ids.npy", npy([1, np.nan, 3], np.float64)), JSON], "'k' holds float64"),
    "floats for ids": ([("k.ids.npy", npy([1.5, 2, 3], np.float32)), JSON], "'k' holds float32"),
    "ids in two dimensions": ([("k.ids.npy", npy([[1, 2, 3]])), JSON], "in 2 dimensions"),
    "an archive for ids": ([("k.ids.npy", archive()), JSON], "magic"),
    "half of the ids": ([("k.ids.npy", IDS[1][:-3]), JSON], "array"),
    "empty ids": ([("k.ids.npy", b""), JSON], "magic"),
    "segments that leave ids over": ([IDS, ("k.json", described(("text", 0, 2)))], "do not cover"),
    "segments past the ids": ([IDS, ("k.json", described(("text", 0, 4)))], "do not cover"),
    "segments that overlap": ([IDS, ("k.json", described(("text", 0, 2), ("text", 1, 1)))], "do not follow"),
    "a segment of negative length": (
        [IDS, ("k.json", described(("text", 0, 4), ("text", 4, -1)))],
        "do not follow",
    ),
    "a kind that is not known": ([IDS, ("k.json", described(("sound", 0, 3)))], "of kind 'sound'"),
    "json that is none": ([IDS, ("k.json", b"{")], "Expecting"),
    "json of another shape": ([IDS, ("k.json", b"[1]")], r"000000\.tar"),
    "json of endless depth": ([IDS, ("k.json", b"[" * 100_000)], r"000000\.tar"),
}


def put(folder: Path, data: bytes) -> None:
    """Replace the first shard and let the manifest vouch for it."""
    (folder / "000000.tar").write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    change_manifest(lambda m: m["shards"][0].update(sha256=digest, documents=1))(folder)


def tar(members: Members) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def test_the_members_that_the_damages_below_start_from_are_readable(tmp_path: Path) -> None:
    folder = write(tmp_path, DOCUMENTS[:1])
    put(folder, tar(GOOD))
    assert read_all(folder)[1][0].segments[0].ids.tolist() == [10, 11, 12]


@pytest.mark.parametrize("name", SHARD_DAMAGES)
def test_a_hash_that_fits_does_not_make_a_bad_shard_good(tmp_path: Path, name: str) -> None:
    members, message = SHARD_DAMAGES[name]
    folder = write(tmp_path, DOCUMENTS[:1])
    put(folder, tar(members))
    with pytest.raises(DamagedShard, match=message) as caught:
        read_all(folder)
    assert "000000.tar" in str(caught.value)


@pytest.mark.parametrize("length", [0, 100, 600, 700, 1600])
def test_a_cut_tar_whose_hash_fits_is_refused(tmp_path: Path, length: int) -> None:
    folder = write(tmp_path, DOCUMENTS[:1])
    put(folder, tar(GOOD)[:length])
    with pytest.raises(DamagedShard, match=r"000000\.tar"):
        read_all(folder)


WHOLE = GRID_SPACE.image_body([104, 105, 106, 107], (2, 2))
IMAGE_DAMAGES: dict[str, tuple[TokenSpace, list[int]]] = {
    "a code too few": (SPACE, [100, 101, 102]),
    "a code too many": (SPACE, [100, 101, 102, 103, 104]),
    "no code": (SPACE, []),
    "no id of a grid": (GRID_SPACE, []),
    "one id of a grid": (GRID_SPACE, WHOLE[:1]),
    "a row cut off": (GRID_SPACE, WHOLE[:-3]),
    "a row end too many": (GRID_SPACE, [*WHOLE, GRID_SPACE.eol]),
    "a row end in place of a code": (GRID_SPACE, [*WHOLE[:3], GRID_SPACE.eol, *WHOLE[4:]]),
    "a code in place of a row end": (GRID_SPACE, [*WHOLE[:4], 104, *WHOLE[5:]]),
    "a side in place of a code": (GRID_SPACE, [*WHOLE[:-1], GRID_SPACE.side(1)]),
    "a size that does not exist": (GRID_SPACE, [101, 102, 104, 105]),
    "a size of another image": (GRID_SPACE, [101, 103, *WHOLE[2:]]),
    "no size": (GRID_SPACE, WHOLE[2:]),
}


@pytest.mark.parametrize("damage", IMAGE_DAMAGES)
def test_an_image_that_is_not_whole_is_refused(tmp_path: Path, damage: str) -> None:
    space, ids = IMAGE_DAMAGES[damage]
    good = space.image_body([space.vocab_size - 1] * 4, (2, 2))
    message = rf"000000\.tar: 'bad' holds {len(ids)} image ids that are no image of the {space.layout.kind} layout"
    for name, bodies in {"among others": [good, ids, good], "alone": [ids]}.items():
        segments = tuple(TokenSegment(kind="image", role="image", ids=np.asarray(b, dtype=np.int64)) for b in bodies)
        folder = write(tmp_path / name, [TokenDocument(key="bad", segments=segments)], space)
        with pytest.raises(DamagedShard, match=message):
            read_all(folder)


@settings(max_examples=100, deadline=None)
@given(space=st.sampled_from([SPACE, GRID_SPACE]), data=st.data())
def test_images_are_judged_all_at_once_as_one_by_one(space: TokenSpace, data: st.DataObject) -> None:
    anything = st.integers(space.text_size, space.vocab_size - 1)
    bodies = []
    for _ in range(data.draw(st.integers(1, 5))):
        rows, columns = data.draw(st.sampled_from(space.layout.sizes))
        body = space.image_body([space.image_offset] * (rows * columns), (rows, columns))
        place = data.draw(st.integers(0, len(body) - 1))
        other = data.draw(st.lists(anything, max_size=2))
        changed = [*body[:place], *other, *body[place + 1 :]]
        bodies.append(data.draw(st.sampled_from([body, changed, body[:place], other])))
    ids = np.array([token for body in bodies for token in body], dtype=np.int64)
    spans = [[space.specials.boi, *body, space.specials.eoi] for body in bodies]
    whole = [(found := space.read_image(span, 0)) is not None and found.end == len(span) for span in spans]
    assert (~malformed(np.array([len(body) for body in bodies]), ids, space)).tolist() == whole


def test_a_link_in_a_tar_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, DOCUMENTS[:1])
    buffer = io.BytesIO(tar(GOOD[:1]))
    with tarfile.open(fileobj=buffer, mode="a") as archive:
        info = tarfile.TarInfo("k.json")
        info.type, info.linkname = tarfile.SYMTYPE, "manifest.json"
        archive.addfile(info)
    put(folder, buffer.getvalue())
    with pytest.raises(DamagedShard, match=r"000000\.tar"):
        read_all(folder)
