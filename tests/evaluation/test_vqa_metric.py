"""VQA accuracy and its normaliser."""

import itertools
import random

import pytest

from unimodal.evaluation.metrics.vqa import normalise_answer, vqa_accuracy, vqa_score


@pytest.mark.parametrize(
    ("raw", "normalised"),
    [
        ("  The Red  Ball.\n", "red ball"),
        ("an apple a day", "apple day"),
        ("Two", "2"),
        ("none", "0"),
        ("ten", "10"),
        ("eleven", "eleven"),
        ("dont", "don't"),
        ("couldntve", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("wont", "won't"),
        ("what’s", "what's"),
        ("1,000", "1000"),
        ("1,000 apples, red", "1000 apples red"),
        ("1,000-2", "10002"),
        ("red,blue", "red blue"),
        ("red, blue", "red blue"),
        ("t-shirt", "t shirt"),
        ("t- shirt", "t shirt"),
        ("3.5", "3.5"),
        ("mr. x", "mr x"),
        ("end.", "end"),
        ("u.s.a.", "usa"),
        ("$5", "$5"),
        ("yes!", "yes"),
    ],
)
def test_normaliser_follows_the_official_rules(raw: str, normalised: str) -> None:
    assert normalise_answer(raw) == normalised


@pytest.mark.parametrize(("matches", "score"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_ten_answers_give_the_published_steps(matches: int, score: float) -> None:
    references = ["red"] * matches + [f"other {index}" for index in range(10 - matches)]
    assert vqa_score("Red.", references) == pytest.approx(score, abs=1e-12)


def test_score_is_the_mean_over_subsets_that_leave_one_out() -> None:
    rng = random.Random(0)
    for _ in range(50):
        references = [rng.choice(["cat", "dog", "a cow"]) for _ in range(10)]
        subsets = list(itertools.combinations(references, 9))
        oracle = sum(min(1, subset.count("cat") / 3) for subset in subsets) / len(subsets)
        assert vqa_score("the cat", references) == pytest.approx(oracle, abs=1e-12)


def test_few_references_count_as_exact_match() -> None:
    assert vqa_score("A circle", ["circle"]) == 1
    assert vqa_score("circles", ["circle"]) == 0
    assert vqa_score("two", ["one", "2"]) == 1


def test_accuracy_is_the_mean_over_questions() -> None:
    assert vqa_accuracy(["yes", "no", "red"], [["yes"], ["yes"], ["red"]]) == pytest.approx(2 / 3)


def test_accuracy_without_questions_or_references_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one"):
        vqa_accuracy([], [])
    with pytest.raises(ValueError, match="no reference"):
        vqa_score("red", [])
