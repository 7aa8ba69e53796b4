"""noto_emoji: attributes follow from names, siblings of what is held out are trained on, a picture is one glyph."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import pytest
from PIL import features

from data_pipelines.documents import Document, ImageSegment, TextSegment
from data_pipelines.failures import FailureLog, TooMuchDamage
from data_pipelines.sources import noto_emoji, open_source
from data_pipelines.sources.noto_emoji import EMOJI_FONT, EMOJI_NAMES, NOT_ONE_GLYPH, SAME_PICTURE, NotoEmoji
from data_pipelines.sources.noto_emoji import EMOJI_SPLITS as SPLITS
from data_pipelines.sources.noto_emoji_font import EmojiFont
from data_pipelines.sources.noto_emoji_names import Emoji, held_out, read_emoji
from tests.oracles.emoji import (
    JOINER,
    ROLES,
    THINGS,
    PaintedFont,
    bitmap_font,
    check_siblings_are_trained_on,
    names_file,
    paint,
    scientists,
    write_emoji_folder,
)

PEOPLE = scientists()
NAMES = [*PEOPLE, *(name for emoji in THINGS.values() for name in emoji)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The unpacked packages in small; their font is painted, not read."""
    monkeypatch.setattr(noto_emoji, "EmojiFont", PaintedFont)
    return write_emoji_folder(tmp_path / "packages", names_file(PEOPLE, THINGS))


def opened(folder: Path, split: str = "train", limit: float = 0.1) -> NotoEmoji:
    return NotoEmoji(path=folder, split=split, failures=FailureLog(limit=limit))


def texts(document: Document, role: str) -> list[str]:
    return [part.text for part in document.segments if isinstance(part, TextSegment) and part.role == role]


# -- names


@pytest.mark.parametrize(
    ("name", "group", "kind", "facts"),
    [
        (
            "man cook: dark skin tone",
            "People & Body",
            "person-role",
            {"role": "cook", "gender": "male", "tone": "dark"},
        ),
        ("cook", "People & Body", "person-role", {"role": "cook", "gender": "neutral", "tone": "default"}),
        ("person: light skin tone, beard", "People & Body", "person", {"gender": "neutral", "tone": "light"}),
        ("man: red hair", "People & Body", "person", {"gender": "male"}),
        ("kiss: man, man, light skin tone, dark skin tone", "People & Body", "family", {}),
        ("woman and man holding hands", "People & Body", "family", {}),
        ("flag: Trinidad & Tobago", "Flags", "country-flag", {"country": "Trinidad & Tobago"}),
        ("black flag", "Flags", "flag", {"colour": "black"}),
        ("ten-thirty", "Travel & Places", "time", {"hour": "ten", "half": "half"}),
        ("twelve o’clock", "Travel & Places", "time", {"hour": "twelve", "half": "full"}),
        ("watch", "Travel & Places", "time", {}),
        ("light blue heart", "Smileys & Emotion", "heart", {"colour": "light blue"}),
        ("black square button", "Symbols", "geometric", {}),
        ("black nib", "Objects", "writing", {}),
        ("blueberries", "Food & Drink", "food-fruit", {}),
    ],
)
def test_a_name_settles_its_attributes_and_no_others(
    name: str, group: str, kind: str, facts: dict[str, str], tmp_path: Path
) -> None:
    others = {} if name in PEOPLE else PEOPLE
    (tmp_path / "names").write_text(names_file(others | PEOPLE, {(group, kind): {name: "x"}}), encoding="utf-8")
    found = [one for one in read_emoji(tmp_path / "names") if one.sequence == "x"]
    assert [one.facts for one in found] == [{"group": group, "kind": kind, **facts}]


def test_only_fully_qualified_emoji_are_read_in_file_order(folder: Path) -> None:
    found = read_emoji(folder / EMOJI_NAMES)
    assert [one.name for one in found] == NAMES
    assert {one.name: one.sequence for one in found if one.name in PEOPLE} == PEOPLE
    assert found[1].codes == "1F9D1 1F3FB 200D 1F52C"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"# group: Flags\n1F600 grinning face\n", "line 2 of .* is not `CODES ; STATUS"),
        (b"# nothing\n", "names no fully-qualified emoji"),
        (b"\xff\xfe", "is not UTF-8"),
    ],
)
def test_a_file_that_does_not_name_emoji_is_one_line(content: bytes, message: str, folder: Path) -> None:
    (folder / EMOJI_NAMES).write_bytes(content)
    with pytest.raises(ValueError, match=f"noto_emoji: .*{message}") as caught:
        opened(folder)
    assert "\n" not in str(caught.value)


# -- splits


