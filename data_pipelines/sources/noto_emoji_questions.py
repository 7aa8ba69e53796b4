"""Questions about emoji that their names answer, balanced so that a model which sees no image cannot guess them."""

from __future__ import annotations

import random
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence

from data_pipelines.sources.noto_emoji_names import Emoji

EMOJI_QUESTIONS = {
    "group": ("what group of emoji is it from?", "is it from the group {}?"),
    "kind": ("what kind of emoji is it?", "is it of the kind {}?"),
    "role": ("what role is shown?", "is the role {}?"),
    "gender": ("what gender is shown?", "is the gender {}?"),
    "tone": ("what skin tone is shown?", "is it the {} skin tone?"),
    "colour": ("what colour is it?", "is it {}?"),
    "hour": ("what hour does the clock show?", "is the hour {}?"),
    "half": ("does the clock show a full or a half hour?", "does the clock show a {} hour?"),
    "country": ("which country or region has this flag?", "is it the flag of {}?"),
}
"""Attribute -> the question that its value answers, and the form of the yes-or-no questions about one value."""


def ask(emoji: Sequence[Emoji], trained: Iterable[Emoji], seed: str) -> list[list[tuple[str, str]]]:
    """For each emoji its (question, answer) pairs, in an order that says nothing.

    A value answers its question at most as often as the median value does. Each yes-or-no question has as many yes as
    no. Nothing is asked about values that no emoji of `trained` has. Questions depend on `emoji`, `trained` and `seed`.
    """
    known = {(attribute, value) for one in trained for attribute, value in one.facts.items()}
    asked: list[list[tuple[str, str]]] = [[] for _ in emoji]
    for attribute, (what, whether) in EMOJI_QUESTIONS.items():
        rng = random.Random(f"noto_emoji {seed} {attribute}")
        values = {index: one.facts[attribute] for index, one in enumerate(emoji) if attribute in one.facts}
        values = {index: value for index, value in values.items() if (attribute, value) in known}
        if len(set(values.values())) < 2:
            continue
        for index, value in _capped_at_median(values, rng).items():
            asked[index].append((what, value))
        paired = _capped_at_half(values, rng)
        for index, other in zip(paired, _exchanged(list(paired.values()), rng), strict=True):
            asked[index] += [(whether.format(paired[index]), "yes"), (whether.format(other), "no")]
    for one, pairs in zip(emoji, asked, strict=True):
        random.Random(f"noto_emoji {seed} {one.name}").shuffle(pairs)
    return asked


def _capped_at_median(values: dict[int, str], rng: random.Random) -> dict[int, str]:
    """A part of index -> value in which no value comes more often than the median value of all."""
    groups = _by_value(values)
    return _sampled(groups, statistics.median_low(map(len, groups.values())), rng)


def _capped_at_half(values: dict[int, str], rng: random.Random) -> dict[int, str]:
    """A part of index -> value in which no value comes more often than all others together."""
    groups = _by_value(values)
    largest = max(map(len, groups.values()))
    return _sampled(groups, min(largest, len(values) - largest), rng)


def _by_value(values: dict[int, str]) -> dict[str, list[int]]:
    groups: defaultdict[str, list[int]] = defaultdict(list)
    for index, value in values.items():
        groups[value].append(index)
    return groups


def _sampled(groups: dict[str, list[int]], limit: int, rng: random.Random) -> dict[int, str]:
    """Index -> value, in order, with at most `limit` indices of each value."""
    chosen = {}
    for value, indices in groups.items():
        chosen |= dict.fromkeys(rng.sample(indices, min(limit, len(indices))), value)
    return dict(sorted(chosen.items()))


def _exchanged(values: list[str], rng: random.Random) -> list[str]:
    """A random permutation of the values that gives every position another value; none may fill more than half."""
    others = rng.sample(values, len(values))
    for index, value in enumerate(values):
        if others[index] == value:
            # Of `count` equal values at most 2 * count - 1 positions hold or are given one, this position being both.
            free = [j for j, other in enumerate(others) if other != value and values[j] != value]
            chosen = rng.choice(free)
            others[index], others[chosen] = others[chosen], value
    return others
