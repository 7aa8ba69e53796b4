"""Unicode's emoji by name: what a name settles (role, gender, skin tone, colour, ...) and which names are held out."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

TONES = ("default", "light", "medium-light", "medium", "medium-dark", "dark")
"""Skin tones; `default` is that of a name without one, where the same name also exists with each of the others."""
GENDERS = {"man": "male", "woman": "female", "person": "neutral"}
"""A name's word -> the gender that it states, in the terms of UTS #51. A role alone ("scientist") is neutral too."""
COLOURED_KINDS = frozenset("heart geometric flag punctuation food-fruit book-paper animal-mammal animal-bird".split())
"""Subgroups in which a colour word is the colour of what is drawn; a "black nib" is blue, a "white flower" is pink."""
HELD_OUT_SHARE = 0.1

_TONE = " skin tone"
_COLOUR = re.compile(r"\b(light blue|red|orange|yellow|green|blue|purple|brown|black|grey|white|pink)\b")
_CLOCK = re.compile(r"(?P<hour>\w+)(?: o’clock|-(?P<half>thirty))")
_LINE = re.compile(
    r"(?P<codes>[0-9A-F]+(?: [0-9A-F]+)*) *; *(?P<status>[a-z-]+) *# *\S+ +E[0-9]+\.[0-9]+ +(?P<name>\S.*)"
)


@dataclass(frozen=True, kw_only=True)
class Emoji:
    """One emoji. `sequence` is its text, of one or several code points; `facts` are attribute -> value."""

    sequence: str
    name: str
    facts: dict[str, str]

    @property
    def codes(self) -> str:
        """Its code points: `1F469 200D 1F52C`."""
        return " ".join(f"{ord(character):X}" for character in self.sequence)

    @property
    def combination(self) -> tuple[str, str, str] | None:
        """(role, gender, tone) where the name settles all three."""
        role, gender, tone = (self.facts.get(attribute) for attribute in ("role", "gender", "tone"))
        return (role, gender, tone) if role and gender and tone else None


@dataclass(frozen=True, kw_only=True)
class _Named:
    sequence: str
    name: str
    group: str
    kind: str

    @property
    def tones(self) -> list[str]:
        return [part.removesuffix(_TONE) for part in self._parts if part.endswith(_TONE)]

    @property
    def untoned(self) -> str:
        """The name without its skin tones."""
        base = self.name.partition(": ")[0]
        rest = [part for part in self._parts if not part.endswith(_TONE)]
        return f"{base}: {', '.join(rest)}" if rest else base

    @property
    def _parts(self) -> list[str]:
        rest = self.name.partition(": ")[2]
        return rest.split(", ") if rest else []


def read_emoji(file: Path) -> list[Emoji]:
    """The fully-qualified emoji of an `emoji-test.txt` (UTS #51), in file order.

    Raises ValueError, with the line, for a file that is not of that form or holds none.
    """
    group = kind = ""
    rows: list[_Named] = []
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"noto_emoji: {file} is not UTF-8") from error
    for number, line in enumerate(lines, start=1):
        if line.startswith("# group: "):
            group = line.removeprefix("# group: ").strip()
        elif line.startswith("# subgroup: "):
            kind = line.removeprefix("# subgroup: ").strip()
        elif line.strip() and not line.startswith("#"):
            found = _LINE.fullmatch(line.strip())
            if found is None:
                raise ValueError(f"noto_emoji: line {number} of {file} is not `CODES ; STATUS # EMOJI E1.0 NAME`")
            if found["status"] == "fully-qualified":
                sequence = "".join(chr(int(code, 16)) for code in found["codes"].split())
                rows.append(_Named(sequence=sequence, name=found["name"], group=group, kind=kind))
    if not rows:
        raise ValueError(f"noto_emoji: {file} names no fully-qualified emoji")
    return _with_facts(rows)


def grid_roles(emoji: Iterable[Emoji]) -> set[str]:
    """Roles that are there as a man and as a woman in every skin tone: the complete grid."""
    found: defaultdict[str, set[tuple[str, str]]] = defaultdict(set)
    for one in emoji:
        if one.combination is not None:
            role, gender, tone = one.combination
            found[role].add((gender, tone))
    whole = {(gender, tone) for gender in ("male", "female") for tone in TONES}
    return {role for role, combinations in found.items() if whole <= combinations}


def held_out(emoji: Sequence[Emoji]) -> set[str]:
    """Names of the test split: a tenth of the combinations of each role of the grid, and of all other emoji.

    Chosen by a hash of the name. A role keeps nine tenths of its combinations in training, so every role, gender and
    skin tone is trained on. Of an hour one clock stays in training. The others are hashed each for itself.
    """
    roles = grid_roles(emoji)
    by_role: defaultdict[str, list[str]] = defaultdict(list)
    clocks: defaultdict[str, list[str]] = defaultdict(list)
    chosen = set()
    for one in emoji:
        if one.combination is not None and one.combination[0] in roles:
            by_role[one.combination[0]].append(one.name)
        elif "hour" in one.facts:
            clocks[one.facts["hour"]].append(one.name)
        elif _share(one.name) < HELD_OUT_SHARE:
            chosen.add(one.name)
    one_an_hour = [min(names, key=_share) for names in clocks.values() if len(names) > 1]
    for names, num_all in [*((names, len(names)) for names in by_role.values()), (one_an_hour, 2 * len(one_an_hour))]:
        chosen.update(sorted(names, key=_share)[: round(HELD_OUT_SHARE * num_all)])
    return chosen


def _share(name: str) -> float:
    """A number in [0, 1) that depends on the name alone."""
    return int.from_bytes(hashlib.sha256(f"noto_emoji {name}".encode()).digest()[:8], "big") / 2**64


def _with_facts(rows: Sequence[_Named]) -> list[Emoji]:
    toned = {row.untoned for row in rows if len(row.tones) == 1}
    names = {row.untoned for row in rows}
    roles = {name.removeprefix("man ") for name in names if name.startswith("man ")}
    roles = {role for role in roles if f"woman {role}" in names}
    emoji = []
    for row in rows:
        facts = {"group": row.group, "kind": row.kind, **_person(row.untoned, roles), **_thing(row)}
        if len(row.tones) == 1:
            facts["tone"] = row.tones[0]
        elif not row.tones and row.name in toned:
            facts["tone"] = "default"
        emoji.append(Emoji(sequence=row.sequence, name=row.name, facts=facts))
    return emoji


def _person(name: str, roles: set[str]) -> dict[str, str]:
    """Gender and role of a name without skin tones: `woman scientist`, `scientist`, `woman: red hair`."""
    if name in roles:
        return {"gender": "neutral", "role": name}
    word, _, rest = name.partition(" ")
    if word in GENDERS and rest in roles:
        return {"gender": GENDERS[word], "role": rest}
    base = name.partition(": ")[0]
    return {"gender": GENDERS[base]} if base in GENDERS else {}


def _thing(row: _Named) -> dict[str, str]:
    """Country of a flag, hour of a clock, colour of a thing."""
    if row.kind in ("country-flag", "subdivision-flag"):
        return {"country": row.name.removeprefix("flag: ")}
    if row.kind == "time" and (clock := _CLOCK.fullmatch(row.name)):
        return {"hour": clock["hour"], "half": "half" if clock["half"] else "full"}
    colours = _COLOUR.findall(row.name)
    if row.kind in COLOURED_KINDS and len(colours) == 1 and not row.name.endswith(" button"):
        return {"colour": colours[0]}
    return {}
