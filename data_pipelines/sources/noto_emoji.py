"""Noto's colour emoji with Unicode's names: 128x128 pictures, captions, and questions that the names answer.

Pictures are drawn from the font of Debian's package fonts-noto-color-emoji (SIL Open Font License 1.1; its images are
under Apache-2.0) when a document is made, and names are read from Debian's package unicode-data (Unicode License).
Neither is part of this repository.
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_pipelines.documents import DamagedSample, Document, ImageSegment, Segment, TextSegment
from data_pipelines.failures import FailureLog
from data_pipelines.sources.noto_emoji_font import EmojiFont
from data_pipelines.sources.noto_emoji_names import Emoji, held_out, read_emoji
from data_pipelines.sources.noto_emoji_questions import ask
from data_pipelines.sources.source import fingerprint_files

EMOJI_SPLITS = ("train", "test")
EMOJI_FONT = Path("usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
EMOJI_NAMES = Path("usr/share/unicode/emoji/emoji-test.txt")

NOT_ONE_GLYPH = "emoji skipped in both splits: the font has no single glyph for them"
SAME_PICTURE = "emoji skipped in both splits: drawn exactly as one with a shorter name"


class NotoEmoji:
    """One sample document for each emoji of the split, in Unicode's order: picture, name, questions and answers.

    path: the folder into which Debian's packages were unpacked; the root of the file system when None.
    split: `test` is about a tenth: for each role, combinations of gender and skin tone that training never shows, and
    other emoji, all chosen by a hash of their names. `meta` holds the attributes that the name settles.
    Raises ValueError for a split or files that are not there.
    """

    def __init__(self, *, path: Path | None = None, split: str, failures: FailureLog) -> None:
        if split not in EMOJI_SPLITS:
            raise ValueError(f"noto_emoji has no split {split!r}; choose one of {', '.join(EMOJI_SPLITS)}")
        self.split, self.failures = split, failures
        self.root = Path("/") if path is None else path
        for file in (EMOJI_FONT, EMOJI_NAMES):
            if not (self.root / file).is_file():
                raise ValueError(_how_to_install(self.root / file))
        self.notes: dict[str, int] = {}
        named = read_emoji(self.root / EMOJI_NAMES)
        self.font = EmojiFont(self.root / EMOJI_FONT)
        drawable = self._drawable(named)
        test = held_out(drawable)
        trained = [one for one in drawable if one.name not in test]
        self.emoji = trained if split == "train" else [one for one in drawable if one.name in test]
        self.questions = ask(self.emoji, trained, split)

    def __len__(self) -> int:
        return len(self.emoji)

    def fingerprint(self) -> str:
        """SHA-256 over the font, the file of names and the names of the split."""
        files = [self.root / EMOJI_FONT, self.root / EMOJI_NAMES]
        lines = [fingerprint_files(self.root, whole=files, listed=()), *(one.name for one in self.emoji)]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def documents(self) -> Iterator[Document]:
        """Emoji as documents, each picture drawn in its turn. Raises TooMuchDamage past the failure limit."""
        for one, pairs in zip(self.emoji, self.questions, strict=True):
            try:
                document = self._document(one, pairs)
            except DamagedSample as error:
                self.failures.drop(f"noto_emoji {self.split} {one.name}", str(error))
            else:
                self.failures.keep()
                yield document
        self.failures.close()

    def _document(self, emoji: Emoji, pairs: Sequence[tuple[str, str]]) -> Document:
        picture = self.font.draw(emoji.sequence)
        assert picture is not None
        content = io.BytesIO()
        picture.save(content, "PNG")
        image = ImageSegment(source=content.getvalue())
        segments: list[Segment] = [image, TextSegment(text=emoji.name, role="caption")]
        for question, answer in pairs:
            segments += [TextSegment(text=question, role="question"), TextSegment(text=answer, role="answer")]
        meta = {"layout": "sample", "source": "noto_emoji", "split": self.split, "name": emoji.name}
        meta |= {"codes": emoji.codes, **emoji.facts}
        key = f"{self.split}-{emoji.codes.replace(' ', '-').lower()}"
        return Document(key=key, segments=tuple(segments), meta=meta)

    def _drawable(self, named: Sequence[Emoji]) -> list[Emoji]:
        """Emoji with a picture that no emoji of a shorter name has; the others are counted in the notes.

        Damaged bitmaps stay, to be counted when their documents are made.
        """
        kept: dict[bytes, str] = {}
        damaged, counts = set(), Counter[str]()
        for one in sorted(named, key=lambda one: len(one.name)):
            try:
                picture = self.font.draw(one.sequence)
            except DamagedSample:
                damaged.add(one.name)
                continue
            if picture is None:
                counts[NOT_ONE_GLYPH] += 1
            elif kept.setdefault(hashlib.sha256(picture.tobytes()).digest(), one.name) != one.name:
                counts[SAME_PICTURE] += 1
        self.notes = dict(counts)
        names = damaged.union(kept.values())
        return [one for one in named if one.name in names]


def _how_to_install(missing: Path) -> str:
    return (
        f"noto_emoji: {missing} is not there; run `apt-get install fonts-noto-color-emoji unicode-data`, or without "
        "root `apt-get download fonts-noto-color-emoji unicode-data && for deb in *.deb; do dpkg -x $deb FOLDER; done` "
        "and give path=FOLDER"
    )
