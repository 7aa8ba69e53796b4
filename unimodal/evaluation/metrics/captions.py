"""Scores for captions: exact match, BLEU-4, ROUGE-L and CIDEr-D, on words of our own simple tokenisation."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

import regex

Ngram = tuple[str, ...]
Words = list[str]

MAX_NGRAM = 4
ROUGE_BETA = 1.2
CIDER_SIGMA = 6.0
CIDER_SCALE = 10.0

_LETTER = r"[\p{L}\p{M}\p{N}_\u200c\u200d]"
"""Of a word: vowel signs and joiners too, which Hindi, Thai, Arabic and Persian spell words with."""
_SIGN = r"[\p{S}%‰٪#&@°*/\\]"
_WORD = regex.compile(
    rf"{_LETTER}+?(?=n't(?!{_LETTER}))|n't(?!{_LETTER})|'(?:s|re|ve|ll|d|m)(?!{_LETTER})"
    rf"|(?:(?<![\w)\]])[-+](?=\d))?{_LETTER}+(?:[.,\-]{_LETTER}+)*|{_SIGN}"
)


def tokenise(text: str) -> Words:
    """Lower-case words without punctuation, contractions split as the Penn Treebank does (`do n't`, `it 's`).

    Signs that are no punctuation (`+`, `$`, `%`, emoji) are words of their own; a minus stays with its number.
    """
    return _WORD.findall(unicodedata.normalize("NFC", text).lower().replace("’", "'"))


def has_words(text: str) -> bool:
    """Whether a caption has a letter or a digit: one of signs alone cannot be scored."""
    return any(character.isalnum() for word in tokenise(text) for character in word)


def exact_match(captions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Share of captions whose words are those of one of their references; a caption without words is wrong."""
    _check(captions, references)
    candidates, targets = _tokenised(captions, references)
    return sum(bool(words) and words in texts for words, texts in zip(candidates, targets, strict=True)) / len(captions)


def bleu4(captions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """BLEU-4 of the corpus (Papineni et al. 2002): clipped n-gram precision, brevity by the closest reference.

    Difference: n-gram orders that no reference is long enough for are excluded from the mean, so a corpus of
    three-word captions is scored on orders 1 to 3 (`bleu_orders`) rather than always 0.
    """
    _check(captions, references)
    candidates, targets = _tokenised(captions, references)
    length = sum(map(len, candidates))
    closest = sum(_closest_length(len(words), texts) for words, texts in zip(candidates, targets, strict=True))
    precisions = [_clipped_precision(candidates, targets, n) for n in range(1, bleu_orders(references) + 1)]
    if not length or not precisions or min(precisions) == 0:
        return 0.0
    mean = math.exp(sum(map(math.log, precisions)) / len(precisions))
    return mean * min(1.0, math.exp(1 - closest / length))


def bleu_orders(references: Sequence[Sequence[str]]) -> int:
    """The highest n-gram order, at most 4, that any reference is long enough for."""
    return min(MAX_NGRAM, max(len(tokenise(one)) for texts in references for one in texts))


def rouge_l(captions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Mean ROUGE-L (Lin 2004) with beta 1.2; best precision and best recall over the references, as COCO takes it."""
    _check(captions, references)
    scores = map(_rouge_l_one, *_tokenised(captions, references))
    return sum(scores) / len(captions)


def cider(captions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """CIDEr-D (arXiv 1411.5726, section 4.1): n = 1..4, sigma 6, times 10; what COCO reports as CIDEr.

    Document frequencies come from the evaluated references, so scores on different or tiny sets do not compare;
    with one picture every word is in every document and the score is 0.
    """
    _check(captions, references)
    candidates, targets = _tokenised(captions, references)
    frequency = Counter(gram for texts in targets for gram in {g for words in texts for g in _all_ngrams(words)})
    log_documents = math.log(len(targets))
    weights = {gram: log_documents - math.log(count) for gram, count in frequency.items()}

    def score(words: Words, texts: list[Words]) -> float:
        parts = [_similarity(words, one, n, weights, log_documents) for one in texts for n in range(1, MAX_NGRAM + 1)]
        return CIDER_SCALE * sum(parts) / len(parts)

    return sum(map(score, candidates, targets)) / len(candidates)


def _check(captions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    if len(captions) != len(references) or not captions:
        raise ValueError(f"needs as many captions as pictures and at least one, got {len(captions)}, {len(references)}")
    for index, texts in enumerate(references):
        if not any(map(has_words, texts)):
            raise ValueError(f"picture {index} has no reference caption with a word in it, got {list(texts)!r}")


def _tokenised(captions: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[list[Words], list[list[Words]]]:
    return [tokenise(caption) for caption in captions], [[tokenise(one) for one in texts] for texts in references]


def _ngrams(words: Words, n: int) -> Counter[Ngram]:
    return Counter(zip(*(words[start:] for start in range(n)), strict=False))


def _all_ngrams(words: Words) -> Iterable[Ngram]:
    return (gram for n in range(1, MAX_NGRAM + 1) for gram in _ngrams(words, n))


def _closest_length(length: int, texts: list[Words]) -> int:
    """Length of the reference nearest in length; of two as near, the shorter."""
    return min(map(len, texts), key=lambda other: (abs(other - length), other))


def _clipped_precision(candidates: list[Words], targets: list[list[Words]], n: int) -> float:
    correct = total = 0
    for words, texts in zip(candidates, targets, strict=True):
        grams = _ngrams(words, n)
        maximum: Counter[Ngram] = Counter()
        for one in texts:
            maximum |= _ngrams(one, n)
        correct += (grams & maximum).total()
        total += grams.total()
    return correct / total if total else 0.0


def _rouge_l_one(words: Words, texts: list[Words]) -> float:
    if not words:
        return 0.0
    common = [(_common_length(words, one), len(one)) for one in texts if one]
    precision = max(length for length, _ in common) / len(words)
    recall = max(length / size for length, size in common)
    if precision == 0:
        return 0.0
    return (1 + ROUGE_BETA**2) * precision * recall / (recall + ROUGE_BETA**2 * precision)


def _common_length(left: Words, right: Words) -> int:
    """Length of the longest common subsequence, one row at a time."""
    row = [0] * (len(right) + 1)
    for word in left:
        diagonal = 0
        for column, other in enumerate(right, start=1):
            above = row[column]
            row[column] = diagonal + 1 if word == other else max(above, row[column - 1])
            diagonal = above
    return row[-1]


def _similarity(words: Words, one: Words, n: int, weights: dict[Ngram, float], unseen: float) -> float:
    """Clipped tf-idf cosine of order n, damped by the difference in length."""
    candidate = {gram: count * weights.get(gram, unseen) for gram, count in _ngrams(words, n).items()}
    target = {gram: count * weights.get(gram, unseen) for gram, count in _ngrams(one, n).items()}
    norms = math.hypot(*candidate.values()) * math.hypot(*target.values())
    if norms == 0:
        return 0.0
    dot = sum(min(value, target.get(gram, 0.0)) * target.get(gram, 0.0) for gram, value in candidate.items())
    return dot / norms * math.exp(-((len(words) - len(one)) ** 2) / (2 * CIDER_SIGMA**2))
