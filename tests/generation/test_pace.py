"""The window of drafts is the one that was measured to be the fastest, and none where none pays."""

from __future__ import annotations

import pytest

from tests.generation.test_drafts import DRAFTERS, engines
from tests.generation.test_engine import SPACES, ids, mixed_requests
from unimodal.generation.drafts.base import Drafting
from unimodal.generation.drafts.pace import DOUBT, TRIES, Pace

WINDOWS = (0, 2, 5)


def run(pace: Pace, gains: dict[int, float], passes: int, rows: int = 1) -> list[int]:
    """Windows of so many passes, of which each takes a second and gives as many tokens a row as `gains` says."""
    found = []
    for _ in range(passes):
        window = pace.window(rows, True)
        found.append(window)
        pace.note(window, rows, True, round(100 * rows * gains[window]), 1.0)
    return found


@pytest.mark.parametrize(
    ("gains", "best"),
    [({0: 1, 2: 2, 5: 1.5}, 2), ({0: 1, 2: 2, 5: 3}, 5), ({0: 1, 2: 0.7, 5: 0.4}, 0), ({0: 1, 2: 1.01, 5: 0.4}, 0)],
    ids=str,
)
def test_every_window_is_tried_and_the_fastest_is_kept(gains: dict[int, float], best: int) -> None:
    found = run(Pace(WINDOWS), gains, 200)
    assert found[: TRIES * 3] == [window for window in WINDOWS for _ in range(TRIES)]
    assert set(found[TRIES * 3 :]) == {best}
    assert gains[best] == 1 or gains[best] > DOUBT


def test_a_pace_that_changes_is_found_out() -> None:
    pace = Pace(WINDOWS)
    assert run(pace, {0: 1, 2: 2, 5: 3}, 150)[-1] == 5
    assert run(pace, {0: 1, 2: 0.5, 5: 0.4}, 60)[-1] == 0
    assert run(pace, {0: 1, 2: 3, 5: 0.4}, 400)[-1] == 2


def test_few_rows_and_many_are_judged_apart() -> None:
    pace = Pace(WINDOWS)
    assert run(pace, {0: 1, 2: 2, 5: 3}, 60)[-1] == 5
    assert run(pace, {0: 1, 2: 0.8, 5: 0.5}, 60, rows=16)[-1] == 0
    assert run(pace, {0: 1, 2: 2, 5: 3}, 60)[-1] == 5


def test_a_pass_that_compiles_does_not_count() -> None:
    pace = Pace(WINDOWS)
    for window, seconds in [(0, 1.0)] * 4 + [(2, 500.0)] + [(2, 1.0)] * 3 + [(5, 1.0)] * 4:
        assert pace.window(1, False) == window
        pace.note(window, 1, False, {0: 1, 2: 3, 5: 1}[window], seconds)
    assert pace.window(1, False) == 2


def test_answers_do_not_depend_on_the_pace() -> None:
    space = SPACES["grid"]
    plain, paced = engines(space, Drafting(DRAFTERS["all"], 5, Pace((0, 1, 5))))
    asked = mixed_requests(space, 40)
    assert ids(paced.decode(asked, rows=5)) == ids(plain.decode(asked))
    pace = paced.drafting.pace
    assert pace is not None
    assert all(sum(known.windows[window].passes for known in pace.records.values()) for window in (0, 1, 5))


def test_windows_that_never_pay_are_tried_ever_more_rarely() -> None:
    found = run(Pace(WINDOWS), {0: 1, 2: 0.5, 5: 0.4}, 9000)
    tried = [sum(window != 0 for window in found[start : start + 3000]) for start in range(0, 9000, 3000)]
    assert tried == sorted(tried, reverse=True) and sum(tried) < 0.01 * len(found)