def test_splits_share_nothing_and_siblings_of_held_out_combinations_are_trained_on(folder: Path) -> None:
    train, test = opened(folder), opened(folder, "test")
    check_siblings_are_trained_on(train.emoji, test.emoji)
    assert sorted(one.name for one in [*train.emoji, *test.emoji]) == sorted(NAMES)
    roles = [one.facts["role"] for one in test.emoji if "role" in one.facts]
    assert {role: roles.count(role) for role in ROLES} == dict.fromkeys(ROLES, 2), "a tenth of 18, rounded"


def test_what_is_held_out_depends_on_names_alone(folder: Path) -> None:
    emoji = read_emoji(folder / EMOJI_NAMES)
    assert held_out(emoji) == held_out(emoji[::-1])
    fewer = [one for one in emoji if one.facts.get("role") != "cook"]
    assert held_out(fewer) == {name for name in held_out(emoji) if "cook" not in name}
    assert {"woman pilot: medium-dark skin tone", "man pilot", "pear"} <= held_out(emoji)


def test_of_an_hour_one_clock_stays_in_training() -> None:
    hours = "one two three four five six seven eight nine ten eleven twelve".split()
    clocks = [
        Emoji(sequence=f"{hour}{half}", name=f"{hour} {half}", facts={"hour": hour, "half": half})
        for hour in hours
        for half in ("full", "half")
    ]
    held = held_out(clocks)
    assert len(held) == len({name.split()[0] for name in held}) == 2


# -- documents


def test_a_document_is_a_picture_its_name_and_questions_with_answers(folder: Path) -> None:
    source = opened(folder)
    documents = list(source.documents())
    assert len(documents) == len(source) == source.failures.good and not source.notes
    for one, document, pairs in zip(source.emoji, documents, source.questions, strict=True):
        picture = document.segments[0]
        assert isinstance(picture, ImageSegment) and picture.open().size == (128, 128)
        assert picture.open().getpixel((5, 5)) == paint(one.sequence)
        assert texts(document, "caption") == [one.name]
        assert list(zip(texts(document, "question"), texts(document, "answer"), strict=True)) == pairs
        assert {attribute: document.meta[attribute] for attribute in one.facts} == one.facts
    meta = next(document.meta for document in documents if document.meta["name"] == "woman cook: dark skin tone")
    assert meta == {
        "layout": "sample",
        "source": "noto_emoji",
        "split": "train",
        "name": "woman cook: dark skin tone",
        "codes": "1F469 1F3FF 200D 1F373",
        "group": "People & Body",
        "kind": "person-role",
        "role": "cook",
        "gender": "female",
        "tone": "dark",
    }
    assert len({document.key for document in documents}) == len(documents)
    assert documents[0].key == "train-1f9d1-200d-1f52c"
    assert documents == list(opened(folder).documents())


