"""Profiles are checked when they are read; times, turn sizes and budgets follow from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from profiles import profile, profiles

from gemel.bundles.staleness import Staleness
from gemel.errors import InputError
from gemel.runtime.planning.profile import LinkProfile, Profile, QueryProfile, parse_profile, unmerged, with_curves

MISSING = object()


def document() -> dict[str, Any]:
    """Return a valid profile of two models that share a segment, and three queries."""
    return {
        "memory": "50%",
        "sla_ms": 100,
        "link": {"bandwidth": 1e6, "latency_ms": 2},
        "segments": {"shared": {"bytes": 3000}, "a": {"bytes": 1000, "load_ms": 7.5}, "b": {"bytes": 2000}},
        "models": {
            "ma": {"segments": ["shared", "a"], "run_ms": {1: 10, 4: 25, 8: 101}},
            "mb": {"segments": ["shared", "b"], "run_ms": {1: 120}},
        },
        "queries": {
            "yard": {"model": "ma", "fps": 10},
            "gate": {"model": "mb", "fps": 5.5, "feed": "camera"},
            "door": {"model": "ma", "fps": 30, "feed": "camera"},
        },
    }


def changed(path: Sequence[Any], value: object) -> dict[str, Any]:
    """Return the document with another value, or none, at one place."""
    found = whole = document()
    for key in path[:-1]:
        found = found[key]
    if value is MISSING:
        del found[path[-1]]
    else:
        found[path[-1]] = value
    return whole


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("queries", "yard", "fps"), 0, r"queries\.yard\.fps: .*greater than 0"),
        (("queries", "yard", "fps"), math.nan, r"queries\.yard\.fps: "),
        (("queries", "yard", "fps"), math.inf, r"queries\.yard\.fps: .*finite"),
        (("queries", "yard", "fps"), MISSING, r"queries\.yard\.fps: .*required"),
        (("queries", "yard", "model"), "mc", r"queries\.yard: model 'mc' is not among models"),
        (("queries",), {}, r"queries: there are none"),
        (("queries",), MISSING, r"queries: .*required"),
        (("models", "ma", "segments"), ["shared", "c"], r"models\.ma: segment 'c' is not among segments"),
        (("models", "ma", "run_ms"), {4: 25, 2: 20}, r"models\.ma: run_ms has no time for 1 frame, only for \[2, 4\]"),
        (("models", "ma", "run_ms"), {}, r"models\.ma: run_ms has no time for 1 frame, only for none"),
        (("models", "ma", "run_ms", 1), math.nan, r"models\.ma\.run_ms\.1: .*finite"),
        (("models", "ma", "run_ms", 1), -1, r"models\.ma\.run_ms\.1: .*greater than or equal to 0"),
        (("models", "ma", "run_ms", 0), 1, r"models\.ma\.run_ms\.0.*: .*greater than 0"),
        (("segments", "a", "bytes"), -1, r"segments\.a\.bytes: .*greater than or equal to 0"),
        (("segments", "a", "bytes"), 1.5, r"segments\.a\.bytes: "),
        (("segments", "a", "load_ms"), math.inf, r"segments\.a\.load_ms: .*finite"),
        (("segments", "a", "size"), 1, r"segments\.a\.size: "),
        (("link", "bandwidth"), 0, r"link\.bandwidth: .*greater than 0"),
        (("link", "bandwidth"), math.nan, r"link\.bandwidth: "),
        (("link", "latency_ms"), -1, r"link\.latency_ms: "),
        (("sla_ms",), 0, r"sla_ms: .*greater than 0"),
        (("sla",), 100, r"sla: "),
        (("memory",), [1], r"memory"),
    ],
)
def test_bad_input_names_the_field(path: Sequence[Any], value: object, message: str) -> None:
    with pytest.raises(InputError, match=rf"^device\.yaml: {message}"):
        parse_profile(changed(path, value), "device.yaml")


@pytest.mark.parametrize("other", [None, [], "text"])
def test_what_is_no_mapping_is_no_profile(other: object) -> None:
    with pytest.raises(InputError, match=r"^profile: "):
        parse_profile(other)


def test_a_version_that_is_not_known_is_refused() -> None:
    with pytest.raises(InputError, match="schema_version"):
        parse_profile(changed(("schema_version",), "2"))


def test_a_model_that_lists_a_segment_twice_is_refused() -> None:
    # Otherwise its bytes would be counted twice at a load and once at an eviction.
    with pytest.raises(InputError, match=r"models\.ma"):
        parse_profile(changed(("models", "ma", "segments"), ["shared", "a", "a"]))


def test_what_is_left_out_has_defaults() -> None:
    found = parse_profile({key: document()[key] for key in ("segments", "models", "queries")})
    assert (found.memory, found.sla_ms, found.link) == ("all", 100, LinkProfile(bandwidth=1e9, latency_ms=0))
    assert found.queries["yard"] == QueryProfile(model="ma", fps=10, feed=None)


def test_batch_sizes_of_a_json_file_are_numbers() -> None:
    found = parse_profile(changed(("models", "ma", "run_ms"), {"1": 10, "4": 25}))
    assert found.run_ms("yard", 4) == 25


def test_a_measured_load_goes_before_what_follows_from_the_link() -> None:
    found = parse_profile(document())
    assert found.load_ms("a") == 7.5
    assert found.load_ms("b") == pytest.approx(2 + 2000 / 1e6 * 1e3)


def test_a_load_that_was_measured_as_nothing_is_not_derived() -> None:
    assert parse_profile(changed(("segments", "a", "load_ms"), 0)).load_ms("a") == 0


@pytest.mark.parametrize(("frames", "expected"), [(1, 10), (2, 25), (4, 25), (5, 101), (8, 101)])
def test_a_batch_that_is_not_known_takes_as_long_as_the_next_larger_one(frames: int, expected: float) -> None:
    assert parse_profile(document()).run_ms("yard", frames) == expected


def test_batches_are_those_whose_run_keeps_to_the_sla() -> None:
    found = parse_profile(document())
    assert found.batches("yard") == (1, 4)
    assert found.batches("gate") == (1,)
    assert parse_profile(changed(("sla_ms",), 101)).batches("yard") == (1, 4, 8)
    assert parse_profile(changed(("models", "ma", "run_ms"), {4: 30, 1: 10})).batches("yard") == (1, 4)


def test_late_are_queries_for_which_one_frame_takes_too_long() -> None:
    assert parse_profile(document()).late() == ("gate",)
    assert parse_profile(changed(("sla_ms",), 120)).late() == ()
    assert parse_profile(changed(("sla_ms",), 9)).late() == ("yard", "gate", "door")


@pytest.mark.parametrize(
    ("setting", "expected"),
    [("min", 5000), ("all", 6000), ("90%", 5400), (5001, 5001), ("5500", 5500), ("5.5 KB", 5500), (1 << 40, 1 << 40)],
)
def test_budget(setting: str | int, expected: int) -> None:
    assert parse_profile(document()).budget(setting) == expected


def test_the_profiles_own_budget() -> None:
    assert parse_profile(changed(("memory",), "90%")).budget() == 5400
    assert parse_profile(changed(("memory",), 5432)).budget() == 5432


@pytest.mark.parametrize("setting", [None, "50%", 4999, "4KB", 0])
def test_a_budget_that_is_too_small_states_the_minimum(setting: str | int | None) -> None:
    with pytest.raises(InputError, match=r"memory: .*needs 5000 bytes"):
        parse_profile(document()).budget(setting)


@pytest.mark.parametrize("setting", ["lots", "", "0%", "101%", "-5", -5, "nan%"])
def test_a_memory_setting_that_makes_no_sense(setting: str | int) -> None:
    with pytest.raises(InputError, match=rf"^memory: {setting!r} is not allowed: "):
        parse_profile(document()).budget(setting)
    with pytest.raises(InputError, match=rf"^memory: {setting!r} is not allowed: "):
        parse_profile(changed(("memory",), setting)).budget()


def test_segments_and_models_that_no_query_uses_need_no_memory() -> None:
    unused = document()
    del unused["queries"]["gate"]
    assert parse_profile(unused).budget("all") == 4000
    assert parse_profile(unused).budget("min") == 4000


def test_a_profile_is_a_value() -> None:
    found = parse_profile(document())
    assert found == parse_profile(document())
    with pytest.raises(ValueError, match="frozen"):
        found.sla_ms = 1  # type: ignore[misc]


def test_unmerged_queries_have_their_own_weights() -> None:
    found = unmerged(parse_profile(document()))
    assert {name: found.segments_of(name) for name in found.queries} == {
        "yard": ("yard",),
        "gate": ("gate",),
        "door": ("door",),
    }
    assert [found.segments[name].bytes for name in ("yard", "gate", "door")] == [4000, 5000, 4000]
    assert found.load_ms("yard") == pytest.approx(5 + 7.5)
    # The latency of the link counts once for each of the former segments.
    assert found.load_ms("gate") == pytest.approx(5 + 4)
    assert found.budget("all") == 13000


@settings(deadline=None, max_examples=50)
@given(profiles())
def test_unmerging_changes_nothing_but_who_shares(known: Profile) -> None:
    found = unmerged(known)
    assert list(found.queries) == list(known.queries)
    for name, query in known.queries.items():
        own = found.segments_of(name)
        assert sum(found.segments[each].bytes for each in own) == sum(
            known.segments[each].bytes for each in known.segments_of(name)
        )
        assert sum(map(found.load_ms, own)) == pytest.approx(sum(map(known.load_ms, known.segments_of(name))))
        assert [found.run_ms(name, frames) for frames in (1, 2, 3, 4)] == [
            known.run_ms(name, frames) for frames in (1, 2, 3, 4)
        ]
        assert (found.queries[name].fps, found.queries[name].feed) == (query.fps, query.feed)
    used = [segment for name in found.queries for segment in found.segments_of(name)]
    assert len(used) == len(set(used))
    assert (found.sla_ms, found.budget("min")) == (known.sla_ms, known.budget("min"))
    assert found.budget("all") >= known.budget("all")


def test_the_given_profile_is_not_changed_by_unmerging_it() -> None:
    known = profile({"a": ["s", "t"], "b": ["t"]})
    unmerged(known)
    assert known == profile({"a": ["s", "t"], "b": ["t"]})


def test_curves_of_queries_that_are_not_there_are_left_out() -> None:
    known = profile({"a": ["a"], "b": ["b"]}, fps={"a": 10.0, "b": 5.0})
    curve = Staleness(fps=10.0, frames=30, curve=(0.9, 0.8))
    found = with_curves(known, {"b": curve, "c": curve})
    assert {name: query.staleness for name, query in found.queries.items()} == {"a": None, "b": (0.8,)}
    assert with_curves(found, {}) == found


def of_differences(**models: list[str]) -> Profile:
    """Return a profile of kernels that are computed from a base and codes."""
    segments = {
        "base": {"bytes": 4000, "load_ms": 1.0},
        "codes": {"bytes": 100, "load_ms": 1.0},
        "own": {"bytes": 500, "load_ms": 1.0},
        "made": {"bytes": 4000, "load_ms": 9.0, "sources": ["base", "codes"]},
    }
    return profile(models, segments=segments)


def test_an_unmerged_model_loads_what_would_be_computed() -> None:
    found = unmerged(of_differences(a=["base", "codes", "own", "made"]))
    assert found.segments["a"].bytes == 4500
    # A millisecond for each byte of the kernels, as fast as the link.
    assert found.load_ms("a") == pytest.approx(1.0 + 4000.0)


@pytest.mark.parametrize("segments", [["made"], ["made", "base", "codes"], ["base", "own", "made"]])
def test_what_is_computed_comes_after_its_sources(segments: list[str]) -> None:
    with pytest.raises(InputError, match=r"models\.a: segment 'made' comes before its source '(base|codes)'"):
        of_differences(a=segments)
