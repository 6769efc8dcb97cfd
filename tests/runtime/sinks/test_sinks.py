"""Results in words and drawn on frames, and the live table."""

from __future__ import annotations

import io
import math
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from sink_events import BOX, NOON, PEOPLE, QUERIES, frame

from gemel.frames.frame import Image
from gemel.runtime.decode.results import (
    Class,
    Detection,
    Embedding,
    Mask,
    Raw,
    Result,
    Segmentation,
    SegmentedClass,
    Text,
)
from gemel.runtime.sinks import LiveTable
from gemel.runtime.sinks import pen as pen_module
from gemel.runtime.sinks.clock import clock
from gemel.runtime.sinks.draw import Palette, annotate
from gemel.runtime.sinks.overlays import class_color, spread_color
from gemel.runtime.sinks.pen import Pen
from gemel.runtime.sinks.words import words


def part_mask(rows: slice, columns: slice, size: tuple[int, int] = (180, 240)) -> Mask:
    """Return a mask of a rectangle in a frame."""
    inside = np.zeros(size, np.bool_)
    inside[rows, columns] = True
    return Mask.of(inside)


def scene(size: tuple[int, int] = (180, 240)) -> Segmentation:
    """Return a frame whose right half is road, but for a car."""
    half = size[1] // 2
    road = part_mask(slice(None), slice(half, None), size).array()
    road[-2:, -2:] = False
    car = part_mask(slice(-2, None), slice(-2, None), size)
    return Segmentation(size, (SegmentedClass("road", 1, Mask.of(road)), SegmentedClass("car", -1, car)))


BODY = Detection(
    (20.0, 90.0, 90.0, 170.0), 0.8, "person", keypoints=tuple((30.0 + 3 * i, 100.0 + 4 * i, 0.9) for i in range(17))
)
FACE = Detection((150.0, 90.0, 200.0, 140.0), 0.8, "face", landmarks=((160.0, 100.0), (math.nan, 1e30), (190.0, 100.0)))
MASKED = Detection((100.0, 90.0, 140.0, 130.0), 0.8, "cup", mask=part_mask(slice(95, 125), slice(105, 135)))
EVERYTHING: dict[str, Result | None] = {
    "boxes": (BODY, FACE, MASKED, *PEOPLE),
    "scene": scene(),
    "text": Text("北京 \n4711", 0.9),
    "weather": (Class("rain", 0.9), Class("night", 0.8)),
    "vector": Embedding((0.5, 0.5)),
    "raw": Raw({"out": np.zeros((1, 84, 8400), np.float32), "one": np.float32(1).reshape(())}),
    "silent": None,
}


def near(image: Image, color: tuple[int, int, int], tolerance: int = 60) -> int:
    """Return the number of pixels of about this colour."""
    return int((np.abs(image.astype(int) - color).max(axis=-1) < tolerance).sum())


class TestWords:
    @pytest.mark.parametrize(
        ("result", "expected"),
        [
            ((), "nothing"),
            ((*PEOPLE, *PEOPLE, Detection(BOX, 0.5, "car")), "2 person, 1 car"),
            ((Class("cat", 0.931), Class("dog", 0.05)), "cat 0.93"),
            ((Class("rain", 0.9), Class("night", 0.6), Class("snow", 0.4)), "rain 0.90, night 0.60"),
            ((Class("a", 0.4), Class("b", 0.3)), "a 0.40"),
            (Embedding((0.6, 0.8)), "embedding"),
            (Text("GO 4711", 0.987), '"GO 4711" 0.99'),
            (Text("", 0.0), "no text"),
            (scene(), "road 50 %, car < 1 %"),
            (Segmentation((180, 240), ()), "nothing"),
            (EVERYTHING["raw"], "out 1x84x8400, one scalar"),
            (Raw({f"o{i}": np.zeros(i) for i in range(5)}), "o0 0, o1 1, o2 2, + 2"),
        ],
    )
    def test_words(self, result: Result, expected: str) -> None:
        assert words(result) == expected


