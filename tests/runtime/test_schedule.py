from __future__ import annotations

import random

import pytest

from gemel.runtime.schedule import RoundRobin, round_robin


@pytest.mark.parametrize(
    ("last", "ready", "expected"),
    [
        (None, "abc", "a"),
        ("a", "abc", "b"),
        ("c", "abc", "a"),
        ("a", "ac", "c"),
        ("b", "ab", "a"),
        ("a", "a", "a"),
    ],
)
def test_the_next_one_in_the_cycle(last: str | None, ready: str, expected: str) -> None:
    assert round_robin("abc", last, ready) == expected


@pytest.mark.parametrize("ready", [[], ["z"]])
def test_nobody_ready(ready: list[str]) -> None:
    with pytest.raises(ValueError, match="none of"):
        round_robin("abc", None, ready)


def test_nobody_starves() -> None:
    generator = random.Random(0)
    names = [f"q{i}" for i in range(7)]
    schedule = RoundRobin(names)
    waiting = dict.fromkeys(names, 0)
    for _ in range(500):
        ready = ["q3", *generator.sample([name for name in names if name != "q3"], generator.randrange(7))]
        chosen = schedule.next(ready)
        assert chosen in ready
        waiting["q3"] = 0 if chosen == "q3" else waiting["q3"] + 1
        assert waiting["q3"] < len(names)
