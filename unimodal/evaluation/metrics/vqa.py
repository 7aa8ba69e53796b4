"""Scores for short answers: one against a few references, and the accuracy of VQAv2 as its script counts it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from unimodal.evaluation.metrics.answers import CONTRACTIONS, NUMBERS, normalise_answer

AnswerScore = Callable[[str, Sequence[str]], float]
"""An answer and what people answered -> a score in [0, 1]."""

MATCHES_FOR_FULL_SCORE = 3
"""An answer that three people gave is worth a full point."""

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA_DIGIT = re.compile(r"\d,\d")
_PERIOD_NOT_IN_NUMBER = re.compile(r"\.(?!\d)")
_ARTICLES = frozenset({"a", "an", "the"})


def vqa_score(answer: str, references: Sequence[str]) -> float:
    """Score in [0, 1] of one answer against what people answered, compared as `normalise_answer` writes both.

    With four references or more: the mean over all subsets that leave one out of min(1, matches / 3). With fewer: 1 if
    the answer equals any of them. An empty answer is never right. Raises ValueError without references.
    """
    _check(answer, references)
    normalised = normalise_answer(answer)
    matches = [bool(normalised) and normalise_answer(reference) == normalised for reference in references]
    return _leave_one_out(matches) if len(matches) > MATCHES_FOR_FULL_SCORE else float(any(matches))


def vqav2_score(answer: str, references: Sequence[str]) -> float:
    """Accuracy in [0, 1] as the official script of VQAv2 counts it (arXiv 1505.00468, section 3).

    Answer and references are normalised only where the references differ; where all agree, the answer has to be theirs
    as it is written. Raises ValueError without references.
    """
    _check(answer, references)
    answer = answer.replace("\n", " ").replace("\t", " ").strip()
    if len(set(references)) > 1:
        answer, references = normalise_vqav2(answer), list(map(normalise_vqav2, references))
    return _leave_one_out([reference == answer for reference in references])


def normalise_vqav2(text: str) -> str:
    """An answer as the script of VQAv2 compares it: lower case, digits for number words, no articles, few marks.

    A mark that touches a space, or any mark in an answer with a digit-comma-digit, is deleted, other marks become
    spaces; periods are deleted unless a digit follows; apostrophes are put back into contractions. Different answers
    can become equal, or nothing at all.
    """
    words = _strip_marks(text).lower().split()
    words = [NUMBERS.get(word, word) for word in words if NUMBERS.get(word, word) not in _ARTICLES]
    return " ".join(CONTRACTIONS.get(word, word) for word in words)


def vqa_accuracy(answers: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Mean of `vqa_score` over questions. Raises ValueError when there are none or the numbers differ."""
    if len(answers) != len(references) or not answers:
        raise ValueError(f"needs as many answers as questions and at least one, got {len(answers)}, {len(references)}")
    return sum(map(vqa_score, answers, references)) / len(answers)


def _check(answer: str, references: Sequence[str]) -> None:
    if not references:
        raise ValueError(f"no reference answer to compare {answer!r} with")


def _leave_one_out(matches: Sequence[bool]) -> float:
    total = sum(matches)
    return sum(min(1.0, (total - match) / MATCHES_FOR_FULL_SCORE) for match in matches) / len(matches)


def _strip_marks(text: str) -> str:
    joined = _DIGIT_COMMA_DIGIT.search(text) is not None
    result = text
    for mark in _MARKS:
        touches_space = f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if joined or touches_space else " ")
    return _PERIOD_NOT_IN_NUMBER.sub("", result)