class TestDraw:
    def test_a_stable_colour_for_each_query(self) -> None:
        names = [f"q{i}" for i in range(30)]
        colors = Palette(names)
        assert colors == Palette(names)
        assert len(set(colors.values())) == 30
        assert Palette(names[:3]) == {name: colors[name] for name in names[:3]}

    def test_boxes_have_the_colour_of_their_query(self) -> None:
        image = frame(0).image
        colors = Palette(("people", "cars"))
        cars: Result = (Detection((150, 60, 220, 140), 0.5, "car"),)
        drawn = annotate(image, {"people": PEOPLE, "cars": cars}, colors)
        assert (image == 100).all()
        assert drawn.shape == image.shape
        assert tuple(drawn[100, 40]) == colors["people"]
        assert tuple(drawn[100, 120]) == colors["people"]
        assert tuple(drawn[100, 150]) == colors["cars"]
        assert tuple(drawn[100, 80]) == (100, 100, 100)

    def test_queries_without_boxes_are_lines_at_the_top_left(self) -> None:
        colors = Palette(("scene", "vector", "silent"))
        results: dict[str, Result | None] = {
            "scene": (Class("street", 0.9),),
            "vector": Embedding((1.0,)),
            "silent": None,
        }
        drawn = annotate(frame(0).image, results, colors)
        corner = drawn[:90]
        assert all(near(corner, color, 2) > 20 for color in colors.values())
        assert (drawn[100:] == 100).all()

    def test_masks_have_the_colour_of_their_query(self) -> None:
        colors = Palette(("cups",))
        drawn = annotate(frame(0).image, {"cups": (MASKED,)}, colors)
        tint = 0.6 * 100 + 0.4 * np.array(colors["cups"])
        assert np.abs(drawn[110, 120] - tint).max() <= 1
        assert tuple(drawn[110, 102]) == (100, 100, 100)  # in the box, not in the mask

    def test_classes_of_pixels_have_colours_of_their_own(self) -> None:
        drawn = annotate(frame(0).image, {"scene": scene()}, Palette(("scene",)))
        road, car = (class_color(each) for each in scene().classes)
        assert np.abs(drawn[100, 200] - (50 + 0.5 * np.array(road))).max() <= 1
        assert np.abs(drawn[179, 239] - (50 + 0.5 * np.array(car))).max() <= 1
        assert tuple(drawn[100, 60]) == (100, 100, 100)
        # The legend has a square of each.
        assert all(near(drawn[:90, :120], color, 2) > 20 for color in (road, car))

    def test_colours_of_classes_differ(self) -> None:
        colors = [spread_color(number) for number in range(40)]
        assert len(set(colors)) == 40
        for first, second in pairwise(colors):
            assert np.abs(np.subtract(first, second)).max() > 60

    def test_results_of_a_frame_of_another_size_do_not_fail(self) -> None:
        image = frame(0, size=(90, 120)).image
        drawn = annotate(image, {"scene": scene(), "cups": (MASKED,)}, Palette(("scene", "cups")))
        assert drawn.shape == image.shape

    def test_skeletons_and_landmarks(self) -> None:
        colors = Palette(("bodies", "faces"))
        drawn = annotate(frame(0).image, {"bodies": (BODY,), "faces": (FACE,)}, colors)
        for x, y, _ in BODY.keypoints:
            assert near(drawn[int(y) - 2 : int(y) + 3, int(x) - 2 : int(x) + 3], (255, 255, 255)) > 0
        # A bone joins the left knee and the left ankle.
        assert near(drawn[156:160, 71:74], colors["bodies"]) > 0
        for x, y in (FACE.landmarks[0], FACE.landmarks[2]):
            assert near(drawn[int(y) - 2 : int(y) + 3, int(x) - 2 : int(x) + 3], colors["faces"]) > 0

    def test_keypoints_that_are_unsure_are_not_drawn(self) -> None:
        hidden = Detection(BODY.box, 0.8, "person", keypoints=tuple((x, y, 0.1) for x, y, _ in BODY.keypoints))
        without = Detection(BODY.box, 0.8, "person")
        colors = Palette(("bodies",))
        drawn, expected = (annotate(frame(0).image, {"bodies": (each,)}, colors) for each in (hidden, without))
        assert (drawn == expected).all()

    def test_other_points_than_cocos_are_not_joined(self) -> None:
        points = ((30.0, 100.0, 0.9), (80.0, 100.0, 0.9))
        drawn = annotate(frame(0).image, {"a": (Detection(BODY.box, 0.8, "x", keypoints=points),)}, Palette(("a",)))
        assert near(drawn[98:103, 28:33], Palette(("a",))["a"]) > 0
        assert (drawn[100, 40:70] == 100).all()

    def test_time(self) -> None:
        image = frame(0).image
        drawn = annotate(image, {}, {}, 83.4)
        assert (annotate(image, {}, {}) == image).all()
        changed = np.argwhere((drawn != image).any(axis=-1))
        assert changed[:, 0].min() > 150
        assert changed[:, 1].max() < 80
        with_day = annotate(image, {}, {}, 83.4, NOON)
        assert np.argwhere((with_day != image).any(axis=-1))[:, 1].max() > 140
        narrow = annotate(image[:, :100], {}, {}, 83.4, NOON)
        assert 50 < np.argwhere((narrow != image[:, :100]).any(axis=-1))[:, 1].max() < 98
        assert [clock(seconds) for seconds in (0, 0.3, 59.99, 3599.9, 36_000.05)] == [
            "0:00.0",
            "0:00.3",
            "0:59.9",
            "59:59.9",
            "10:00:00.0",
        ]

    def test_crowded_labels_do_not_cover_each_other(self) -> None:
        crowd = tuple(Detection((40.0 + i, 90.0, 100.0 + i, 150.0), 0.9 - i / 100, "person") for i in range(30))
        drawn = annotate(frame(0).image, {"people": crowd}, Palette(("people",)))
        first = annotate(frame(0).image, {"people": crowd[:1]}, Palette(("people",)))
        # The label of the highest score is whole.
        assert (drawn[70:86, 40:100] == first[70:86, 40:100]).all()

    def test_texts_that_do_not_fit_are_cut(self) -> None:
        pen = Pen(np.array(frame(0).image))
        text = "a query with a very long name"
        assert pen.fit(text, 1000) == text
        cut = pen.fit(text, 80)
        assert cut.endswith("...")
        assert text.startswith(cut[:-3])
        assert pen.text_width(cut) <= 80
        assert pen.fit(text, 1) == ""

    def test_other_letters_where_opencv_draws_ascii_only(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pen_module, "_ONLY_ASCII", True)
        pen = Pen(np.array(frame(0).image))
        for text, plain in (("žluť", "zlut"), ("北京 4711", "?? 4711"), ("a\nb", "a b")):
            assert pen.text_width(text) == pen.text_width(plain)

    @pytest.mark.parametrize("size", [(1, 1), (7, 9), (30, 400), (144, 176), (180, 240), (1081, 1921)])
    def test_any_size(self, size: tuple[int, int]) -> None:
        colors = Palette(QUERIES)
        image = frame(0, size=size).image
        assert annotate(image, EVERYTHING, Palette(EVERYTHING), 1.0).shape == image.shape
        own = {"scene": scene(size)} if min(size) > 4 else {}
        assert annotate(image, own, Palette(own), 1e9).shape == image.shape
        many: dict[str, Result | None] = {f"query {i}": PEOPLE for i in range(50)}
        assert annotate(image, many, Palette(many)).shape == image.shape
        assert annotate(image, {"people": PEOPLE * 30, "scene": (Class("a", 1.0),)}, colors).shape == image.shape
        assert (annotate(image, {}, {}) == image).all()

    @pytest.mark.parametrize("box", [(math.nan,) * 4, (-1e30, math.inf, 1e30, 5.0), (50.0, 50.0, 10.0, 10.0)])
    def test_any_box(self, box: tuple[float, float, float, float]) -> None:
        annotate(frame(0).image, {"people": (Detection(box, math.nan, ""),)}, Palette(("people",)))


