"""Text tokenizer: bytes come back exactly, and nothing that a user types becomes a special id."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from tokenizers_vq.text import TextTokenizer
from tokenizers_vq.token_space import SPECIAL_NAMES, SPECIAL_STRINGS, Specials

CORPUS = ["a red circle", "a blue circle", "is there a circle?", "what colour is the shape?"] * 4
TEXT = TextTokenizer.train(CORPUS, 300)
SPECIAL_IDS = set(range(len(SPECIAL_NAMES)))


@settings(deadline=None)
@given(text=st.text(max_size=40))
@example("👩‍👩‍👧 naïve — ‘quotes’\n\t\0 x")
@example(" leading and trailing ")
@example("é")  # decomposed stays decomposed
def test_any_text_comes_back_byte_for_byte_and_without_special_ids(text: str) -> None:
    ids = TEXT.encode(text)
    assert TEXT.decode(ids).encode() == text.encode()
    assert not SPECIAL_IDS & set(ids) and all(0 <= i < TEXT.size for i in ids)


@settings(deadline=None)
@given(parts=st.lists(st.sampled_from([*SPECIAL_STRINGS, "<", ">", "boi", " ", "red"]), max_size=8))
def test_special_strings_that_a_user_types_are_spelt_out(parts: list[str]) -> None:
    typed = "".join(parts)
    ids = TEXT.encode(typed)
    assert not SPECIAL_IDS & set(ids)
    assert TEXT.decode(ids) == typed


def test_special_tokens_take_the_first_ids() -> None:
    assert TEXT.specials == Specials()
    assert [getattr(TEXT.specials, name) for name in SPECIAL_NAMES] == list(range(7))


def test_special_ids_are_left_out_of_decoded_text() -> None:
    red = TEXT.encode("red")
    assert TEXT.decode([1, *red, 5, *red, 2, 0]) == "redred"


def test_broken_utf8_is_shown_and_no_error() -> None:
    assert "�" in TEXT.decode(TEXT.encode("é")[:1])


def test_a_small_corpus_gives_fewer_ids_than_asked_and_the_true_size_is_told() -> None:
    small = TextTokenizer.train(["ab"], 1000)
    largest = max(small._tokenizer.get_vocab().values())
    assert small.size == largest + 1 < 1000
    assert small.size == 256 + len(SPECIAL_STRINGS) + 1  # the one merge that the corpus gives


def test_a_vocabulary_too_small_for_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 263 ids, got 262"):
        TextTokenizer.train(CORPUS, 262)


def test_training_twice_and_saving_give_the_same_hash(tmp_path: Path) -> None:
    again = TextTokenizer.train(CORPUS, 300)
    again.save(tmp_path / "text")
    opened = TextTokenizer.open(tmp_path / "text")
    assert TEXT.hash == again.hash == opened.hash
    assert opened.encode("a red <boi> 😀") == TEXT.encode("a red <boi> 😀")
    assert TextTokenizer.train([*CORPUS, "zebra zebra zebra"], 300).hash != TEXT.hash


def word_level() -> Tokenizer:
    words = ["[UNK]", "[CLS]", "a", "red", "circle"]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 1)])
    tokenizer.enable_padding(length=12)
    tokenizer.enable_truncation(2)
    return tokenizer


def foreign_bpe() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=60, special_tokens=["<unk>", "<pad>"]))
    return tokenizer


def test_a_foreign_word_tokenizer_opens_and_gets_our_special_tokens_behind_its_own(tmp_path: Path) -> None:
    word_level().save(str(tmp_path / "tokenizer.json"))
    text = TextTokenizer.open(tmp_path)
    assert text.encode("a red circle") == [2, 3, 4], "neither cut, padded nor given a [CLS]"
    assert [getattr(text.specials, name) for name in SPECIAL_NAMES] == list(range(5, 12))
    assert text.size == 12
    assert not set(range(5, 12)) & set(text.encode("<boi> red <eoi>"))


def test_a_foreign_bpe_keeps_the_special_tokens_that_it_has(tmp_path: Path) -> None:
    foreign_bpe().save(str(tmp_path / "their.json"))
    text = TextTokenizer.open(tmp_path / "their.json")
    assert text.specials.pad == 1
    specials = {getattr(text.specials, name) for name in SPECIAL_NAMES}
    assert len(specials) == len(SPECIAL_NAMES) and max(specials) == text.size - 1
    assert not specials & set(text.encode("<pad> red <bos>"))
    text.save(tmp_path / "ours")
    assert TextTokenizer.open(tmp_path / "ours").hash == text.hash


@pytest.mark.parametrize("content", ["", "{}", "not json", '{"model": {"type": "Nonsense"}}'])
def test_what_is_no_tokenizer_is_refused_in_one_line_that_names_it(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a tokenizer\.json") as caught:
        TextTokenizer.open(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere is missing"):
        TextTokenizer.open(tmp_path / "nowhere")
