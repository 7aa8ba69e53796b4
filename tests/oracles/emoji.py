"""A stand-in for Debian's emoji packages: a file of names, a small font of colour bitmaps, and one without a file."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fontTools.feaLib.builder import addOpenTypeFeaturesFromString
from fontTools.fontBuilder import FontBuilder
from fontTools.ttLib import newTable
from fontTools.ttLib.tables.BitmapGlyphMetrics import SmallGlyphMetrics
from fontTools.ttLib.tables.C_B_D_T_ import cbdt_bitmap_format_17
from fontTools.ttLib.tables.E_B_L_C_ import BitmapSizeTable, SbitLineMetrics, Strike, eblc_index_sub_table_1
from PIL import Image

from data_pipelines.documents import DamagedSample
from data_pipelines.sources.noto_emoji import EMOJI_FONT, EMOJI_NAMES
from data_pipelines.sources.noto_emoji_names import Emoji, grid_roles

TONES = {
    "": "",
    "light": "\U0001f3fb",
    "medium-light": "\U0001f3fc",
    "medium": "\U0001f3fd",
    "medium-dark": "\U0001f3fe",
    "dark": "\U0001f3ff",
}
PEOPLE = {"": "\U0001f9d1", "man ": "\U0001f468", "woman ": "\U0001f469"}
ROLES = {
    "scientist": "\U0001f52c",
    "artist": "\U0001f3a8",
    "pilot": "\u2708\ufe0f",
    "cook": "\U0001f373",
    "judge": "\u2696\ufe0f",
}
JOINER, SELECTOR = "\u200d", "\ufe0f"
THINGS = {
    ("Food & Drink", "food-fruit"): {"red apple": "\U0001f34e", "green apple": "\U0001f34f", "pear": "\U0001f350"},
    ("Travel & Places", "time"): {"one o’clock": "\U0001f550", "one-thirty": "\U0001f55c", "two o’clock": "\U0001f551"},
    ("Symbols", "geometric"): {"red circle": "\U0001f534", "blue circle": "\U0001f535"},
    ("Flags", "country-flag"): {"flag: Peru": "\U0001f1f5\U0001f1ea", "flag: Chad": "\U0001f1f9\U0001f1e9"}
    | {"flag: Brazil": "\U0001f1e7\U0001f1f7", "flag: Belize": "\U0001f1e7\U0001f1ff"},
}
"""The flags of Brazil and Belize are held out by the hash of their names."""


def scientists() -> dict[str, str]:
    """Name -> sequence for the five roles, three genders and six tones."""
    return {
        f"{person}{role}" + (f": {tone} skin tone" if tone else ""): symbol + modifier + JOINER + tool
        for role, tool in ROLES.items()
        for person, symbol in PEOPLE.items()
        for tone, modifier in TONES.items()
    }


def names_file(people: dict[str, str], things: dict[tuple[str, str], dict[str, str]]) -> str:
    """An emoji-test.txt, with what stands beside the names in Unicode's: comments and emoji that are not qualified."""
    lines = [
        "# emoji-test.txt",
        "# group: People & Body",
        "# subgroup: person-role",
        *map(_line, people, people.values()),
    ]
    for (group, subgroup), emoji in things.items():
        lines += ["", f"# group: {group}", f"# subgroup: {subgroup}", *map(_line, emoji, emoji.values())]
    lines += ["2708 ; unqualified # ✈ E0.6 airplane", "1F3FB ; component # x E1.0 light skin tone", "#EOF"]
    return "\n".join(lines) + "\n"


def _line(name: str, sequence: str) -> str:
    codes = " ".join(f"{ord(character):04X}" for character in sequence)
    return f"{codes:<40} ; fully-qualified     # {sequence} E12.1 {name}"


def write_emoji_folder(folder: Path, names: str, font: bytes = b"no font") -> Path:
    """A folder laid out as the unpacked packages are."""
    for file, content in ((EMOJI_FONT, font), (EMOJI_NAMES, names.encode())):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(content)
    return folder


def check_siblings_are_trained_on(train: list[Emoji], test: list[Emoji]) -> None:
    """Nothing is in both, and every two values of a held-out combination are still seen together in training."""
    assert not {one.name for one in train} & {one.name for one in test}
    roles = grid_roles([*train, *test])
    trained = {one.combination for one in train if one.combination}
    pairs = {pair for role, gender, tone in trained for pair in ((role, gender), (role, tone), (gender, tone))}
    held = [one.combination for one in test if one.combination and one.combination[0] in roles]
    assert held
    for role, gender, tone in held:
        assert {(role, gender), (role, tone), (gender, tone)} <= pairs


