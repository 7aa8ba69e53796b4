"""A reward that a service gives over HTTP (MiMo-VL's Reward-as-a-Service)."""

from __future__ import annotations

import base64
import io
import json
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from PIL import Image

from unimodal.training.rl.rewards.base import Answered, Reward


@dataclass(frozen=True, kw_only=True)
class HttpScorer(Reward):
    """Posts each answer as JSON to `url` and reads `{"score": number}`; `at_once` answers at a time.

    The body is `{"prompt": words, "answer": [{"text": ...} or {"image": PNG in base64}, ...], "facts": {...}}`, of the
    facts those that JSON has. A request that times out or fails with 429 or 5xx is sent again, `retries` times with a
    growing pause; then the reward of that answer is lost, named and counted.
    """

    url: str
    timeout: float = 10.0
    retries: int = 2
    at_once: int = 8

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"the address of a reward service starts with http:// or https://, got {self.url!r}")
        if self.timeout <= 0 or self.retries < 0 or self.at_once < 1:
            raise ValueError(f"timeout is above 0, retries not below 0 and at_once at least 1, got {self}")

    def score(self, answers: Sequence[Answered]) -> Sequence[float]:
        """See `Reward`."""
        with ThreadPoolExecutor(self.at_once) as pool:
            return list(pool.map(self._value, answers))

    def _value(self, answer: Answered) -> Any:
        try:
            return self._ask(json.dumps(_body(answer)).encode())
        except Exception as error:
            return error

    def _ask(self, body: bytes) -> Any:
        request = urllib.request.Request(self.url, body, {"Content-Type": "application/json"})
        for attempt in range(self.retries + 1):
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as reply:
                    return _read(reply.read())
            except urllib.error.HTTPError as error:
                if attempt == self.retries or not (error.code == 429 or error.code >= 500):
                    raise ValueError(f"{self.url} answered {error.code}") from error
            except OSError as error:
                if attempt == self.retries:
                    raise ValueError(f"{self.url} did not answer within {self.timeout:g} s: {error}") from error
            time.sleep(min(0.1 * 2**attempt, 2.0))
        raise AssertionError


def _read(reply: bytes) -> Any:
    try:
        return json.loads(reply)["score"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"no JSON object with a score: {reply[:80]!r}") from error


def _body(answer: Answered) -> dict[str, Any]:
    facts = {name: value for name, value in answer.prompt.facts.items() if _is_plain(value)}
    return {"prompt": answer.prompt.words, "answer": [_part(part) for part in answer.parts], "facts": facts}


def _part(part: str | Image.Image) -> dict[str, str]:
    if isinstance(part, str):
        return {"text": part}
    file = io.BytesIO()
    part.save(file, "PNG")
    return {"image": base64.b64encode(file.getvalue()).decode()}


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | int | float | bool)