def test_emoji_without_one_glyph_and_pictures_of_two_names_are_counted(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge, artist, pear = PEOPLE["woman judge: light skin tone"], PEOPLE["man artist: dark skin tone"], "\U0001f350"
    same = {PEOPLE["man artist: medium skin tone"]: artist, PEOPLE["man artist"]: artist, "\U0001f34e": pear}
    monkeypatch.setattr(noto_emoji, "EmojiFont", partial(PaintedFont, lacking={judge}, same=same))
    sources = [opened(folder, split) for split in ("train", "test")]
    assert [source.notes for source in sources] == [{NOT_ONE_GLYPH: 1, SAME_PICTURE: 3}] * 2
    names = {one.name for source in sources for one in source.emoji}
    artists = {"man artist: medium skin tone", "man artist: dark skin tone"}
    assert set(NAMES) - names == {"woman judge: light skin tone", *artists, "red apple"}, "not the pear: it is shorter"


def test_a_country_that_no_training_flag_has_is_not_asked_for(folder: Path) -> None:
    asked = {split: {pair[0] for pairs in opened(folder, split).questions for pair in pairs} for split in SPLITS}
    held = {one.facts["country"] for one in opened(folder, "test").emoji if "country" in one.facts}
    assert held == {"Brazil", "Belize"}
    assert {"which country or region has this flag?", "is it the flag of Peru?"} <= asked["train"]
    assert not any("flag of" in question or "country or" in question for question in asked["test"])


def test_a_damaged_bitmap_is_named_and_the_rest_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damaged = next(one for one in opened(folder).emoji if one.name.startswith("man"))
    monkeypatch.setattr(noto_emoji, "EmojiFont", partial(PaintedFont, damaged={damaged.sequence}))
    source = opened(folder)
    assert damaged.name not in {document.meta["name"] for document in source.documents()}
    assert source.failures.bad == [(f"noto_emoji train {damaged.name}", "its bitmap cannot be read (broken PNG)")]
    assert source.failures.good == len(source) - 1
    with pytest.raises(TooMuchDamage):
        list(opened(folder, limit=0.001).documents())


def test_fingerprint_follows_the_files_and_the_split_and_not_their_folder(folder: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(folder, tmp_path / "moved"))
    assert opened(moved).fingerprint() == opened(folder).fingerprint() != opened(folder, "test").fingerprint()
    (moved / EMOJI_FONT).write_bytes(b"another font")
    assert opened(moved).fingerprint() != opened(folder).fingerprint()


@pytest.mark.parametrize("missing", [EMOJI_FONT, EMOJI_NAMES])
def test_a_missing_file_is_one_line_that_says_how_to_install_it(missing: Path, folder: Path) -> None:
    (folder / missing).unlink()
    with pytest.raises(
        ValueError, match=rf"noto_emoji: .*{missing.name} is not there; run `apt-get install "
    ) as caught:
        opened(folder)
    line = str(caught.value)
    assert "\n" not in line and str(folder / missing) in line
    assert "apt-get install fonts-noto-color-emoji unicode-data`" in line
    assert "apt-get download" in line and "dpkg -x" in line and "path=FOLDER" in line


def test_a_split_that_is_not_there_is_answered_with_those_there_are(folder: Path) -> None:
    with pytest.raises(ValueError, match="noto_emoji has no split 'val'; choose one of train, test"):
        open_source("noto_emoji", path=folder, split="val")


# -- glyphs


def without_raqm(file: Path) -> bool:
    """Whether Pillow lacks its layout engine here; then the font says so, which is all that it can do."""
    if features.check("raqm"):
        return False
    with pytest.raises(ValueError, match="needs Pillow's layout engine raqm"):
        EmojiFont(file)
    return True


def test_joined_sequences_are_one_glyph_and_others_are_not_drawn(tmp_path: Path) -> None:
    apple, flag = "\U0001f34e", "\U0001f1f5\U0001f1ea"
    (tmp_path / "font.ttf").write_bytes(bitmap_font([apple, flag, *PEOPLE.values()]))
    if without_raqm(tmp_path / "font.ttf"):
        return
    font = EmojiFont(tmp_path / "font.ttf")
    for sequence in (apple, f"{apple}\ufe0f", flag, *PEOPLE.values()):
        picture = font.draw(sequence)
        assert picture is not None and picture.size == (128, 128) and picture.mode == "RGB"
        assert picture.getcolors() == [
            (128 * 128, paint(sequence.removesuffix("\ufe0f") if apple in sequence else sequence))
        ]
    pear, cook = "\U0001f350", PEOPLE["cook"]
    for sequence in (
        pear,
        cook + pear,
        cook.replace(JOINER, ""),
        f"{apple}{JOINER}\U0001f373",
        flag + apple,
        flag[0] * 2,
    ):
        assert font.draw(sequence) is None, ascii(sequence)


def test_the_source_reads_a_font_from_its_folder(tmp_path: Path) -> None:
    sequences = [*PEOPLE.values(), *(sequence for emoji in THINGS.values() for sequence in emoji.values())]
    font = bitmap_font([sequence for sequence in sequences if sequence != "\U0001f350"])
    folder = write_emoji_folder(tmp_path, names_file(PEOPLE, THINGS), font)
    if without_raqm(folder / EMOJI_FONT):
        return
    source = opened(folder)
    assert source.notes == {NOT_ONE_GLYPH: 1}
    pictures = [document.segments[0] for document in source.documents()]
    colours = [picture.open().getpixel((64, 64)) for picture in pictures if isinstance(picture, ImageSegment)]
    assert colours == [paint(one.sequence) for one in source.emoji]


def test_a_bitmap_that_is_cut_off_is_damage_and_a_file_that_is_no_font_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = bitmap_font(["a", "b"])
    (tmp_path / "font.ttf").write_bytes(whole.replace(b"IDAT", b"XDAT"))
    (tmp_path / "none.ttf").write_bytes(b"no font")
    if without_raqm(tmp_path / "font.ttf"):
        return
    with pytest.raises(ValueError, match=r"noto_emoji: .*none.ttf is no font with bitmaps of size 109"):
        EmojiFont(tmp_path / "none.ttf")
    folder = write_emoji_folder(tmp_path, names_file({"letter": "a"}, {("Objects", "tool"): {"other": "b"}}), whole)
    broken = (folder / EMOJI_FONT).read_bytes().replace(b"IDAT", b"XDAT")
    (folder / EMOJI_FONT).write_bytes(broken)
    source = opened(folder, limit=1)
    assert list(source.documents()) == [] and len(source.failures.bad) == len(source) > 0
    monkeypatch.setattr(features, "check", lambda feature: False)
    with pytest.raises(ValueError, match="needs Pillow's layout engine raqm"):
        EmojiFont(tmp_path / "font.ttf")
