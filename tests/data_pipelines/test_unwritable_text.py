"""Text that a foreign tokenizer cannot write: without ids it is skipped by name, with letters lost it is counted."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from data_pipelines.documents import Document, ImageSegment, TextSegment
from data_pipelines.encoding import LOSSY
from data_pipelines.failures import FailureLog
from data_pipelines.shards.reader import open_manifest
from data_pipelines.tokenize import TokenizeConfig, tokenize
from tests.data_pipelines.test_foreign_files import picture
from tests.oracles.pictures import ListSource
from tests.oracles.tiny import tiny_image_tokenizer
from tokenizers_vq.text import TextTokenizer


def words_only() -> Tokenizer:
    """A BPE without unknown token, which drops what it does not know."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=60, show_progress=False)
    tokenizer.train_from_iterator(["a red circle", "the mat"] * 20, trainer)
    return tokenizer


def with_pad() -> Tokenizer:
    """T5's kind: its vocabulary holds the names of special tokens."""
    letters = [(c, -5.0) for c in "abcdefghijklmnopqrstuvwxyz<>/"]
    entries = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -3.0), *letters]
    tokenizer = Tokenizer(models.Unigram(entries, unk_id=2))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    return tokenizer


def tokenized(texts: list[str], tokenizer: Tokenizer, out: Path) -> tuple[int, dict[str, int], dict[str, int]]:
    """Documents, reasons of those that were skipped, notes."""
    source = ListSource(
        [
            Document(key=str(n), segments=(ImageSegment(source=picture()), TextSegment(text=text, role="caption")))
            for n, text in enumerate(texts)
        ]
    )
    failures = FailureLog(limit=0.5, loud=False)
    failures.good = len(texts)
    tokenize(source, TextTokenizer(tokenizer), tiny_image_tokenizer(), out, failures, TokenizeConfig())
    manifest = open_manifest(out)
    return sum(entry.documents for entry in manifest.shards), manifest.skipped, manifest.source["notes"]


def test_a_caption_without_ids_is_skipped_and_one_that_loses_letters_is_counted(tmp_path: Path) -> None:
    texts = ["a red circle"] * 6 + ["\u041a\u043e\u0442", "\u732b", "a \u041a circle"]
    documents, skipped, notes = tokenized(texts, words_only(), tmp_path / "out")
    reason = "its caption has no ids: the text tokenizer writes none of its letters"
    assert documents == 7 and skipped == {reason: 2} and notes == {LOSSY: 1}


@pytest.mark.parametrize("name", ["<pad>", "</s>"])
def test_a_special_name_in_a_text_never_becomes_special_and_never_stops_the_job(name: str, tmp_path: Path) -> None:
    documents, skipped, _ = tokenized(["a red circle"] * 6 + [f"press {name} now"], with_pad(), tmp_path / "out")
    assert documents == 6 and skipped == {"its caption holds a special token's name, which is not spelt out": 1}


def test_bytes_write_everything() -> None:
    text = TextTokenizer.train(["a red circle"] * 9, 300)
    assert not any(text.loses(each, text.encode(each)) for each in ("\u041a\u043e\u0442", "\U0001f600", "a"))


def test_case_accents_and_spaces_are_no_letters_lost() -> None:
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "cafe": 1, "red": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    text = TextTokenizer(tokenizer)
    ids = tokenizer.encode("cafe red").ids
    assert not text.loses("Caf\u00e9   Red", ids)
    assert text.loses("cafe red blue", ids)
