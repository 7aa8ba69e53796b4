"""Rewards: each gives what it says, and one that cannot be had is named and counted."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, ClassVar

import pytest
from PIL import Image

from data_pipelines.failures import FailureLog, TooMuchDamage
from unimodal.training.rl.prompts.base import RLPrompt
from unimodal.training.rl.rewards.base import Answered, Reward, scored
from unimodal.training.rl.rewards.caption import CaptionMatch
from unimodal.training.rl.rewards.form import JsonForm, LengthForm, PatternForm, PictureCount
from unimodal.training.rl.rewards.right_answer import RightAnswer
from unimodal.training.rl.rewards.service import HttpScorer

PICTURE = Image.new("RGB", (8, 8), "red")


def answered(*parts: Any, **facts: Any) -> Answered:
    return Answered(prompt=RLPrompt(name="p", prompt="say it", facts=facts), parts=list(parts))


@pytest.mark.parametrize(
    ("reward", "answer", "expected"),
    [
        (RightAnswer(), answered(" Yes. ", answers=["yes"]), 1.0),
        (RightAnswer(), answered("no", answers=["yes"]), 0.0),
        (CaptionMatch(), answered("a red circle", captions=["A red circle."]), 1.0),
        (CaptionMatch(), answered("a red square", captions=["a red circle"]), 0.0),
        (CaptionMatch(metric="rouge"), answered("a red square", captions=["a red circle"]), 2 / 3),
        (CaptionMatch(metric="rouge"), answered("", captions=["a red circle"]), 0.0),
        (JsonForm(schema={"type": "object", "required": ["a"]}), answered('{"a": 1}'), 1.0),
        (JsonForm(schema={"type": "object", "required": ["a"]}), answered('{"b": 1}'), 0.0),
        (JsonForm(schema={"type": "object"}), answered("{"), 0.0),
        (PatternForm(pattern="[a-z]+"), answered("abc"), 1.0),
        (PatternForm(pattern="[a-z]+"), answered("abc1"), 0.0),
        (LengthForm(min_words=2, max_words=4), answered("one two"), 1.0),
        (LengthForm(min_words=2, max_words=4), answered("one two three four five"), 0.5),
        (PictureCount(), answered("two", PICTURE, PICTURE, pictures=2), 1.0),
        (PictureCount(), answered("one", PICTURE, pictures=2), 0.5),
        (PictureCount(), answered("none", pictures=1), 0.0),
    ],
)
def test_rewards_give_what_they_say(reward: Reward, answer: Answered, expected: float) -> None:
    assert reward.score([answer])[0] == pytest.approx(expected, abs=1e-9)


class Fixed(Reward):
    """Gives fixed values, or raises them."""

    def __init__(self, *values: Any) -> None:
        self.values = dict(enumerate(values))

    def score(self, answers: Sequence[Answered]) -> Sequence[float]:
        found = [self.values[int(each.text)] for each in answers]
        for value in found:
            if isinstance(value, Exception):
                raise value
        return found


def test_a_reward_that_is_lost_is_named_and_takes_no_other_away() -> None:
    log = FailureLog(limit=1.0, loud=False)
    values = (0.5, ValueError("no such picture"), float("nan"), 1.5, "well", -0.1, 1)
    found = scored("judge", Fixed(*values), [answered(str(number)) for number in range(len(values))], log)
    assert [value if value == value else None for value in found] == [0.5, None, None, None, None, None, 1.0]
    assert log.good == 2
    reasons = [reason for _, reason in log.bad]
    assert reasons[0] == "ValueError: no such picture"
    assert reasons[1:] == [
        "not finite: nan",
        "outside of [0, 1]: 1.5",
        "not a number: 'well'",
        "outside of [0, 1]: -0.1",
    ]
    assert {name for name, _ in log.bad} == {"reward judge of p"}


def test_too_many_lost_rewards_end_the_run() -> None:
    log = FailureLog(limit=0.1, loud=False)
    with pytest.raises(TooMuchDamage):
        for _ in range(10):
            scored("judge", Fixed(float("nan"), *[0.5] * 6), [answered(str(number)) for number in range(7)], log)


class Handler(BaseHTTPRequestHandler):
    asked: ClassVar[list[Any]] = []
    replies: ClassVar[list[tuple[int, bytes]]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        Handler.asked.append(body)
        status, reply = Handler.replies[min(len(Handler.asked), len(Handler.replies)) - 1]
        self.send_response(status)
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, format: str, *args: Any) -> None:
        """Silence."""


@pytest.fixture
def service() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    Handler.asked.clear()
    yield f"http://127.0.0.1:{server.server_address[1]}/score"
    server.shutdown()
    server.server_close()


def test_a_service_is_asked_with_words_and_pictures_and_again_after_a_failure(service: str) -> None:
    Handler.replies[:] = [(503, b""), (200, b'{"score": 0.25}')]
    scorer = HttpScorer(url=service, retries=1, at_once=1)
    assert list(scorer.score([answered("it is", PICTURE, answers=["x"], shown=PICTURE)])) == [0.25]
    assert len(Handler.asked) == 2
    body = Handler.asked[-1]
    assert body["prompt"] == "say it"
    assert body["facts"] == {"answers": ["x"]}
    assert [set(part) for part in body["answer"]] == [{"text"}, {"image"}]


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ((404, b""), "answered 404"),
        ((200, b"fine"), "no JSON object with a score"),
        ((200, b'{"score": 7}'), "outside"),
    ],
)
def test_a_bad_answer_of_a_service_is_a_lost_reward(service: str, reply: tuple[int, bytes], reason: str) -> None:
    Handler.replies[:] = [reply]
    log = FailureLog(limit=1.0, loud=False)
    [value] = scored("service", HttpScorer(url=service), [answered("a")], log)
    assert value != value
    assert reason in log.bad[0][1]


def test_a_service_that_does_not_answer_is_a_lost_reward() -> None:
    log = FailureLog(limit=1.0, loud=False)
    scored("service", HttpScorer(url="http://127.0.0.1:9", timeout=0.5, retries=0), [answered("a")], log)
    assert "did not answer within 0.5 s" in log.bad[0][1]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: PatternForm(pattern="("), "not a regular expression"),
        (lambda: LengthForm(min_words=5, max_words=2), "from min_words to max_words"),
        (lambda: HttpScorer(url="ftp://a"), "starts with http"),
        (lambda: JsonForm(schema={"type": 3}).validator, "not a JSON schema"),
    ],
)
def test_rewards_that_make_no_sense_are_refused(make: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        make()


def test_a_reward_that_fails_for_every_answer_is_not_asked_for_each() -> None:
    """A judge that cannot be opened was trained anew for each of 448 answers."""
    asked: list[int] = []

    class Broken(Reward):
        def score(self, answers: Sequence[Answered]) -> Sequence[float]:
            asked.append(len(answers))
            raise OSError("no judge here")

    log = FailureLog(limit=1.0, loud=False)
    found = scored("judge", Broken(), [answered("a")] * 100, log)
    assert all(value != value for value in found)
    assert asked == [100, 1, 1, 1]
    assert len(log.bad) == 100
