"""The lag of a stream: the map from its time stamps to the clock."""

from __future__ import annotations

import pytest

from gemel.frames.lag import Lag

PERIOD = 0.1


def read(lag: Lag, stamps: list[float], arrivals: list[float], waited: list[float]) -> list[float]:
    found = []
    for stamp, now, wait in zip(stamps, arrivals, waited, strict=True):
        lag.note(stamp, now, wait)
        found.append(round(lag.seconds, 3))
    return found


def test_a_reader_that_waits_is_not_behind() -> None:
    lag = Lag(PERIOD)
    found = read(lag, [0, 0.1, 0.2, 0.3], [10, 10.11, 10.2, 10.32], [0.1] * 4)
    assert max(found) < 0.03
    assert not lag.behind(1.0)
    assert lag.captured(0.2) == pytest.approx(10.2, abs=0.01)


def test_a_reader_that_never_waits_falls_behind() -> None:
    lag = Lag(PERIOD)
    # Every picture takes twice its period.
    found = read(lag, [i / 10 for i in range(30)], [10 + i / 5 for i in range(30)], [0.1] + [0.0] * 29)
    assert found[-1] == pytest.approx(2.9)
    assert lag.behind(1.0)
    # The picture with stamp 2.9 was sent at 12.9, though it was read at 15.8.
    assert lag.captured(2.9) == pytest.approx(12.9)


def test_a_burst_after_a_wait_is_not_a_slow_reader() -> None:
    """Streams in segments send six seconds at once: the first pictures are old, but nobody is slow."""
    lag = Lag(PERIOD)
    now, stamp = 10.0, 0.0
    for _ in range(3):
        now += 6
        for i in range(60):
            lag.note(stamp, now + i / 1000, 6.0 if i == 0 else 0.0)
            assert not lag.behind(1.0)
            stamp += 0.1


def test_a_jump_of_the_cameras_clock_is_no_lag() -> None:
    for jump in (5000.0, -5000.0, -1.5):
        lag = Lag(PERIOD)
        stamps = [i / 10 + (jump if i >= 5 else 0) for i in range(10)]
        assert max(read(lag, stamps, [10 + i / 10 for i in range(10)], [0.1] * 10)) < 0.01


def test_a_stall_of_the_network_is_lag() -> None:
    lag = Lag(PERIOD)
    read(lag, [0, 0.1, 0.2], [10, 10.1, 10.2], [0.1] * 3)
    assert read(lag, [0.3, 0.4], [30.3, 30.3], [20, 0])[-1] > 18


def test_a_camera_with_a_slow_clock_is_followed() -> None:
    lag = Lag(PERIOD)
    # 200 ppm for three hours.
    found = read(lag, [i / 10 for i in range(108000)], [i / 10 * 1.0002 for i in range(108000)], [0.1] * 108000)
    assert found[-1] < 0.05


def test_without_time_stamps_the_lag_is_the_time_without_a_wait() -> None:
    lag = Lag(PERIOD)
    for i in range(30):
        lag.note(None, 10 + i / 10, 0.06)
        assert not lag.behind(1.0)
    for i in range(15):
        lag.note(None, 13 + i / 10, 0.0)
    assert lag.behind(1.0)
    lag.note(None, 14.5, 0.06)
    assert lag.seconds == 0
