"""Caption scores against pycocoevalcap, and where they differ from it on purpose."""

import random

import pytest
from pycocoevalcap.bleu.bleu_scorer import BleuScorer
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from unimodal.evaluation.metrics.captions import bleu4, bleu_orders, cider, exact_match, rouge_l, tokenise

WORDS = "a the red blue small large circle square dog cat on under near left right of and".split()
Corpus = tuple[list[str], list[list[str]]]


def corpus(seed: int, pictures: int = 30) -> Corpus:
    """Candidates that share long runs of words with one of up to five references."""
    rng = random.Random(seed)
    captions, references = [], []
    for _ in range(pictures):
        own = [[rng.choice(WORDS) for _ in range(rng.randint(4, 14))] for _ in range(rng.randint(1, 5))]
        words = list(rng.choice(own))
        for _ in range(rng.randint(0, 3)):
            words[rng.randrange(len(words))] = rng.choice(WORDS)
        captions.append(" ".join(words[: rng.randint(3, len(words))]))
        references.append([" ".join(one) for one in own])
    return captions, references


def as_coco(captions: list[str], references: list[list[str]]) -> tuple[dict, dict]:
    return dict(enumerate(references)), {index: [caption] for index, caption in enumerate(captions)}


@pytest.mark.parametrize("seed", range(8))
def test_bleu_equals_the_reference_library(seed: int) -> None:
    captions, references = corpus(seed)
    scorer = BleuScorer(n=4)
    for caption, own in zip(captions, references, strict=True):
        scorer += (caption, own)
    expected, _ = scorer.compute_score(option="closest")
    assert bleu4(captions, references) == pytest.approx(expected[3], abs=1e-9)


@pytest.mark.parametrize("seed", range(8))
def test_rouge_equals_the_reference_library(seed: int) -> None:
    captions, references = corpus(seed)
    expected, _ = Rouge().compute_score(*as_coco(captions, references))
    assert rouge_l(captions, references) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(8))
def test_cider_equals_the_reference_library(seed: int) -> None:
    captions, references = corpus(seed)
    expected, _ = Cider().compute_score(*as_coco(captions, references))
    assert cider(captions, references) == pytest.approx(expected, abs=1e-9)


def test_an_empty_caption_scores_nothing_and_breaks_nothing() -> None:
    captions, references = corpus(0)
    for score in (cider, rouge_l):
        full = score(captions, references) * len(captions)
        own = score(["", *captions[1:]], references) * len(captions)
        assert own < full
    assert bleu4([""] * len(captions), references) == 0


def test_short_captions_are_scored_on_the_orders_that_exist() -> None:
    references = [["a teal triangle"], ["a red circle"]]
    assert bleu_orders(references) == 3
    assert bleu4(["a teal triangle", "a red circle"], references) == pytest.approx(1)
    assert 0 <= bleu4(["a teal triangle", "a red square"], references) < 1


def test_too_short_candidates_of_long_references_score_zero_in_bleu() -> None:
    assert bleu4(["a red circle"], [["a red circle on a white ground"]]) == 0


def test_exact_match_looks_at_words_only() -> None:
    assert exact_match(["A teal  triangle.", "a red circle"], [["a teal triangle"], ["a red square"]]) == 0.5


def test_tokens_are_lower_case_words_without_punctuation() -> None:
    assert tokenise("A dog's ball -- isn't it RED?") == ["a", "dog", "'s", "ball", "is", "n't", "it", "red"]
    assert tokenise("3.5 well-known, Mr. X") == ["3.5", "well-known", "mr", "x"]


def test_a_picture_without_a_reference_is_named() -> None:
    with pytest.raises(ValueError, match="picture 1 has no reference"):
        cider(["a", "b"], [["a"], ["?"]])


@pytest.mark.parametrize(
    ("caption", "other"),
    [
        ("\u0915\u093e\u0932\u093e", "\u0915\u093f\u0932\u093e"),
        ("\u0e19\u0e49\u0e33", "\u0e19\u0e33"),
        ("\u0645\u064f\u062f\u064e\u0631\u0650\u0651\u0633", "\u0645\u062f\u0631\u0633"),
        ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\u0645\u06cc \u062e\u0648\u0627\u0647\u0645"),
        ("minus -5 degrees", "minus 5 degrees"),
        ("C++ on a screen", "C on a screen"),
        ("1/2 full", "1 2 full"),
        ("$5 note", "5 note"),
        ("50% off", "50 off"),
        ("a dog \U0001f600", "a dog \U0001f389"),
        ("x < y", "x > y"),
    ],
)
def test_captions_that_differ_in_a_sign_are_different(caption: str, other: str) -> None:
    assert exact_match([caption, other], [[caption], [caption]]) == 0.5
    assert cider([caption, other, "z"], [[caption], [caption], ["z"]]) < cider(
        [caption, caption, "z"], [[caption], [caption], ["z"]]
    )


def test_a_caption_without_words_is_wrong() -> None:
    assert exact_match(["?", ""], [["!", "a cat"], ["...", "a dog"]]) == 0


def test_composed_and_decomposed_letters_are_one_word() -> None:
    assert tokenise("cafe\u0301 noir") == tokenise("caf\u00e9 noir")
