"""Shards that lie elsewhere: any address fsspec knows, with a copy on this machine."""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec

from data_pipelines.shards.format import MANIFEST_FILE, DamagedShard
from data_pipelines.shards.reader import open_manifest
from data_pipelines.shards.writer import write_whole

LOCK = ".lock"
DEFAULT_CACHE = Path("~/.cache/unimodal/shards")
BESIDE = (
    "text_tokenizer/tokenizer.json",
    "image_tokenizer/config.json",
    "image_tokenizer/model.safetensors",
    "autoencoder/config.json",
    "autoencoder/model.safetensors",
    "autoencoder/diffusion_pytorch_model.safetensors",
)
"""Files of tokenizers and autoencoders that may lie beside shards; training puts them into its bundle."""


def local_folder(address: str, cache: Path) -> Path:
    """A folder on this machine that holds the shards of `address`; a local folder is its own.

    Shards already there with the hash of the manifest are not fetched again. Raises ValueError for an address that
    cannot be read, DamagedShard for a shard that does not arrive as the manifest says.
    """
    if "://" not in address:
        return Path(address)
    address = address.rstrip("/")
    folder = cache.expanduser() / hashlib.sha256(address.encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    with _one_at_a_time(folder):
        _bring_up_to_date(address, folder)
    return folder


def _bring_up_to_date(address: str, folder: Path) -> None:
    """Fetch what the folder lacks, and remove what no longer lies beside the shards."""
    write_whole(folder / MANIFEST_FILE, _fetch(f"{address}/{MANIFEST_FILE}"))
    for entry in open_manifest(folder).shards:
        if Path(entry.name).name != entry.name:
            raise DamagedShard(f"{address}: the manifest names {entry.name!r}, which leads out of its folder")
        path = folder / entry.name
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != entry.sha256:
            data = _fetch(f"{address}/{entry.name}")
            if hashlib.sha256(data).hexdigest() != entry.sha256:
                raise DamagedShard(
                    f"{address}/{entry.name}: its SHA-256 is not the manifest's; it did not arrive whole"
                )
            write_whole(path, data)
    for name in BESIDE:
        data = _fetch_if_there(f"{address}/{name}")
        if data is None:
            (folder / name).unlink(missing_ok=True)
        else:
            (folder / name).parent.mkdir(exist_ok=True)
            write_whole(folder / name, data)
    for name in {Path(name).parent for name in BESIDE}:
        if (folder / name).is_dir() and not any((folder / name).iterdir()):
            (folder / name).rmdir()


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """The processes of a machine wait for the first, and find everything there."""
    with (folder / LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _fetch(address: str) -> bytes:
    try:
        return _read(address)
    except Exception as error:  # every file system raises errors of its own
        raise _unreadable(address, error) from error


def _fetch_if_there(address: str) -> bytes | None:
    try:
        return _read(address)
    except FileNotFoundError:
        return None
    except Exception as error:
        raise _unreadable(address, error) from error


def _read(address: str) -> bytes:
    with fsspec.open(address, "rb") as file:
        return file.read()  # pyright: ignore[reportAttributeAccessIssue]


def _unreadable(address: str, error: Exception) -> ValueError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return ValueError(f"{address} cannot be read ({reason})")
