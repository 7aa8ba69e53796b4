"""Alarms: each begins where it should, is said once, and stays silent on a healthy run."""

from __future__ import annotations

import pytest

from unimodal.training.rl.alarms import Alarms

HEALTHY = {
    "grad_norm": 0.1,
    "zero_std_groups": 0.3,
    "rewards_lost": 0.0,
    "log_prob_gap": 1e-3,
    "pictures_cut_off": 0.0,
    "entropy_text": 1.0,
    "entropy_image": 2.0,
    "reward": 0.5,
}


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("no_gradient", {"grad_norm": 0.0}),
        ("equal_groups", {"zero_std_groups": 1.0}),
        ("reward_lost", {"rewards_lost": 0.01}),
        ("log_prob_gap", {"log_prob_gap": 0.02}),
        ("picture_cut_off", {"pictures_cut_off": 0.1}),
        ("entropy_text_collapsed", {"entropy_text": 0.05}),
        ("entropy_image_collapsed", {"entropy_image": 0.1}),
    ],
)
def test_an_alarm_begins_is_said_once_and_ends(
    name: str, change: dict[str, float], capsys: pytest.CaptureFixture[str]
) -> None:
    alarms = Alarms()
    assert alarms.check(HEALTHY) == []
    assert capsys.readouterr().out == ""
    for _ in range(2):
        assert alarms.check(HEALTHY | change) == [name]
    assert capsys.readouterr().out.count(f"alarm {name}") == 1
    assert alarms.check(HEALTHY) == []
    assert alarms.check(HEALTHY | change) == [name]
    assert capsys.readouterr().out.count(f"alarm {name}") == 1


def test_a_clip_within_the_noise_of_log_probabilities_is_refused() -> None:
    with pytest.raises(ValueError, match=r"clipped at a distance of 0\.002.*widen the clip to 0\.003"):
        Alarms(narrowest=0.002).check(HEALTHY)
    assert Alarms(narrowest=0.0031).check(HEALTHY) == []


def test_a_reward_that_parts_from_the_held_out_one_is_an_alarm(capsys: pytest.CaptureFixture[str]) -> None:
    alarms = Alarms()
    assert alarms.compare(0.4, 0.5) == []
    assert alarms.compare(0.7, 0.45) == []
    assert alarms.compare(0.8, 0.3) == ["reward_hacking"]
    assert "the reward rises while the held-out reward falls" in capsys.readouterr().out
    assert alarms.compare(0.8, 0.6) == []


def test_what_alarms_remember_travels_with_a_checkpoint() -> None:
    first, second = Alarms(), Alarms()
    first.check(HEALTHY)
    first.compare(0.4, 0.5)
    second.load_state_dict(first.state_dict())
    assert second.check(HEALTHY | {"log_prob_gap": 0.02}) == ["log_prob_gap"]
    assert second.check(HEALTHY | {"entropy_image": 0.1}) == ["entropy_image_collapsed"]
    assert second.compare(0.9, 0.2) == ["reward_hacking"]
