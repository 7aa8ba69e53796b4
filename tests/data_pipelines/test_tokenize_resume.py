"""A job of tokenization that was interrupted, or shared among ranks, writes the bytes of an unbroken one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from data_pipelines.documents import Document
from data_pipelines.failures import FailureLog, TooMuchDamage
from data_pipelines.shards import open_manifest, read_all
from data_pipelines.tokenize import TokenizeConfig, TokenizeHooks, tokenize
from tests.kill.tokenization import contents, kill_and_resume
from tests.oracles.pictures import ListSource, captioned, noise, sharp_tokenizer
from tokenizers_vq.text import TextTokenizer

IMAGE = sharp_tokenizer()
TEXT = TextTokenizer.train(["a picture of something", "what is it?"], 280)
CONFIG = TokenizeConfig(copies=2, augmentations=("flip", "place"), documents_per_shard=7)


class Interrupted(Exception):
    """Stands for a kill."""


def unreadable() -> Image.Image:
    """A picture whose file cannot be decoded once it is asked for."""
    picture = noise(8, 8)
    picture.load = picture.convert = _fail  # type: ignore[method-assign]
    return picture


def _fail(*_: object, **__: object) -> None:
    raise OSError("broken data stream")


class CountedSource(ListSource):
    """Counts what it yields, as sources of files do."""

    failures: FailureLog

    def documents(self) -> Iterator[Document]:
        for document in super().documents():
            self.failures.keep()
            yield document


def counted(documents: list[Document], failures: FailureLog) -> CountedSource:
    source = CountedSource(documents)
    source.failures = failures
    return source


def run(
    out: Path,
    config: TokenizeConfig = CONFIG,
    progress: Callable[[int], None] = lambda done: None,
    limit: float = 0.5,
) -> bool:
    pictures = [unreadable() if i in (3, 12) else noise(30, 20, seed=i) for i in range(20)]
    failures = FailureLog(limit=limit)
    documents = counted([captioned(f"k{i}", picture) for i, picture in enumerate(pictures)], failures)
    return tokenize(documents, TEXT, IMAGE, out, failures, config, hooks=TokenizeHooks(progress=progress))


def interrupt(out: Path, after: int) -> None:
    """Stop once `after` copies were encoded."""
    done = 0

    def count(number: int) -> None:
        nonlocal done
        done += number
        if done >= after:
            raise Interrupted

    with pytest.raises(Interrupted):
        run(out, progress=count)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("unbroken")
    assert run(out)
    assert len(open_manifest(out).shards) == 6 and sum(open_manifest(out).skipped.values()) == 4
    return contents(out)


@pytest.mark.parametrize("after", [1, 10, 25, 40])
def test_an_interrupted_job_that_is_started_again_writes_the_same_bytes(
    after: int, tmp_path: Path, unbroken: dict[str, bytes]
) -> None:
    interrupt(tmp_path, after)
    assert not (tmp_path / "manifest.json").exists()
    assert run(tmp_path)
    assert contents(tmp_path) == unbroken


def test_a_finished_shard_is_not_made_again(tmp_path: Path) -> None:
    interrupt(tmp_path, 35)
    made = {file.name: file.stat().st_mtime_ns for file in tmp_path.glob("*.tar")}
    assert len(made) >= 3
    assert run(tmp_path)
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in made} == made


@pytest.mark.parametrize("damage", ["missing", "changed", "note"])
def test_a_shard_that_was_damaged_meanwhile_is_made_again(
    damage: str, tmp_path: Path, unbroken: dict[str, bytes]
) -> None:
    interrupt(tmp_path, 35)
    if damage == "missing":
        (tmp_path / "000001.tar").unlink()
    elif damage == "changed":
        (tmp_path / "000001.tar").write_bytes(b"x" + (tmp_path / "000001.tar").read_bytes()[1:])
    else:
        (tmp_path / "parts" / "000001.json").write_bytes(b'{"entry": {"name"')
    assert run(tmp_path)
    assert contents(tmp_path) == unbroken


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_ranks_in_any_order_write_the_bytes_of_one(
    order: tuple[int, ...], tmp_path: Path, unbroken: dict[str, bytes]
) -> None:
    for place, rank in enumerate(order):
        config = TokenizeConfig(**{**vars(CONFIG), "rank": rank, "world_size": 3})
        assert run(tmp_path, config) == (place == 2)
    assert contents(tmp_path) == unbroken


@pytest.mark.parametrize(("name", "value"), [("seed", 9), ("documents_per_shard", 8), ("aspect_ratio", 4)])
def test_a_job_with_other_settings_does_not_go_on_where_another_stopped(name: str, value: int, tmp_path: Path) -> None:
    interrupt(tmp_path, 25)
    with pytest.raises(ValueError, match=f"holds a part of other shards: tokenize was .*'{name}': {value}"):
        run(tmp_path, TokenizeConfig(**{**vars(CONFIG), name: value}))


def test_what_was_left_out_before_the_interruption_still_counts_against_the_limit(tmp_path: Path) -> None:
    interrupt(tmp_path, 40)
    with pytest.raises(TooMuchDamage, match="2 of 20 samples"):
        run(tmp_path, limit=0.09)


def test_two_documents_of_one_key_and_a_key_with_a_dot_are_named_and_left_out(tmp_path: Path) -> None:
    keys = ["a", "b", "a", "c.d", "b+1", "e"]
    documents = [captioned(key, noise(16, 16, seed=i)) for i, key in enumerate(keys)]
    failures = FailureLog(limit=0.6)
    tokenize(counted(documents, failures), TEXT, IMAGE, tmp_path, failures, CONFIG)
    assert [document.key for document in read_all(tmp_path)[1]] == ["a", "a+1", "b", "b+1", "e", "e+1"]
    assert [name for name, _ in failures.bad] == ["a", "c.d", "b+1"]
    assert sum(open_manifest(tmp_path).skipped.values()) == 3


def test_a_shard_of_which_nothing_is_usable_is_no_file_and_its_loss_is_counted(tmp_path: Path) -> None:
    documents = [captioned(f"k{i}", unreadable() if i < 3 else noise(16, 16, seed=i)) for i in range(6)]
    config = TokenizeConfig(documents_per_shard=3)
    assert tokenize(ListSource(documents), TEXT, IMAGE, tmp_path, FailureLog(limit=1), config)
    manifest = open_manifest(tmp_path)
    assert [entry.name for entry in manifest.shards] == ["000001.tar"]
    assert sum(manifest.skipped.values()) == 3 and len(read_all(tmp_path)[1]) == 3


@pytest.mark.slow
def test_a_job_killed_at_random_moments_writes_the_bytes_of_an_unbroken_one(tmp_path: Path) -> None:
    told = kill_and_resume(tmp_path, kills=2, seed=1)
    assert told["kills"] == 2 and told["shards"] == 30


def test_the_manifest_is_the_last_file(tmp_path: Path) -> None:
    interrupt(tmp_path, 40)
    assert (tmp_path / "parts" / "recipe.json").is_file()
    assert json.loads((tmp_path / "parts" / "000000.json").read_text())["entry"]["name"] == "000000.tar"
    run(tmp_path)
    assert not (tmp_path / "parts").exists()
