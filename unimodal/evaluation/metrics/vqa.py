"""Scores for short answers: the VQA accuracy and the normaliser that goes with it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import product

MATCHES_FOR_FULL_SCORE = 3
"""An answer that three people gave is worth a full point."""

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA_DIGIT = re.compile(r"\d,\d")
_PERIOD_NOT_IN_NUMBER = re.compile(r"\.(?!\d)")
_ARTICLES = frozenset({"a", "an", "the"})
_NUMBERS = {
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


_CONTRACTIONS = _missing_apostrophes()


def normalise_answer(text: str) -> str:
    """An answer as the VQA evaluation compares it: lower case, digits for number words, no articles, few marks.

    The rules of the official VQA evaluation (arXiv 1505.00468, section 3, and its published script): a mark that
    touches a space, or any mark in an answer with a digit-comma-digit, is deleted, other marks become spaces;
    periods are deleted unless a digit follows; apostrophes are put back into contractions. Difference: the script
    skips this when all references agree, here every answer goes through it.
    """
    text = " ".join(text.replace("’", "'").split())
    words = _strip_marks(text).lower().split()
    words = [_NUMBERS.get(word, word) for word in words if word not in _ARTICLES]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words)


def _strip_marks(text: str) -> str:
    joined = _DIGIT_COMMA_DIGIT.search(text) is not None
    result = text
    for mark in _MARKS:
        touches_space = f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if joined or touches_space else " ")
    return _PERIOD_NOT_IN_NUMBER.sub("", result)


def vqa_score(answer: str, references: Sequence[str]) -> float:
    """Score in [0, 1] of one answer against what people answered.

    With four references or more (VQAv2 has ten): the mean over all subsets that leave one reference out of
    min(1, matches / 3). With fewer, where three matches beside the one left out cannot happen: 1 if the answer
    equals any reference after normalisation, else 0. Raises ValueError without references.
    """
    if not references:
        raise ValueError(f"no reference answer to compare {answer!r} with")
    normalised = normalise_answer(answer)
    matches = [normalise_answer(reference) == normalised for reference in references]
    if len(matches) <= MATCHES_FOR_FULL_SCORE:
        return float(any(matches))
    total = sum(matches)
    return sum(min(1.0, (total - match) / MATCHES_FOR_FULL_SCORE) for match in matches) / len(matches)


def vqa_accuracy(answers: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Mean of `vqa_score` over questions. Raises ValueError when there are none or the numbers differ."""
    if len(answers) != len(references) or not answers:
        raise ValueError(f"needs as many answers as questions and at least one, got {len(answers)}, {len(references)}")
    return sum(map(vqa_score, answers, references)) / len(answers)
