"""The choice of INT8 models that get a private copy is a pure function of sizes, times and the memory setting."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemel.errors import InputError
from gemel.runtime.ort.baked import PrivateCopy
from gemel.runtime.ort.private_copies import choose_private_copies

SIZES = {"shared": 100, "of_a": 20, "of_b": 40, "of_c": 300}
SEGMENTS = {"a": ("shared", "of_a"), "b": ("shared", "of_b"), "c": ("of_c",)}


def private_copy(size: int, bound_ms: float, packed_ms: float) -> PrivateCopy:
    """Return the copy of a model with two stages."""
    return PrivateCopy(copies={"main": size // 2, "head": size - size // 2}, bound_ms=bound_ms, packed_ms=packed_ms)


A, B, C = private_copy(30, 10, 4), private_copy(35, 10, 8), private_copy(75, 10, 12)
ALL = {"a": A, "b": B, "c": C}


@pytest.mark.parametrize(
    ("setting", "packed", "bytes_allowed"),
    [
        ("all", {"a", "b"}, 300 + 30 + 35),
        ("100%", {"a", "b"}, 460),
        # The largest model is slower packed, but its copy makes room for the copies of the others.
        (360, {"a", "b", "c"}, 360),
        (329, {"a", "b", "c"}, 329),
        # Below 300 bytes the largest model does not fit bound, so it must have a copy.
        (299, {"a", "b", "c"}, 299),
        (139, {"c"}, None),
        # Three copies and no bound model are the least that all models need.
        ("min", {"a", "b", "c"}, 140),
        (140, {"a", "b", "c"}, 140),
    ],
)
def test_choices(setting: str | int, packed: set[str], bytes_allowed: int | None) -> None:
    if bytes_allowed is None:
        with pytest.raises(InputError, match=f"{setting} is {setting} bytes; 140 bytes are needed"):
            choose_private_copies(setting, SIZES, SEGMENTS, ALL)
    else:
        assert choose_private_copies(setting, SIZES, SEGMENTS, ALL) == (frozenset(packed), bytes_allowed)


def test_no_model_can_have_a_copy() -> None:
    assert choose_private_copies("all", SIZES, SEGMENTS, {}, 7) == (frozenset(), 467)
    assert choose_private_copies("min", SIZES, SEGMENTS, {}, 7) == (frozenset(), 307)
    with pytest.raises(InputError, match=r"memory: 10% is 46 bytes; 307 bytes are needed, of which 7 stay loaded"):
        choose_private_copies("10%", SIZES, SEGMENTS, {}, 7)
    with pytest.raises(InputError, match=r"memory: 1 is 1 bytes; the largest model alone needs 300 bytes"):
        choose_private_copies(1, SIZES, SEGMENTS, {})


def test_a_float32_model_sets_the_least() -> None:
    assert choose_private_copies("min", SIZES, SEGMENTS, {"a": A, "b": B}) == (frozenset(), 300)
    # A copy of a takes 30 bytes and frees only 20, because b needs the shared segment too: models would swap more.
    # A copy of b takes 35 bytes and frees 40. It fits if there are 35 bytes beside the 300 of c.
    assert choose_private_copies(334, SIZES, SEGMENTS, {"a": A, "b": B}) == (frozenset(), 334)
    assert choose_private_copies(335, SIZES, SEGMENTS, {"a": A, "b": B}) == (frozenset({"b"}), 335)
    # If b has a copy, a copy of a frees the shared segment too.
    assert choose_private_copies(365, SIZES, SEGMENTS, {"a": A, "b": B}) == (frozenset({"a", "b"}), 365)


def test_a_copy_does_not_make_others_swap() -> None:
    sizes = {"a": 100, "b": 100, "c": 1}
    segments = {name: (name,) for name in sizes}
    for memory, packed in ((201, ""), (229, ""), (230, "c")):
        assert choose_private_copies(memory, sizes, segments, {"c": private_copy(30, 1, 0.7)}) == (
            frozenset(packed),
            memory,
        )
    # If models swap in any case, a copy does not make them swap more.
    assert choose_private_copies(131, sizes, segments, {"c": private_copy(30, 1, 0.7)}) == (frozenset(), 131)
    assert choose_private_copies(131, sizes, segments, {"c": private_copy(1, 1, 0.7)}) == (frozenset("c"), 131)


def test_nor_does_one_that_would_fit_instead_of_the_largest() -> None:
    sizes = {"a": 100, "b": 50, "c": 50}
    segments = {name: (name,) for name in sizes}
    for memory, packed in ((200, ""), (219, ""), (220, "a")):
        assert choose_private_copies(memory, sizes, segments, {"a": private_copy(120, 10, 1)}) == (
            frozenset(packed),
            memory,
        )


def test_hardly_faster_is_not_worth_a_copy() -> None:
    assert choose_private_copies("all", SIZES, SEGMENTS, {"a": private_copy(30, 10, 9.7)}) == (frozenset(), 460)
    # Not even where the copy would let the bound models need less memory.
    assert choose_private_copies("all", {"s": 9}, {"a": ("s",)}, {"a": private_copy(0, 20, 19)}) == (frozenset(), 9)


def test_no_models_that_can_be_bound() -> None:
    assert choose_private_copies("all", {}, {}, {}, 9) == (frozenset(), 9)


@st.composite
def _problems(draw: st.DrawFn) -> tuple[dict[str, int], dict[str, tuple[str, ...]], dict[str, PrivateCopy]]:
    sizes = {
        f"s{index}": size for index, size in enumerate(draw(st.lists(st.integers(0, 100), min_size=1, max_size=5)))
    }
    models = [f"m{index}" for index in range(draw(st.integers(1, 4)))]
    segments = {model: tuple(sorted(draw(st.sets(st.sampled_from(sorted(sizes)))))) for model in models}
    sizes = {name: size for name, size in sizes.items() if any(name in each for each in segments.values())}
    times = st.integers(1, 20)
    copies = {
        model: private_copy(draw(st.integers(0, 60)), draw(times), draw(times))
        for model in models
        if draw(st.booleans())
    }
    return sizes, segments, copies


@given(_problems(), st.integers(0, 400), st.integers(0, 20))
def test_where_all_fit_bound_none_swap(
    problem: tuple[dict[str, int], dict[str, tuple[str, ...]], dict[str, PrivateCopy]], spare: int, private: int
) -> None:
    sizes, segments, copies = problem
    packed, allowed = choose_private_copies(sum(sizes.values()) + private + spare, sizes, segments, copies, private)
    left = {name for model, names in segments.items() if model not in packed for name in names}
    loaded = sum(copies[model].bytes for model in packed)
    assert sum(sizes[name] for name in left) + loaded + private <= allowed


@given(_problems(), st.integers(0, 400), st.integers(0, 20))
def test_whatever_fits_in_some_way_is_accepted(
    problem: tuple[dict[str, int], dict[str, tuple[str, ...]], dict[str, PrivateCopy]], setting: int, private: int
) -> None:
    sizes, segments, copies = problem

    def least(packed: frozenset[str]) -> int:
        needs = [sum(sizes[name] for name in names) for model, names in segments.items() if model not in packed]
        return max(needs, default=0) + private + sum(copies[model].bytes for model in packed)

    choices = [frozenset(some) for count in range(len(copies) + 1) for some in combinations(copies, count)]
    fewest = min(map(least, choices))
    assert choose_private_copies("min", sizes, segments, copies, private)[1] == fewest
    fastest, allowed = choose_private_copies("all", sizes, segments, copies, private)
    assert fastest == {model for model, each in copies.items() if each.is_faster}
    assert allowed >= least(fastest)
    if setting < fewest:
        with pytest.raises(InputError, match=f"{fewest} bytes"):
            choose_private_copies(setting, sizes, segments, copies, private)
    else:
        packed, allowed = choose_private_copies(setting, sizes, segments, copies, private)
        assert least(packed) <= allowed == setting
