"""Questions about emoji: answers follow from names, and a model that sees no picture cannot guess them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.documents import Document, ImageSegment
from data_pipelines.failures import FailureLog
from data_pipelines.sources.noto_emoji import EMOJI_FONT, EMOJI_NAMES, NotoEmoji
from data_pipelines.sources.noto_emoji_names import TONES, Emoji, grid_roles, held_out, read_emoji
from data_pipelines.sources.noto_emoji_questions import EMOJI_QUESTIONS, ask
from tests.oracles.emoji import THINGS, check_siblings_are_trained_on, names_file, scientists

Pairs = Sequence[Sequence[tuple[str, str]]]
BLIND = 0.45
"""What a model without pictures may reach; with Noto 2.042 and Unicode 15.0 it is 0.412 in both splits."""


def by_question(asked: Pairs) -> dict[str, Counter[str]]:
    found: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for pairs in asked:
        for question, answer in pairs:
            found[question][answer] += 1
    return found


def blind(train: Pairs, scored: Pairs) -> float:
    """The share right of who gives every question the answer that it has most often in training."""
    best = {question: answers.most_common(1)[0][0] for question, answers in by_question(train).items()}
    found = by_question(scored)
    right = sum(answers[best[question]] for question, answers in found.items())
    return right / sum(answers.total() for answers in found.values())


def check_balance(train: Pairs, test: Pairs) -> None:
    """Questions of a split: as many yes as no by their words, other answers even, and the best blind guesses."""
    whats = {what for what, _ in EMOJI_QUESTIONS.values()}
    for asked in (train, test):
        for question, answers in by_question(asked).items():
            if question in whats:
                assert max(answers.values()) <= 2 * sorted(answers.values())[len(answers) // 2], question
            else:
                assert set(answers) == {"yes", "no"} and answers["yes"] == answers["no"], question
    assert by_question(test).keys() <= by_question(train).keys()
    assert blind(train, train) <= BLIND and blind(train, test) <= BLIND


@pytest.fixture
def emoji(tmp_path: Path) -> list[Emoji]:
    (tmp_path / "names").write_text(names_file(scientists(), THINGS), encoding="utf-8")
    return read_emoji(tmp_path / "names")


def test_a_blind_model_wins_nothing(emoji: list[Emoji]) -> None:
    test = held_out(emoji)
    train = [one for one in emoji if one.name not in test]
    held = [one for one in emoji if one.name in test]
    check_balance(ask(train, train, "train"), ask(held, train, "test"))


def test_every_answer_is_what_the_name_settles(emoji: list[Emoji]) -> None:
    forms = {what: (attribute, None) for attribute, (what, _) in EMOJI_QUESTIONS.items()}
    values = {(attribute, value) for one in emoji for attribute, value in one.facts.items()}
    forms |= {EMOJI_QUESTIONS[attribute][1].format(value): (attribute, value) for attribute, value in values}
    asked = ask(emoji, emoji, "0")
    for one, pairs in zip(emoji, asked, strict=True):
        assert len({question for question, _ in pairs}) == len(pairs)
        for question, answer in pairs:
            attribute, value = forms[question]
            right = one.facts[attribute]
            assert answer == (right if value is None else "yes" if value == right else "no")
    assert {forms[question][0] for pairs in asked for question, _ in pairs} == set(EMOJI_QUESTIONS)


def test_questions_repeat_with_their_seed_and_their_order_says_nothing(emoji: list[Emoji]) -> None:
    assert ask(emoji, emoji, "0") == ask(emoji, emoji, "0") != ask(emoji, emoji, "1")
    first = Counter(pairs[0][1] for pairs in ask(emoji, emoji, "0") if {"yes", "no"} >= {pairs[0][1]})
    assert min(first["yes"], first["no"]) > 0.3 * first.total()


def test_a_value_that_training_never_has_is_not_asked_about(emoji: list[Emoji]) -> None:
    without = [one for one in emoji if one.facts.get("role") != "cook" and "country" not in one.facts]
    words = " ".join(word for pairs in ask(emoji, without, "0") for pair in pairs for word in pair)
    assert "judge" in words and "cook" not in words and "flag of" not in words


@given(st.lists(st.sampled_from("aaaabbc"), min_size=0, max_size=30))
def test_yes_and_no_are_as_many_for_every_value_whatever_the_counts(values: list[str]) -> None:
    emoji = [Emoji(sequence="x", name=f"x{index}", facts={"colour": value}) for index, value in enumerate(values)]
    what, whether = EMOJI_QUESTIONS["colour"]
    found = by_question(ask(emoji, emoji, "0"))
    counts = Counter(values)
    if len(counts) < 2:
        assert found == {}
        return
    largest = max(counts.values())
    limit = min(largest, len(values) - largest)
    for value, count in counts.items():
        assert found[whether.format(value)] == {"yes": min(count, limit), "no": min(count, limit)}
    median = sorted(counts.values())[(len(counts) - 1) // 2]
    assert found[what] == {value: min(count, median) for value, count in counts.items()}


def installed() -> bool:
    return all((Path("/") / file).is_file() for file in (EMOJI_FONT, EMOJI_NAMES))


def pixels(document: Document) -> bytes:
    picture = document.segments[0]
    assert isinstance(picture, ImageSegment)
    opened = picture.open()
    assert opened.size == (128, 128)
    return opened.tobytes()


@pytest.mark.slow
def test_debians_packages_where_they_are_installed() -> None:
    """The real font and names: the grid is whole, every picture is another, questions are balanced."""
    if not installed():
        with pytest.raises(ValueError, match="apt-get install fonts-noto-color-emoji unicode-data"):
            NotoEmoji(split="train", failures=FailureLog())
        return
    train, test = (NotoEmoji(split=split, failures=FailureLog(limit=0)) for split in ("train", "test"))
    every = [*train.emoji, *test.emoji]
    roles = grid_roles(every)
    grid = [one for one in every if one.combination and one.combination[0] in roles]
    assert len(roles) >= 64 and len([one for one in grid if one.facts["gender"] != "neutral"]) == 12 * len(roles)
    assert len(every) >= 3600 and 0.08 < len(test) / len(every) < 0.12
    check_siblings_are_trained_on(train.emoji, test.emoji)
    check_balance(train.questions, test.questions)
    found = [pixels(document) for document in test.documents()]
    assert len(set(found)) == len(test) and b"\xff" * len(found[0]) not in found
    for role in ("woman scientist", "man running", "person juggling", "thumbs up"):
        names = {role if tone == "default" else f"{role}: {tone} skin tone" for tone in TONES}
        pictures = [train.font.draw(one.sequence) for one in every if one.name in names]
        assert len({picture.tobytes() for picture in pictures if picture is not None}) == len(TONES)
