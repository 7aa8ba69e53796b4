"""What the ids of a shard must be, whatever its hash says: each in the range of its kind, and every image whole.

All documents of a shard are compared at once, so that a shard is checked about as fast as it is read.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data_pipelines.shards.format import TokenDocument, TokenSegment
from tokenizers_vq.token_space import FixedLayout, TokenSpace

# Shapes: S segments, N ids of them all.

KeyedSegments = Sequence[tuple[str, TokenSegment]]


def check_documents(documents: Sequence[TokenDocument], space: TokenSpace) -> None:
    """Raises ValueError, naming the document, for an id outside its range and an image that is none of the layout."""
    for document in documents:
        _check_layout(document)
    segments = [(document.key, segment) for document in documents for segment in document.segments]
    for key, segment in segments:
        if segment.kind not in ("text", "image"):
            raise ValueError(f"{key!r} holds a segment of kind {segment.kind!r}; kinds are text and image")
    _check_ranges(segments, space)
    images = [(key, segment) for key, segment in segments if segment.kind == "image"]
    if images:
        wrong = malformed(*_joined(images), space)
        if wrong.any():
            key, image = images[int(wrong.argmax())]
            raise ValueError(
                f"{key!r} holds {len(image.ids)} image ids that are no image of the {space.layout.kind} layout"
            )


def malformed(lengths: np.ndarray, ids: np.ndarray, space: TokenSpace) -> np.ndarray:
    """Which images are not what `TokenSpace.image_body` writes: lengths (S,), ids (N,) of all of them -> (S,) bool.

    The ids are at least `text_size`. Of the fixed layout, only the number of codes is left to check.
    """
    if isinstance(space.layout, FixedLayout):
        return lengths != space.layout.num_codes
    starts = np.cumsum(lengths) - lengths
    padded = np.append(ids, (0, 0))  # an image without ids may stand at the end
    rows, columns = (padded[starts + offset] - space.text_size for offset in (0, 1))
    known = np.isin(rows * space.vocab_size + columns, [r * space.vocab_size + c for r, c in space.layout.sizes])
    known &= lengths == rows * (columns + 1) + 1
    width = np.repeat(columns + 1, lengths)
    position = np.arange(len(ids)) - np.repeat(starts, lengths) - 2
    right = np.where(position % width == width - 1, ids == space.eol, ids >= space.image_offset)
    wrong_ids = np.bincount(np.repeat(np.arange(len(lengths)), lengths), (position >= 0) & ~right, len(lengths))
    return ~known | (wrong_ids > 0)


def _check_layout(document: TokenDocument) -> None:
    try:
        _ = document.layout
    except ValueError as error:
        raise ValueError(f"{document.key!r}: {error}") from error


def _check_ranges(segments: KeyedSegments, space: TokenSpace) -> None:
    ranges = {"text": (0, space.text_size), "image": (space.text_size, space.vocab_size)}
    lengths, ids = _joined(segments)
    first, end = (np.repeat([ranges[s.kind][i] for _, s in segments], lengths) for i in (0, 1))
    (outside,) = np.nonzero((ids < first) | (ids >= end))
    if len(outside):
        key, segment = segments[int(np.searchsorted(np.cumsum(lengths), outside[0], side="right"))]
        first, end = ranges[segment.kind]
        raise ValueError(f"{key!r} holds {segment.kind} id {ids[outside[0]]}; those are {first} to {end - 1}")


def _joined(segments: KeyedSegments) -> tuple[np.ndarray, np.ndarray]:
    """Lengths (S,) and ids (N,) int64."""
    lengths = np.array([len(segment.ids) for _, segment in segments], dtype=np.int64)
    empty = np.zeros(0, dtype=np.int64)
    return lengths, np.concatenate([empty, *(segment.ids for _, segment in segments)]).astype(np.int64)
