"""Scores that a dual encoder gives drawings: the right caption among others, and each attribute that captions have."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from random import Random
from statistics import fmean

from PIL import Image
from torch import Tensor

from data_pipelines.documents import Document
from unimodal.evaluation.contract import DocumentSource
from unimodal.evaluation.dual_encoder import DualEncoder, captioned

AMONG = 50
"""Captions that a picture is compared with, the right one among them."""
NO_FACTS = ("layout", "source", "split", "name", "codes", "task", "form")
"""Names in `meta` that are no attributes of a picture."""

Facts = Mapping[str, str]
Pictures = Sequence[Image.Image | None]


@dataclass(frozen=True, kw_only=True)
class CaptionPool:
    """Captions to compare with, those of held-out pictures, and the attributes of all that are known."""

    captions: tuple[str, ...]
    facts: Mapping[str, Facts] = field(default_factory=dict)

    @classmethod
    def of(cls, held_out: DocumentSource, trained: DocumentSource | None = None) -> CaptionPool:
        """Of the sources as they are; captions that only training has are alternatives for attributes alone."""
        captions, facts = dict[str, None](), dict[str, Facts]()
        for source in (held_out, trained):
            for document in () if source is None else source.documents():
                if found := captioned(document):
                    facts[found[1]] = facts_of(document)
                    if source is held_out:
                        captions[found[1]] = None
        return cls(captions=tuple(captions), facts=facts)

    def among(self, caption: str) -> list[str]:
        """The caption, then others by a choice that depends on it alone."""
        others = [other for other in self.captions if other != caption]
        return [caption, *Random(caption).sample(others, min(AMONG - 1, len(others)))]

    def alternatives(self, caption: str, attribute: str) -> list[str]:
        """The caption, then those whose attributes are the same but for this one."""
        facts = self.facts.get(caption, {})
        if attribute not in facts:
            return [caption]
        known = self._by_others[attribute, _others(facts, attribute)]
        return list({facts[attribute]: caption, **{v: c for v, c in known.items() if v != facts[attribute]}}.values())

    @cached_property
    def _by_others(self) -> dict[tuple[str, frozenset[tuple[str, str]]], dict[str, str]]:
        """(attribute, the others with their values) -> value of the attribute -> the first caption that has all."""
        found: defaultdict[tuple[str, frozenset[tuple[str, str]]], dict[str, str]] = defaultdict(dict)
        for caption, facts in self.facts.items():
            for attribute, value in facts.items():
                found[attribute, _others(facts, attribute)].setdefault(value, caption)
        return found

    def attributes(self, captions: Iterable[str]) -> list[str]:
        """In which any of these captions has alternatives."""
        names = dict.fromkeys(name for caption in captions for name in self.facts.get(caption, {}))
        return [name for name in names if any(len(self.alternatives(caption, name)) > 1 for caption in captions)]


def _others(facts: Facts, attribute: str) -> frozenset[tuple[str, str]]:
    return frozenset(item for item in facts.items() if item[0] != attribute)


def facts_of(document: Document) -> Facts:
    """The attributes in a document's `meta`."""
    return {name: value for name, value in document.meta.items() if isinstance(value, str) and name not in NO_FACTS}


def dual_scores(
    encoder: DualEncoder, pool: CaptionPool, captions: Sequence[str], pictures: Pictures, suffix: str = ""
) -> dict[str, float]:
    """Shares of pictures whose likeliest caption is theirs: among AMONG captions of the pool, and among those that
    differ in one attribute. `pictures` are of the captions, in order; one that is missing counts as wrong.

    suffix: what the names of the scores end with.
    """
    shown = [(caption, picture) for caption, picture in zip(captions, pictures, strict=True) if picture is not None]
    names = pool.attributes(dict.fromkeys(captions))
    compared = dict.fromkeys(
        other
        for caption, _ in shown
        for other in (*pool.among(caption), *(each for name in names for each in pool.alternatives(caption, name)))
    )
    column = {caption: number for number, caption in enumerate(compared)}
    likeness = encoder.likeness([picture for _, picture in shown], list(column)) if shown else None
    rows = {number: row for row, number in enumerate(n for n, picture in enumerate(pictures) if picture is not None)}

    def share(others_of: Mapping[str, list[str]]) -> float | None:
        found = [
            number in rows and _finds(likeness, rows[number], [column[other] for other in others_of[caption]])
            for number, caption in enumerate(captions)
            if len(others_of[caption]) > 1
        ]
        return fmean(found) if found else None

    distinct = list(dict.fromkeys(captions))
    scores = {f"caption_among_{AMONG}{suffix}": share({caption: pool.among(caption) for caption in distinct})}
    for name in names:
        others = {caption: pool.alternatives(caption, name) for caption in distinct}
        scores[f"{name}_right{suffix}"] = share(others)
    return {name: value for name, value in scores.items() if value is not None}


def _finds(likeness: Tensor | None, row: int, columns: list[int]) -> bool:
    """Whether the first of the columns is larger than all others."""
    assert likeness is not None
    values = likeness[row, columns]
    return bool((values[0] > values[1:]).all())
