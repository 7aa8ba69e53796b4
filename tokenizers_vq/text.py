"""Text tokenizer: train a byte-level BPE, or open any Hugging Face tokenizer.json."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tokenizers_vq.token_space import SPECIAL_STRINGS, Specials

TOKENIZER_FILE = "tokenizer.json"

EVERY_LETTER = (
    "caf\u00e9 \u732b\u044f",
    "\U0001f600\U0001f9ff",
    "\u0939\u093f\u0902\u0e19\u0e49\u0e33",
    "\x00\ud7ff\u2028",
)
"""Text that only a tokenizer of bytes writes whole."""

BROKEN = "\ufffd"
"""What an incomplete UTF-8 character decodes to."""

STRAY_BYTES = ("<0xFF>", "\u00ff")
"""Tokens of a byte that begins no character, with byte fallback (Llama 2) and in byte-level vocabularies (GPT-2)."""


class TextTokenizer:
    """Bytes-exact text <-> ids. What a user types never becomes a special id."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        missing = [name for name in SPECIAL_STRINGS if tokenizer.token_to_id(name) is None]
        if missing:
            tokenizer.add_special_tokens(missing)
        tokenizer.encode_special_tokens = True
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._tokenizer = tokenizer
        self.specials = Specials(
            **{name.strip("<>"): int(tokenizer.token_to_id(name) or 0) for name in SPECIAL_STRINGS}
        )
        self._special_ids = {getattr(self.specials, name.strip("<>")) for name in SPECIAL_STRINGS}
        unknown = _unknown_id(tokenizer)
        added = tokenizer.get_added_tokens_decoder().items()
        self._never_typed = self._special_ids | {i for i, token in added if token.special and i != unknown}

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> TextTokenizer:
        """Byte-level BPE (arXiv 1909.02165 via GPT-2) of at most `vocab_size` ids; a small corpus gives fewer."""
        if vocab_size < 256 + len(SPECIAL_STRINGS):
            raise ValueError(
                f"a byte-level vocabulary needs at least {256 + len(SPECIAL_STRINGS)} ids, got {vocab_size}"
            )
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(SPECIAL_STRINGS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer=trainer)
        return cls(tokenizer)

    @classmethod
    def open(cls, path: Path) -> TextTokenizer:
        """Open a tokenizer.json, or a folder that holds one. Raises ValueError where it cannot be read."""
        file = path / TOKENIZER_FILE if path.is_dir() else path
        if not file.is_file():
            raise ValueError(f"{file} is missing")
        try:
            return cls(Tokenizer.from_file(str(file)))
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"{file} is not a tokenizer.json: {error}") from error

    def save(self, folder: Path) -> None:
        """Write tokenizer.json into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        self._tokenizer.save(str(folder / TOKENIZER_FILE))

    def encode(self, text: str) -> list[int]:
        """Text -> ids, never a special one: `<boi>` typed by a user is spelt out in pieces.

        Raises ValueError for a text that this tokenizer knows as a special token alone.
        """
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        if not self._never_typed.isdisjoint(ids):
            raise ValueError(f"this text cannot be encoded without special tokens: {text[:80]!r}")
        return ids

    def loses(self, text: str, ids: Sequence[int]) -> bool:
        """Whether letters of a text are gone from its ids: unknown ones, which this tokenizer cannot write.

        Case, accents, spaces and compatible forms, which a normaliser may even out, are no loss.
        """
        if self._writes_all:
            return False
        before, after = Counter(_letters(text)), Counter(_letters(self.decode(ids)))
        return bool(before - after)

    @cached_property
    def _writes_all(self) -> bool:
        """Whether letters of every kind come back, as with bytes."""
        return all(self.decode(self._tokenizer.encode(text).ids).strip() == text for text in EVERY_LETTER)

    def decode(self, ids: Sequence[int]) -> str:
        """Ids -> text; special ids are skipped, broken UTF-8 becomes U+FFFD."""
        return self._tokenizer.decode([i for i in ids if i not in self._special_ids], skip_special_tokens=True)

    def settled(self, ids: Sequence[int]) -> str:
        """The beginning of `decode(ids)` that no further id changes: what may be shown while an answer is made.

        A decoder may look ahead: a stray byte breaks the bytes before it (byte fallback), a mark takes the space before
        it. What differs when such an id follows is held back, and characters that are not whole.
        """
        text = self.decode(ids)
        for probe in self._probes:
            other = self.decode([*ids, probe])
            pairs = enumerate(zip(text, other, strict=False))
            text = text[: next((place for place, (one, two) in pairs if one != two), min(len(text), len(other)))]
        return text.rstrip(BROKEN)

    @cached_property
    def _probes(self) -> list[int]:
        """Ids that change as much as any of what stands before them."""
        ids = [self._tokenizer.token_to_id(name) for name in STRAY_BYTES]
        ids += [each[-1] for text in (".", "a", "n't") if (each := self._tokenizer.encode(text).ids)]
        return [number for number in dict.fromkeys(ids) if number is not None and number not in self._special_ids]

    def to_json(self) -> str:
        """The text of its tokenizer.json."""
        return self._tokenizer.to_str()

    @property
    def size(self) -> int:
        """The true number of ids, one past the largest."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def hash(self) -> str:
        """SHA-256 of the serialised tokenizer."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def _unknown_id(tokenizer: Tokenizer) -> int | None:
    """The id of characters that a model does not know, where it has one."""
    model = json.loads(tokenizer.to_str())["model"]
    name = model.get("unk_token")
    return model.get("unk_id") if name is None else tokenizer.token_to_id(name)


def _letters(text: str) -> str:
    """What no normaliser takes from a text: its letters, digits and signs, without case, accents and forms."""
    plain = unicodedata.normalize("NFKD", text).casefold()
    return "".join(c for c in plain if unicodedata.category(c)[0] in "LNPS")
