"""What sources of files read alike: JSON files, fields of text, pictures that must lie in their folder."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from data_pipelines.documents import DamagedSample, ImageSegment
from data_pipelines.sources.files import decoded

URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


@contextmanager
def at(place: str) -> Iterator[None]:
    """Damage found inside is noted to be at `place`, such as `images[2]`; the reason stays the same for every place."""
    try:
        yield
    except DamagedSample as error:
        error.add_note(place)
        raise


def named(sample: str, error: DamagedSample) -> str:
    """What to call a damaged sample: its own name, and the place in it that `at` noted."""
    return " ".join([sample, *getattr(error, "__notes__", ())])


def read_object(path: Path, source: str) -> dict[str, Any]:
    """A file with one JSON object. Raises ValueError, which names the source, where it is not that."""
    try:
        content = json.loads(decoded(path.read_bytes()))
    except FileNotFoundError as error:
        raise ValueError(f"{source}: {path} is not there") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source}: {path} is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{source}: {path} holds a {type(content).__name__}; it must be a JSON object")
    return content


def rows_of(content: Mapping[str, Any], name: str, path: Path, source: str) -> list[Any]:
    """A list in such an object. Raises ValueError where there is none."""
    rows = content.get(name)
    if not isinstance(rows, list):
        raise ValueError(f"{source}: {path} holds no list {name!r}")
    return rows


def whole_number(row: Any, field: str) -> int:
    """A field that must be a whole number; `row` must be a JSON object. Raises DamagedSample."""
    if not isinstance(row, dict):
        raise DamagedSample("not a JSON object")
    value = row.get(field)
    if not isinstance(value, int) or isinstance(value, bool):
        raise DamagedSample(f"{field} is not a whole number")
    return value


def parse_object(line: bytes) -> dict[str, Any]:
    """Bytes of one JSON object. Raises DamagedSample."""
    try:
        row = json.loads(decoded(line))
    except DamagedSample:
        raise
    except (ValueError, RecursionError) as error:
        raise DamagedSample("not JSON") from error
    if not isinstance(row, dict):
        raise DamagedSample("not a JSON object")
    return row


def text_field(row: Mapping[str, Any], field: str) -> str:
    """A field that must be text which can be written as UTF-8, without a byte order mark. Raises DamagedSample."""
    value = row.get(field)
    if value is None:
        raise DamagedSample(f"no {field}")
    if not isinstance(value, str):
        raise DamagedSample(f"{field} is not text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DamagedSample(f"{field} holds half a character (a lone surrogate)") from error
    return value.removeprefix("\ufeff")


def inside(folder: Path, file_name: str, field: str = "file_name") -> Path:
    """The picture's real place, which must lie in the folder, links followed. Raises DamagedSample."""
    try:
        picture = (folder / file_name).resolve()
    except (OSError, ValueError, RuntimeError) as error:
        raise DamagedSample(f"{field} is not a usable path") from error
    if not picture.is_relative_to(folder.resolve()):
        raise DamagedSample(f"{field} leads out of the folder")
    return picture


def segment_of(value: Any, folder: Path) -> ImageSegment:
    """A picture that a row names by its path in the folder, or holds: bytes, or Hugging Face's {"bytes", "path"}.

    Its header is read, so that what is no picture is named now; it is decoded in its turn. Raises DamagedSample.
    """
    if isinstance(value, Mapping):
        content = value.get("bytes")
        value = content if isinstance(content, bytes) else value.get("path")
    if isinstance(value, str):
        if URL.match(value):
            raise DamagedSample("is a URL; download the images first, e.g. with img2dataset")
        value = inside(folder, value, "path")
    if not isinstance(value, Path | bytes):
        raise DamagedSample("neither a path nor the bytes of an image")
    _check_header(value)
    return ImageSegment(source=value)


def _check_header(picture: Path | bytes) -> None:
    try:
        Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture).close()
    except FileNotFoundError as error:
        raise DamagedSample("missing file") from error
    except UnidentifiedImageError as error:
        raise DamagedSample("not an image, or of an unknown format") from error
    except Exception as error:  # readers of headers raise errors of every kind on damaged bytes
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise DamagedSample(f"cannot be read as an image ({reason})") from error


def check_picture(picture: Path) -> None:
    """Decode a picture once; read from bytes, so that a message about it does not repeat its path.

    Raises DamagedSample where it cannot be decoded.
    """
    try:
        content = picture.read_bytes()
    except FileNotFoundError as error:
        raise DamagedSample("missing file") from error
    except OSError as error:
        raise DamagedSample(f"cannot be read ({error.strerror})") from error
    if not content:
        raise DamagedSample("empty file (0 bytes)")
    ImageSegment(source=content).open()


def questions_of(row: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(question, answer) pairs from `question`/`answer` and from `qa`, in that order. Raises DamagedSample."""
    for pair in [*_parallel_questions(row), *_listed_questions(row)]:
        yield text_field(pair, "question"), text_field(pair, "answer")


def _parallel_questions(row: dict[str, Any]) -> list[dict[str, Any]]:
    questions, answers = row.get("question"), row.get("answer")
    if questions is None and answers is None:
        return []
    if not isinstance(questions, list) and not isinstance(answers, list):
        questions, answers = [questions], [answers]
    if not (isinstance(questions, list) and isinstance(answers, list) and len(questions) == len(answers)):
        raise DamagedSample("question and answer are not two strings or two lists of the same length")
    return [{"question": question, "answer": answer} for question, answer in zip(questions, answers, strict=True)]


def _listed_questions(row: dict[str, Any]) -> list[dict[str, Any]]:
    pairs = row.get("qa")
    if pairs is None:
        return []
    if not isinstance(pairs, list) or not all(isinstance(pair, dict) for pair in pairs):
        raise DamagedSample("qa is not a list of objects with question and answer")
    return pairs
