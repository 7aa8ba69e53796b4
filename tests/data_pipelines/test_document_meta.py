"""Layout and task: what templates read of a document's meta, and that the rest of it is free."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_pipelines.documents import Document, TextSegment
from data_pipelines.shards.format import DamagedShard
from tests.oracles.token_documents import document, read, text, write


def test_a_document_is_a_sample_without_a_task_unless_its_meta_says_otherwise() -> None:
    plain = Document(key="k", segments=(TextSegment(text="a"),))
    assert (plain.layout, plain.task) == ("sample", None)
    edit = Document(key="k", segments=plain.segments, meta={"layout": "dialogue", "task": "edit"})
    assert (edit.layout, edit.task) == ("dialogue", "edit")


def test_what_else_meta_says_is_free(tmp_path: Path) -> None:
    (found,) = read(write(tmp_path, document(text("text", 8), task="of my own", note="anything")))
    assert (found.layout, found.task, found.meta["task"]) == ("sample", None, "of my own")


def test_shards_with_an_unknown_layout_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, document(text("text", 8), layout="simple"))
    with pytest.raises(DamagedShard, match=r"'d0': the layout of a document is one of sample, .*, got 'simple'"):
        read(folder)
