"""Short answers compared outside of VQAv2: what only spells an answer differently is evened out, nothing more."""

from __future__ import annotations

import re
import unicodedata
from itertools import product

NUMBERS = {
    word: str(value) for value, word in enumerate("zero one two three four five six seven eight nine ten".split())
} | {"none": "0"}

_NEGATED = "ai are ca could did does do had has have is might must need ought sha should was were wo would".split()
_OTHER_CONTRACTIONS = (
    "ain't aren't can't could've he'd he's how'd how'll how's i'd've i'm i've it'd it'll ma'am might've must've "
    "o'clock she'd've she's should've somebody'd somebody'll somebody's someone'd someone'll someone's something'd "
    "something'll that's there'd there're there's they'd they'll they're they've 'twas we'd've we've what'll what're "
    "what's what've when's where'd where's where've who'd who'll who's who've why'll why're why's would've "
    "wouldn't've couldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've"
).split()


def _missing_apostrophes() -> dict[str, str]:
    """Contractions written with at least one apostrophe dropped -> how they are spelled."""
    spelled = [f"{verb}n't" for verb in _NEGATED] + _OTHER_CONTRACTIONS
    table: dict[str, str] = {}
    for word in spelled:
        parts = word.split("'")
        for joints in product(("", "'"), repeat=len(parts) - 1):
            variant = parts[0] + "".join(joint + part for joint, part in zip(joints, parts[1:], strict=True))
            if variant != word:
                table.setdefault(variant, word)
    return table


CONTRACTIONS = _missing_apostrophes()

_ARTICLE = re.compile(r"(?:a|an|the) (?=[^\W\d_]{2})")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_QUOTES = "\"'`“”„‘‹›«»"
_SENTENCE_ENDS = ".,;:…。，、।؟؛،？！"
_AFTER_WORDS = _SENTENCE_ENDS + "!?"
"""Marks that end a sentence behind a word. Behind a number `!` is a factorial, and stays."""


def normalise_answer(text: str) -> str:
    """An answer as it is compared: one case and spelling, without what surrounds it; never empty where `text` is not.

    Evened out: case, Unicode's composed forms (NFC), spaces, apostrophes of contractions, number words to ten, commas
    between thousands, quotation marks around the answer, marks that end a sentence, an article before a word.
    Everything else stays: signs, currency, combining marks, emoji, and an answer that is a mark or an article.
    """
    text = " ".join(unicodedata.normalize("NFC", text).replace("’", "'").lower().split())
    found = _THOUSANDS.sub("", _unwrapped(text))
    found = _ARTICLE.sub("", found, count=1) if _ARTICLE.match(found) else found
    words = [_without_end(word) for word in found.split()]
    return " ".join(CONTRACTIONS.get(word, NUMBERS.get(word, word)) for word in words) or text


def _unwrapped(text: str) -> str:
    """Without quotation marks or brackets that are around all of it, and the mark that ends the sentence."""
    ended = _without_end(text)
    for first, last in (*((quote, _QUOTES) for quote in _QUOTES), ("(", ")"), ("[", "]")):
        inner = ended[1:-1].strip()
        if len(ended) > 2 and ended[0] == first and ended[-1] in last and not set(inner) & {first, *last}:
            return _unwrapped(inner)
    return ended


def _without_end(word: str) -> str:
    """Without the marks behind it that end a sentence, where a word stands before them."""
    rest = word.rstrip(_AFTER_WORDS)
    if rest and rest[-1].isnumeric():
        rest = word.rstrip(_SENTENCE_ENDS)
    ends_in_word = rest and (unicodedata.category(rest[-1])[0] in "LMN" or rest[-1] in _QUOTES + ")]")
    return rest if ends_in_word else word
