"""Text that is shown while it is made: every piece stays, and together they are the whole, whatever the decoder."""

from __future__ import annotations

from random import Random

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from tests.oracles.tiny import tiny_text_tokenizer
from tokenizers_vq.text import BROKEN, TextTokenizer

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def byte_fallback() -> Tokenizer:
    """Llama 2's kind: bytes that make no character break the whole run."""
    names = ["<unk>", "<s>", "</s>", *BYTES, "\u2581", "a", "b", "\u2581the"]
    tokenizer = Tokenizer(
        models.BPE({name: i for i, name in enumerate(names)}, [], unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    pieces = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(pieces)
    return tokenizer


def word_pieces() -> Tokenizer:
    """BERT's kind: continuations begin with ##, and marks take the space before them."""
    names = ["[UNK]", "a", "##b", "##c", "do", "not", ".", ",", "'", "n", "##'t", "'s", "i", "'m", "can", "!"]
    tokenizer = Tokenizer(models.WordPiece({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=True)
    return tokenizer


def metaspace() -> Tokenizer:
    """T5's kind, with byte fallback."""
    entries = [("<pad>", 0.0), ("<unk>", 0.0), *[(name, -9.0) for name in BYTES], ("\u2581", -2.0), ("\u2581a", -2.0)]
    tokenizer = Tokenizer(models.Unigram([*entries, ("b", -2.0), (".", -2.0)], unk_id=1, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return tokenizer


def byte_level() -> Tokenizer:
    return Tokenizer.from_str(tiny_text_tokenizer().to_json())


@pytest.mark.parametrize("make", [byte_fallback, word_pieces, metaspace, byte_level])
def test_what_is_settled_stays_and_grows_to_the_whole_text(make) -> None:
    text, random = TextTokenizer(make()), Random(0)
    characters = [text.encode(one)[-1:] for one in "aé€😀 .b" if text.encode(one)]
    for _ in range(300):
        ids: list[int] = []
        while len(ids) < 12:
            ids += random.choice(characters) if random.random() < 0.3 else [random.randrange(text.size)]
        whole, shown = text.decode(ids), ""
        for end in range(1, len(ids) + 1):
            settled = text.settled(ids[:end])
            assert settled.startswith(shown), (ids[:end], shown, settled)
            shown = settled
        assert whole.startswith(shown), (ids, shown, whole)


def test_whole_characters_are_shown_at_once() -> None:
    text = TextTokenizer(byte_level())
    ids = text.encode("a é 😀 b")
    for end in range(len(ids) + 1):
        assert text.settled(ids[:end]) == text.decode(ids[:end]).rstrip(BROKEN)
    assert text.settled(ids) == "a é 😀 b"


def test_bytes_of_fallback_are_held_back_until_their_run_ends() -> None:
    text = TextTokenizer(byte_fallback())
    byte = {value: 3 + value for value in (0xC3, 0xA9, 0xFF)}
    letter = text.encode("a")[-1]
    run = [letter, byte[0xC3], byte[0xA9]]
    assert text.decode(run) == "aé" and text.settled(run) == "a"
    assert text.settled([*run, letter]) == "aéa"
    assert text.settled([*run, byte[0xFF], letter]) == text.decode([*run, byte[0xFF], letter]) == "a\ufffd\ufffd\ufffda"
