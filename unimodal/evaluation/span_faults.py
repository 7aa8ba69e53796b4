"""What is wrong with image spans that a model wrote without the state machine: their text, their length, their end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tokenizers_vq.token_space import TokenSpace


@dataclass(kw_only=True)
class SpanFaults:
    """Image spans, and those with each fault; one span may have several.

    stray_text: an id of text, or a special one, between the codes. wrong_length: other numbers of codes than the layout
    has. no_end: no eoi.
    """

    spans: int = 0
    stray_text: int = 0
    wrong_length: int = 0
    no_end: int = 0

    def shares(self) -> dict[str, float]:
        """Of all spans, by the name of the fault."""
        spans = max(self.spans, 1)
        return {
            "stray_text": self.stray_text / spans,
            "wrong_length": self.wrong_length / spans,
            "no_end": self.no_end / spans,
        }


def span_faults(answers: Iterable[Sequence[int]], space: TokenSpace) -> SpanFaults:
    """Over answers that are to be one image each; an answer that never begins one has all faults."""
    found = SpanFaults()
    for ids in answers:
        spans = list(_bodies(ids, space)) or [([-1], False)]
        for body, closed in spans:
            codes = [token for token in body if token >= space.text_size]
            whole = [space.specials.boi, *codes, space.specials.eoi]
            image = space.read_image(whole, 0)
            found.spans += 1
            found.stray_text += len(codes) < len(body)
            found.wrong_length += image is None or image.end != len(whole)
            found.no_end += not closed
    return found


def _bodies(ids: Sequence[int], space: TokenSpace) -> Iterable[tuple[list[int], bool]]:
    """What stands between each boi and its eoi, the next boi, the end token or the end; and whether it was an eoi."""
    specials = space.specials
    body: list[int] | None = None
    for token in ids:
        if token in (specials.boi, specials.eoi, specials.eos):
            if body is not None:
                yield body, token == specials.eoi
            body = [] if token == specials.boi else None
        elif body is not None:
            body.append(token)
    if body is not None:
        yield body, False