class TestLiveTable:
    def test_on_a_terminal(self) -> None:
        out = io.StringIO()
        console = Console(file=out, force_terminal=True, width=110)
        feeds: Any = {"gate": SimpleNamespace(error="connection reset", counts=SimpleNamespace(restarts=2))}
        table = LiveTable(QUERIES, feeds=feeds, console=console)
        for i in (0, 4, 5):
            table.on_result("people", frame(i), PEOPLE, 12.0 + i)
        table.on_error("scene", frame(0), "ValueError: [no] markup")
        table.close()
        plain = io.StringIO()
        Console(file=plain, width=110).print(table.table())
        rows = [line.split() for line in plain.getvalue().splitlines()]
        assert rows[1][:2] == ["people", "yard"]
        assert rows[1][3:] == ["3", "3", "16.0", "1", "person"]
        assert rows[2][-3:] == ["ValueError:", "[no]", "markup"]
        assert "feed gate: 2 restarts, connection reset" in plain.getvalue()
        assert "person" in out.getvalue()

    def test_silent_elsewhere(self) -> None:
        out = io.StringIO()
        table = LiveTable(QUERIES, console=Console(file=out))
        table.on_result("people", frame(0), PEOPLE, 1.0)
        table.close()
        assert out.getvalue() == ""
