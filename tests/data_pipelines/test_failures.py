"""Failure policy: bad samples are named and counted, and past the limit it stops."""

from __future__ import annotations

import logging

import pytest

from data_pipelines.failures import SAMPLES_BEFORE_JUDGING, FailureLog, TooMuchDamage


def test_every_bad_sample_is_named_in_the_log_and_counted_by_reason(caplog: pytest.LogCaptureFixture) -> None:
    failures = FailureLog()
    with caplog.at_level(logging.WARNING):
        for name, reason in (("a.png", "missing file"), ("b.png", "missing file"), ("c.png", "empty caption")):
            failures.drop(name, reason)
    assert failures.summary() == {"missing file": 2, "empty caption": 1}
    assert caplog.records[0].getMessage() == "skipped a.png: missing file"
    assert len(caplog.records) == 3


def test_a_bad_start_is_judged_only_when_enough_was_seen() -> None:
    failures = FailureLog(limit=0.1)
    for _ in range(SAMPLES_BEFORE_JUDGING - 1):
        failures.drop("a", "broken")
    with pytest.raises(TooMuchDamage, match=f"{SAMPLES_BEFORE_JUDGING} of {SAMPLES_BEFORE_JUDGING} samples"):
        failures.drop("a", "broken")


def test_exactly_the_limit_is_borne_and_one_more_is_not() -> None:
    failures = FailureLog(limit=0.1)
    for _ in range(90):
        failures.keep()
    for _ in range(10):
        failures.drop("a", "broken")
    failures.close()
    with pytest.raises(
        TooMuchDamage, match="11 of 101 samples cannot be used, over the limit of 10%; the last is b: odd"
    ):
        failures.drop("b", "odd")


def test_a_small_set_is_judged_when_it_ends() -> None:
    failures = FailureLog(limit=0.5)
    failures.keep()
    failures.drop("a", "broken")
    failures.close()
    failures.drop("b", "broken")
    with pytest.raises(TooMuchDamage):
        failures.close()


def test_no_samples_at_all_is_no_damage() -> None:
    FailureLog(limit=0.0).close()


@pytest.mark.parametrize("limit", [-0.1, 1.5])
def test_a_limit_that_is_no_share_is_refused(limit: float) -> None:
    with pytest.raises(ValueError, match=f"between 0 and 1, got {limit}"):
        FailureLog(limit=limit)