@dataclass
class PaintedFont:
    """Draws a picture of one colour for each sequence; `lacking` has none, `damaged` cannot be read."""

    file: Path
    lacking: Collection[str] = ()
    damaged: Collection[str] = ()
    same: dict[str, str] = field(default_factory=dict)
    """Sequence -> the other one whose picture it has."""

    def draw(self, sequence: str) -> Image.Image | None:
        if sequence in self.damaged:
            raise DamagedSample("its bitmap cannot be read (broken PNG)")
        if sequence in self.lacking:
            return None
        return Image.new("RGB", (128, 128), paint(self.same.get(sequence, sequence)))


def paint(sequence: str) -> tuple[int, int, int]:
    """A colour for each sequence."""
    red, green, blue = hashlib.sha256(sequence.encode()).digest()[:3]
    return red, green, blue


def bitmap_font(sequences: Iterable[str]) -> bytes:
    """A font as Noto's: one strike of size 109, ligatures for sequences, 136x128 bitmaps with empty outer columns.

    Code points of the sequences have a bitmap each, except the joiner and the variation selector, which have no glyph.
    """
    sequences = list(sequences)
    parts = sorted({character for sequence in sequences for character in sequence} - {JOINER, SELECTOR})
    ligatures = {sequence: f"lig{number}" for number, sequence in enumerate(s for s in sequences if len(s) > 1)}
    glyphs = {**{part: f"u{ord(part):X}" for part in parts}, **ligatures}
    order = [".notdef", "joiner", "selector", *glyphs.values()]
    builder = FontBuilder(2048, isTTF=True)
    builder.setupGlyphOrder(order)
    builder.setupCharacterMap({0x200D: "joiner", 0xFE0F: "selector"} | {ord(part): glyphs[part] for part in parts})
    builder.setupHorizontalMetrics(dict.fromkeys(order, (2550, 0)) | {"selector": (0, 0)})
    builder.setupHorizontalHeader(ascent=1900, descent=-500)
    builder.setupMaxp()
    builder.setupNameTable({"familyName": "Painted", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    names = {JOINER: "joiner", SELECTOR: "selector"} | {part: glyphs[part] for part in parts}
    rules = [f"sub {' '.join(names[c] for c in s if c != SELECTOR)} by {ligatures[s]};" for s in ligatures]
    addOpenTypeFeaturesFromString(builder.font, f"feature ccmp {{ {' '.join(rules)} }} ccmp;")
    _add_bitmaps(builder.font, {glyph: _png(paint(sequence)) for sequence, glyph in glyphs.items()})
    content = io.BytesIO()
    builder.save(content)
    return content.getvalue()


def _png(colour: tuple[int, int, int]) -> bytes:
    picture = Image.new("RGBA", (136, 128), (0, 0, 0, 0))
    picture.paste((*colour, 255), (4, 0, 132, 128))
    content = io.BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()


def _add_bitmaps(font: Any, pictures: dict[str, bytes]) -> None:
    """CBDT and CBLC (OpenType 1.9): one strike, PNGs with small metrics."""
    order = sorted(pictures, key=font.getGlyphID)
    line = dict.fromkeys(_LINE_FIELDS, 0) | {"ascender": 101, "descender": -27, "widthMax": 136}
    lines = {"hori": _with(SbitLineMetrics(), **line), "vert": _with(SbitLineMetrics(), **line)}
    first, last = font.getGlyphID(order[0]), font.getGlyphID(order[-1])
    strike = Strike()
    strike.bitmapSizeTable = _with(
        BitmapSizeTable(),
        **lines,
        colorRef=0,
        flags=1,
        bitDepth=32,
        ppemX=109,
        ppemY=109,
        startGlyphIndex=first,
        endGlyphIndex=last,
    )
    index = eblc_index_sub_table_1(b"", font)
    strike.indexSubTables = [_with(index, indexFormat=1, imageFormat=17, imageDataOffset=0, names=order)]
    font["CBDT"] = _with(newTable("CBDT"), version=3.0, strikeData=[dict(_bitmaps(order, pictures))])
    font["CBLC"] = _with(newTable("CBLC"), version=3.0, strikes=[strike])


def _with(table: Any, **fields: Any) -> Any:
    """A table of fontTools, whose fields are known at run time only."""
    table.__dict__.update(fields)
    return table


_LINE_FIELDS = (
    "ascender descender widthMax caretSlopeNumerator caretSlopeDenominator caretOffset minOriginSB minAdvanceSB "
    "maxBeforeBL minAfterBL pad1 pad2"
).split()


def _bitmaps(order: list[str], pictures: dict[str, bytes]) -> Iterator[tuple[str, Any]]:
    for glyph in order:
        metrics = _with(SmallGlyphMetrics(), height=128, width=136, BearingX=0, BearingY=101, Advance=136)
        yield glyph, _with(cbdt_bitmap_format_17(b"", None), metrics=metrics, imageData=pictures[glyph])
