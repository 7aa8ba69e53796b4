"""Tar members are found where `tarfile` finds them, whatever wrote the tar."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from webdataset import TarWriter  # pyright: ignore[reportAttributeAccessIssue]

from data_pipelines.shards.tar import members

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
NAMES = st.one_of(
    st.text("abc0_-./é", min_size=1, max_size=30), st.text("x", min_size=101, max_size=140), st.just("d/" * 60 + "n")
).filter(lambda name: not name.startswith("/") and not name.endswith("/"))


def tar(files: Sequence[tuple[str, bytes]], format: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def found(data: bytes) -> list[tuple[str, bytes]]:
    return [(name, data[start : start + size]) for name, start, size in members(data)]


@given(files=st.lists(st.tuples(NAMES, st.binary(max_size=1200)), max_size=5), format=st.sampled_from(FORMATS[1:]))
def test_members_are_those_of_tarfile(files: list[tuple[str, bytes]], format: int) -> None:
    assert found(tar(files, format)) == files


def test_a_long_name_in_two_parts_is_put_together() -> None:
    name = "folder/" * 20 + "name.json"
    assert found(tar([(name, b"1")], tarfile.USTAR_FORMAT)) == [(name, b"1")]


def test_members_that_webdataset_wrote_are_found(tmp_path) -> None:
    path = tmp_path / "a.tar"
    with TarWriter(str(path)) as writer:
        writer.write({"__key__": "k", "txt": "hello", "json": {"a": 1}})
    assert sorted(found(path.read_bytes())) == [("k.json", b'{"a": 1}'), ("k.txt", b"hello")]


WHOLE = tar([("a.txt", b"x" * 700), ("b.txt", b"y")], tarfile.GNU_FORMAT)


@pytest.mark.parametrize("length", [100, 511, 600, 1000, 1300, 2100])
def test_a_tar_that_is_cut_inside_a_member_is_refused(length: int) -> None:
    with pytest.raises(tarfile.TarError, match="cut off"):
        found(WHOLE[:length])


@given(position=st.integers(0, 147) | st.integers(156, 256), bit=st.integers(0, 7))
def test_no_flipped_bit_of_a_header_goes_unseen(position: int, bit: int) -> None:
    damaged = bytearray(WHOLE)
    damaged[position] ^= 1 << bit
    try:
        assert found(bytes(damaged)) != found(WHOLE)
    except tarfile.TarError:
        return
    pytest.fail("a changed header was read")


def test_what_is_no_tar_is_refused() -> None:
    for data in (b"x" * 2000, b"\x1f\x8b" + b"\0" * 600, b"\xff" * 512):
        with pytest.raises(tarfile.TarError):
            found(data)
