"""VQA accuracy and its normaliser."""

import itertools
import random

import pytest

from unimodal.evaluation.metrics.answers import normalise_answer
from unimodal.evaluation.metrics.vqa import normalise_vqav2, vqa_accuracy, vqa_score, vqav2_score


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
        ("A", ""),
    ],
)
def test_the_normaliser_of_vqav2_follows_the_official_rules(raw: str, normalised: str) -> None:
    assert normalise_vqav2(raw) == normalised


@pytest.mark.parametrize(("matches", "score"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_ten_answers_give_the_published_steps(matches: int, score: float) -> None:
    references = ["red"] * matches + [f"other {index}" for index in range(10 - matches)]
    assert vqa_score("Red.", references) == pytest.approx(score, abs=1e-12)
    assert vqav2_score("Red.", references) == pytest.approx(score if matches < 10 else 0.0, abs=1e-12)


def test_vqav2_compares_as_written_where_all_references_agree() -> None:
    assert vqav2_score("red", ["red"] * 10) == 1
    assert vqav2_score("red\n", ["red"] * 10) == 1, "the script drops line ends and spaces around an answer in any case"
    assert vqav2_score("Red", ["red"] * 10) == 0
    assert vqav2_score("the", ["A"] * 10) == vqav2_score("", ["A"] * 10) == 0
    assert vqav2_score("A", ["A"] * 10) == 1
    assert vqav2_score("what’s", ["what's"] * 9 + ["x"]) == 0, "the script knows one apostrophe"


def test_vqav2_erases_as_the_script_does_where_references_differ() -> None:
    assert vqav2_score("the", ["A"] * 9 + ["B"]) == 1, "both are nothing by then"
    assert vqav2_score("5", ["-5"] * 9 + ["B"]) == 1


@pytest.mark.parametrize(
    ("answer", "other"),
    [
        ("A", "the"),
        ("A", ""),
        ("?", "!"),
        ("?", ""),
        ("-5", "5"),
        ("+5", "-5"),
        ("C++", "C"),
        ("C#", "C"),
        ("1/2", "12"),
        ("$5", "5"),
        ("50%", "50"),
        ("1.5", "15"),
        ("1,5", "15"),
        ("5!", "5"),
        ("<", ">"),
        ("@home", "home"),
        ("vitamin A", "vitamin"),
        ("the A", "the B"),
        ("T-1", "T1"),
        ("\U0001f600", "\U0001f389"),
        ("\U0001f600", ""),
        ("\u0915\u093e\u0932\u093e", "\u0915\u093f\u0932\u093e"),
        ("\u0e19\u0e49\u0e33", "\u0e19\u0e33"),
        ("\u0645\u064e", "\u0645\u064f"),
        ("\u7ea2", "\u84dd"),
        ("re\u0301sume\u0301", "resume"),
    ],
)
def test_answers_that_differ_stay_different(answer: str, other: str) -> None:
    assert vqa_score(answer, [answer]) == 1
    assert vqa_score(other, [answer]) == vqa_score(answer, [other]) == 0
    assert vqa_score(other, [answer] * 10) == 0


@pytest.mark.parametrize(
    ("answer", "same"),
    [
        ("  The Red  Ball.\n", "red ball"),
        ("a dog", "dog"),
        ("Yes!", "yes"),
        ('"red"', "red"),
        ("\u00abred\u00bb", "red"),
        ("(A)", "a"),
        ("two", "2"),
        ("none", "0"),
        ("1,000", "1000"),
        ("dont", "don't"),
        ("what\u2019s", "whats"),
        ("red, blue", "red blue"),
        ("e\u0301t\u00e9", "\u00e9te\u0301"),
        ("\u0939\u093e\u0901\u0964", "\u0939\u093e\u0901"),
    ],
)
def test_spellings_of_one_answer_are_alike(answer: str, same: str) -> None:
    assert normalise_answer(answer) == normalise_answer(same) and vqa_score(answer, [same]) == 1


def test_an_empty_answer_is_never_right() -> None:
    assert vqa_score("", [""]) == vqa_score(" ", ["", "x"]) == vqa_score("", [""] * 10) == 0


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
