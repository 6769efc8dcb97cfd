"""Tests of the account of one segment: what the ticket of its load makes of its state."""

from __future__ import annotations

import pytest

from gemel.errors import BackendError
from gemel.runtime.memory.residence import Residence


def test_a_load_takes_room_before_it_is_over() -> None:
    segment = Residence()
    assert (segment.occupies, segment.idle, segment.awaited) == (False, False, True)
    ticket = segment.load()
    segment.settle()
    assert segment.state.name == "LOADING"
    assert (segment.occupies, segment.idle, segment.awaited) == (True, True, True)
    ticket.set_result(None)
    assert segment.awaited, "nobody has looked at the ticket yet"
    segment.settle()
    assert segment.state.name == "RESIDENT"
    assert (segment.occupies, segment.idle, segment.awaited) == (True, True, False)
    segment.users = 1
    assert not segment.idle
    segment.wait()


def test_a_load_that_fails_takes_no_room_and_is_not_awaited() -> None:
    segment = Residence()
    segment.load().set_exception(BackendError("no answer"))
    with pytest.raises(BackendError, match="no answer"):
        segment.wait()
    segment.settle()
    assert segment.state.name == "FAILED"
    assert (segment.occupies, segment.awaited) == (False, False)
    segment.load()
    assert segment.state.name == "LOADING"


def test_a_load_that_was_dropped_is_forgotten() -> None:
    segment = Residence()
    first = segment.load()
    segment.drop()
    first.set_exception(BackendError("no answer"))
    segment.settle()
    assert segment.state.name == "MISSING"
    second = segment.load()
    segment.settle()
    assert segment.state.name == "LOADING"
    second.set_result(None)
    segment.settle()
    assert segment.state.name == "RESIDENT"


@pytest.mark.parametrize("users", [0, 1])
def test_memory_that_was_lost_is_a_failure_whoever_holds_it(users: int) -> None:
    segment = Residence(users=users)
    ticket = segment.load()
    # Only what was loaded can be lost.
    segment.settle(kept=False)
    assert segment.state.name == "LOADING"
    ticket.set_result(None)
    segment.settle(kept=False)
    assert segment.state.name == "FAILED"
    assert (segment.occupies, segment.idle, segment.users) == (False, False, users)
