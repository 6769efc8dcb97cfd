"""Staleness curves at other frame rates, and files of curves."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from helpers import swap_for_a_pipe
from hypothesis import given
from hypothesis import strategies as st

from gemel.bundles.staleness import MOST_AGES, Staleness, check_curves, read_curves
from gemel.errors import InputError

CURVE = Staleness(fps=10.0, frames=100, curve=(0.9, 0.8, 0.6))
GOOD = 'people: {fps: 10.0, frames: 100, curve: [0.9, 0.8, 0.6]}\n"on": {fps: 5, frames: 20, curve: [1]}\n'


def test_at_the_measured_rate() -> None:
    assert CURVE.at(10.0) == CURVE.curve
    assert CURVE.at(10.001) == CURVE.curve


def test_ages_stay_the_same_in_seconds() -> None:
    # A frame of the run is two measured frames; the curve ends with the oldest age that was measured.
    assert CURVE.at(5.0) == (0.8, 0.6)
    # A frame of the run is half a measured frame; an answer of age 0 has accuracy 1.
    assert CURVE.at(20.0) == pytest.approx((0.95, 0.9, 0.85, 0.8, 0.7, 0.6))
    assert CURVE.at(1.0) == (0.6,)


def test_a_curve_that_is_cut_off_is_not_flattered() -> None:
    slow = Staleness(fps=0.001, frames=20, curve=(0.9, 0.5))
    found = slow.at(1000.0)
    assert len(found) == 10_000
    assert (found[-2] > 0.9, found[-1]) == (True, 0.5)


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=40),
    st.floats(0.1, 120),
    st.floats(0.1, 120) | st.floats(1e-300, 1e300),
)
def test_any_rate(curve: list[float], fps: float, other: float) -> None:
    known = Staleness(fps=fps, frames=20, curve=tuple(sorted(curve, reverse=True)))
    found = known.at(other)
    assert found[-1] == known.curve[-1]
    assert all(0 <= value <= 1 for value in found)
    assert all(left >= right - 1e-6 for left, right in pairwise(found))


def test_yaml_and_json(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(GOOD)
    found = read_curves(tmp_path / "a.yaml")
    assert found == {"people": CURVE, "on": Staleness(fps=5, frames=20, curve=(1,))}
    (tmp_path / "a.json").write_text(json.dumps({name: each.model_dump() for name, each in found.items()}))
    assert read_curves(tmp_path / "a.json") == found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("people: [", "not YAML"),
        ("[" * 1500, "not YAML"),
        ("a: !!python/object/apply:os.getcwd []", "not YAML"),
        ("a: 99999999999-99-99 99:99:99", "a: Input should be"),
        ("a: 2001-99-99", "not YAML"),
        ("", "Input should be a valid dictionary"),
        ("just words", "Input should be a valid dictionary"),
        ("1: {fps: 10, frames: 1, curve: [1]}", "Input should be a valid string"),
        ("people: 3", "people: Input should be"),
        ("people: {frames: 100, curve: [1]}", "people.fps: Field required"),
        ("people: {fps: 0, frames: 100, curve: [1]}", "people.fps: Input should be greater"),
        ("people: {fps: .inf, frames: 100, curve: [1]}", "people.fps: Input should be"),
        ("people: {fps: 10, frames: 0, curve: [1]}", "people.frames: Input should be greater"),
        ("people: {fps: 10, frames: 100}", "people.curve: Field required"),
        ("people: {fps: 10, frames: 100, curve: []}", "people.curve: Tuple should have at least 1 item"),
        ("people: {fps: 10, frames: 100, curve: 0.5}", "people.curve: Input should be a valid tuple"),
        ("people: {fps: 10, frames: 100, curve: [0.9, 1.2]}", "people.curve.1: Input should be less than or equal"),
        ("people: {fps: 10, frames: 100, curve: [-0.1]}", "people.curve.0: Input should be greater"),
        ("people: {fps: 10, frames: 100, curve: [.nan]}", "people.curve.0: Input should be"),
        ("people: {fps: 10, frames: 100, curve: [yes]}", "people.curve.0: Input should be a valid number"),
        (f"people: {{fps: 10, frames: 1, curve: {[1.0] * (MOST_AGES + 1)}}}", "Tuple should have at most 600 items"),
        ("#" * (1 << 20) + "\n", "is larger than 1048576 bytes"),
    ],
)
def test_files_that_are_no_curves(text: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "staleness.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_curves(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert expected in str(caught.value) and "\n" not in str(caught.value)


TOKENS = [
    "[",
    "]",
    "{",
    "}",
    ":",
    " ",
    "\n",
    "&a ",
    "*a",
    "!!",
    '"',
    "|",
    "%",
    "1e999",
    ".nan",
    "<<: ",
    "9" * 5000,
    "\0",
]


@given(st.lists(st.tuples(st.integers(0, len(GOOD)), st.sampled_from(TOKENS) | st.text(max_size=2)), max_size=4))
def test_any_text_is_curves_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, str]]
) -> None:
    text = GOOD
    for place, token in changes:
        text = text[:place] + token + text[place + 1 :]
    path = tmp_path_factory.getbasetemp() / "garbled.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        found = read_curves(path)
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert all(0 <= value <= 1 for each in found.values() for value in each.curve)


def test_what_is_no_file(tmp_path: Path) -> None:
    path = tmp_path / "staleness.yaml"
    with pytest.raises(InputError, match=r"staleness\.yaml: cannot be read: no such file"):
        read_curves(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read: it is not text"):
        read_curves(path)
    # Opening a pipe would wait for a writer.
    swap_for_a_pipe(path)
    with pytest.raises(InputError, match="cannot be read: no such file"):
        read_curves(path)


def test_queries_that_do_not_exist() -> None:
    check_curves({"people": CURVE}, ["people", "cars"], "here")
    with pytest.raises(InputError, match=r"^here: 'persons' is not a query; queries: people, cars$"):
        check_curves({"persons": CURVE}, ["people", "cars"], "here")
