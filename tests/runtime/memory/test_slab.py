"""Tests of the slab: places never overlap, and no byte is lost."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemel.runtime.memory.slab import Slab

SIZE = 4096


def spans(slab: Slab, lengths: dict[str, int]) -> list[tuple[int, int]]:
    """Return begin and end of every place that takes room, in order."""
    return sorted(
        (slab.offset(name), slab.offset(name) + slab.needs(length)) for name, length in lengths.items() if length
    )


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 1500))), st.sampled_from([1, 64, 256]))
def test_whatever_comes_and_goes_places_stay_apart(actions: list[tuple[int, int]], alignment: int) -> None:
    """Each action frees a segment that has a place, or allocates one that has none. Contents survive compaction."""
    slab, memory = Slab(SIZE, alignment), np.zeros(SIZE, np.uint8)
    lengths: dict[str, int] = {}
    for key, length in actions:
        name = str(key)
        if name in lengths:
            slab.free(name)
            del lengths[name]
        elif (offset := slab.allocate(name, length)) is not None:
            lengths[name] = length
            assert offset % alignment == 0
            memory[offset : offset + length] = key + 1
        else:
            assert slab.needs(length) > slab.widest
            if slab.needs(length) <= slab.room:
                for move in slab.compact():
                    assert move.target < move.source
                    memory[move.target : move.target + move.length] = memory[move.source :][: move.length].copy()
                assert slab.widest == slab.room >= slab.needs(length)
        places = spans(slab, lengths)
        assert all(end <= begin for (_, end), (begin, _) in pairwise(places))
        assert all(begin >= 0 and end <= slab.size for begin, end in places)
        assert slab.room == slab.size - sum(end - begin for begin, end in places)
        for each, size in lengths.items():
            assert (memory[slab.offset(each) : slab.offset(each) + size] == int(each) + 1).all()
    for name in list(lengths):
        slab.free(name)
    assert slab.room == slab.widest == slab.size


def test_the_tightest_piece_is_taken() -> None:
    slab = Slab(1000, 1)
    for name, length in (("a", 300), ("b", 10), ("c", 100), ("d", 10)):
        slab.allocate(name, length)
    slab.free("a")
    slab.free("c")
    assert slab.allocate("e", 90) == 310


def test_pieces_on_both_sides_are_joined() -> None:
    slab = Slab(300, 1)
    for name in "abc":
        slab.allocate(name, 100)
    for name in "acb":
        slab.free(name)
    assert slab.widest == 300


def test_what_cannot_be() -> None:
    for size, alignment in ((-1, 256), (100, 0), (100, 3)):
        with pytest.raises(ValueError, match="is not possible"):
            Slab(size, alignment)
    slab = Slab(1000)
    assert slab.size == 768
    assert slab.allocate("a", 100) == 0
    with pytest.raises(ValueError, match="'a' has a place"):
        slab.allocate("a", 1)
    with pytest.raises(ValueError, match="-1 bytes"):
        slab.allocate("b", -1)
    with pytest.raises(KeyError):
        slab.free("b")
    assert slab.allocate("nothing", 0) == 0
    assert slab.allocate("c", 600) is None
    assert slab.room == 512
